"""Which of the processes this is that torchrun has started together, before torch is imported."""

import os
import time
from collections.abc import Mapping

_SECONDS = 3.0
_SECONDS_PER_RANK, _MOST_SECONDS = 0.1, 10.0


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that speaks; a process alone is."""
    return environment.get("RANK", "0") == "0"


def quiet_torch() -> None:
    """Keep torch's C++ from a page of stack for each message to a rank that has gone.

    Before torch is imported. What a rank says of that is in `bertmill.train.watch`.
    """
    if "RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def name_rank(line: str, environment: Mapping[str, str] = os.environ) -> str:
    """Let lower ranks complain first, then name this one in its complaint.

    Most mistakes are found by all ranks. The first one that exits has the others ended by torchrun,
    so that whoever comes to speak has found something that the ranks before it have not.
    """
    rank = int(environment.get("RANK", "0"))
    if rank == 0:
        return line
    time.sleep(min(_SECONDS + _SECONDS_PER_RANK * rank, _MOST_SECONDS))
    return f"rank {rank}: {line}"
