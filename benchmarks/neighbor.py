"""Training beside another program that computes: what the spinning of idle threads costs it.

    python benchmarks/neighbor.py [--spins 300000 5000 1000] [--recipe d2l] [--steps 20]
                                  [--rounds 3]

``bertmill pretrain`` runs in a process of its own with each number of rounds for which an idle
thread of OpenMP spins (``GOMP_SPINCOUNT``), alone and beside one process that never waits; in a
round each has one turn. The first number is the one that the others are compared with, by default
300,000, which GNU's library takes where nothing is set. Shares are of one round: `alone` of the
pairs per second that the first number reaches alone, `beside` of the same. Prints a table and
writes ``results/neighbor.json``. Run it on an otherwise idle machine with two cores or more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from measure import Spread, markdown_table, round_ratios, write_results

from bertmill.train.run_folder import RunFolder

GOALS = {"alone": 0.97, "beside": 0.55}
LOG_EVERY = 5
# Any recipe reads this text; nothing is held out, so that steps alone are timed.
SETTINGS = [
    *("text.document=block", "text.sentences=sentencex", "text.held_out_fraction=0.0"),
    *(f"train.log_every_steps={LOG_EVERY}", "train.precision=fp32", "train.device=cpu"),
]


@contextmanager
def neighbor() -> Iterator[subprocess.Popen]:
    """Another program that computes as long as this one lives, with one thread."""
    busy = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    process = subprocess.Popen([sys.executable, "-c", busy])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pretrain(out: Path, spins: int, options: argparse.Namespace) -> float:
    """Train in a process of its own and return the pairs per second after the first steps."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "bertmill", "pretrain", "--corpus", options.corpus,
         "--recipe", options.recipe, "--steps", str(options.steps), "--out", str(out), *settings],
        env=os.environ | {"GOMP_SPINCOUNT": str(spins)}, check=True, capture_output=True,
    )  # fmt: skip
    records = RunFolder(out).metrics().train[1:]
    return Spread.of(record.pairs_per_second for record in records).median


def shares_of(
    speeds: dict[tuple[int, str], list[float]], first: int
) -> dict[tuple[int, str], Spread]:
    """Each speed as a share of what the first number reached alone in the same round."""
    return {turn: round_ratios(each, speeds[first, "alone"]) for turn, each in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 1_000])
    parser.add_argument("--recipe", default="d2l")
    parser.add_argument("--corpus", default="sample:sotu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "OMP_WAIT_POLICY" in os.environ:
        parser.error("OMP_WAIT_POLICY is set; unset it: it decides how threads wait")
    if options.steps < 2 * LOG_EVERY:
        parser.error(f"--steps is less than {2 * LOG_EVERY}")

    turns = [*product(options.spins, ("alone", "beside"))]
    speeds: dict[tuple[int, str], list[float]] = {turn: [] for turn in turns}
    with tempfile.TemporaryDirectory() as folder:
        pretrain(Path(folder) / "first", options.spins[0], options)  # prepares the store
        for number in range(options.rounds):
            for spins, where in turns:
                out = Path(folder) / f"{number}-{spins}-{where}"
                if where == "alone":
                    speeds[spins, where].append(pretrain(out, spins, options))
                else:
                    with neighbor():
                        speeds[spins, where].append(pretrain(out, spins, options))

    shares = shares_of(speeds, options.spins[0])
    header = ["spins", "pairs per second alone", "share", "beside a neighbor", "share"]
    rows = []
    for spins in options.spins:
        row = [f"{spins:,}"]
        for where in ("alone", "beside"):
            row += [Spread.of(speeds[spins, where]).show(0), shares[spins, where].show()]
        rows.append(row)
    print(markdown_table(header, rows))
    print(f"\nwanted: shares of {GOALS['alone']} alone and {GOALS['beside']} beside a neighbor")
    figures = {
        "recipe": options.recipe,
        "rounds": options.rounds,
        "goals": GOALS,
        "pairs_per_second": _by_spins(speeds),
        "shares": _by_spins(shares),
    }
    print(f"\n{write_results('neighbor', figures, ['bertmill', 'torch', 'numpy'])}")


def _by_spins(values: dict[tuple[int, str], object]) -> dict[int, dict[str, object]]:
    found: dict[int, dict[str, object]] = {}
    for (spins, where), value in values.items():
        found.setdefault(spins, {})[where] = value
    return found


if __name__ == "__main__":
    main()
