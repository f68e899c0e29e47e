"""How long idle threads of the OpenMP library of torch stay awake."""

import os
from collections.abc import MutableMapping

# A thread that has done its share of an operation waits for the next one in a busy loop: that of
# GNU's library takes 300,000 rounds, some ten milliseconds, and LLVM's and Intel's 200 ms. With the
# machine to itself that saves a few microseconds for each operation. Beside another program the
# loop takes the core that a thread with work would need, and training falls to two fifths of its
# speed. Of the numbers that benchmarks/neighbor.py was run with, 200 rounds keep most of it beside
# another program (0.55 of the speed alone; 20,000 keep 0.31), and cost next to nothing alone.
_ROUNDS = "200"
_MILLISECONDS = "1"


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let idle threads sleep soon, except where the user's environment says how they wait.

    It has an effect only before torch is imported: an OpenMP library reads the environment once,
    when it is loaded.
    """
    if "OMP_WAIT_POLICY" in environment:  # the standard's own, which either overrules
        return
    environment.setdefault("GOMP_SPINCOUNT", _ROUNDS)
    environment.setdefault("KMP_BLOCKTIME", _MILLISECONDS)
