"""Kill a run over and over, go on each time, and compare its end with a run that was left alone.

    python tests/torture.py --kills 100

A run is killed (SIGKILL, so nothing can be saved or said) at a random moment: while it opens its
store, makes a step, writes a checkpoint. Then it goes on, and is killed again. In the end its
weights, the optimizer's moments and its metrics must be those of a run that was never touched, bit
by bit, dropout and all. Prints a report, `--json` as an object; exits 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bertmill
from bertmill.train.run_folder import RunFolder
from small import CLOCKS, SMALL

bertmill.Run  # noqa: B018 - loads torch here, so that no child spends its time on it
STEPS_PER_KILL = 40
SETTINGS = [
    *SMALL,
    "train.log_every_steps=1",
    "train.validate_every_steps=20",
    "train.checkpoint_every_steps=7",
    "train.validation_pairs=32",
]


def torture(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a run `kills` times, let it end, and compare it with one that was left alone."""
    steps = STEPS_PER_KILL * kills
    dice = random.Random(seed)
    os.environ["BERTMILL_CACHE"] = str(folder / "cache")
    corpus = str(folder / "corpus.txt")
    Path(corpus).write_text("\n\n".join(_document(dice) for _ in range(200)), "utf-8")
    _in_a_child(corpus, RunFolder(folder / "first"), 1)  # prepares the store
    alone, run = RunFolder(folder / "alone"), RunFolder(folder / "killed")
    started = time.perf_counter()
    _in_a_child(corpus, alone, steps)
    seconds_alone = time.perf_counter() - started

    report: dict[str, Any] = {"kills": 0, "steps_redone": 0, "saves_torn": 0}
    started = time.perf_counter()
    while report["kills"] < kills:
        # Some 30 steps on, on average, and then some moment of the two steps that follow.
        until = _last_checkpoint(run) + dice.uniform(0, 1.5 * STEPS_PER_KILL)
        delay = dice.uniform(0, 2 * seconds_alone / steps)
        _in_a_child(corpus, run, steps, until, delay)
        report["kills"] += 1
        report["saves_torn"] += len(list(run.checkpoints.glob(".*.part")))
        report["steps_redone"] += max(0, _last_step(run) - _last_checkpoint(run))
    _in_a_child(corpus, run, steps)
    seconds_killed = time.perf_counter() - started
    return report | {
        "steps": steps,
        "seconds_alone": round(seconds_alone, 1),
        "seconds_killed": round(seconds_killed, 1),
        "seconds_lost": round(seconds_killed - seconds_alone, 1),
        "differences": _differences(alone, run),
    }


def _document(dice: random.Random) -> str:
    words = ["river", "farmer", "bridge", "sister", "market", "crane", "valley", "horse", "road"]
    sentences = (" ".join(dice.choices(words, k=dice.randint(3, 12))) for _ in range(8))
    return " ".join(f"The {sentence}." for sentence in sentences)


def _in_a_child(
    corpus: str, run: RunFolder, steps: int, until: float | None = None, delay: float = 0.0
) -> None:
    """Begin the run or go on with it in a process of its own.

    `until` kills it, some seconds (`delay`) after the metrics have told of that step.
    """
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_train, args=(corpus, run.path, steps))
    child.start()
    if until is not None:
        while child.is_alive() and _last_step(run) < until:
            time.sleep(0.002)
        child.join(delay)
        child.kill()
    child.join()
    if child.exitcode != (0 if until is None else -signal.SIGKILL):
        raise SystemExit(f"the run ended with status {child.exitcode} too soon")


def _train(corpus: str, out: Path, steps: int) -> None:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        if (out / "recipe.toml").exists() and (out / "run.json").exists():
            bertmill.resume(out, stream=nowhere)
        else:
            bertmill.pretrain(
                corpus, "tiny", out=out, steps=steps, settings=SETTINGS, stream=nowhere
            )


def _last_step(run: RunFolder) -> int:
    """Read the step of the last line that is whole, without reading them all."""
    try:
        with (run.path / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 2000))
            lines = stream.read().splitlines(keepends=True)
        return max(json.loads(line)["step"] for line in lines[-3:] if line.endswith(b"}\n"))
    except (OSError, ValueError):
        return 0


def _last_checkpoint(run: RunFolder) -> int:
    return max((int(path.name[5:]) for path in run.checkpoints.glob("step-*")), default=0)


def _differences(one: RunFolder, other: RunFolder) -> list[str]:
    """Name what is not equal, bit by bit; clocks may differ."""
    ends = [_end_of(run) for run in (one, other)]
    return [what for what in ends[0] if ends[0][what] != ends[1][what]]


def _end_of(run: RunFolder) -> dict[str, Any]:
    newest = run.model.resolve().parent
    return {
        "step": newest.name,
        "weights": (newest / "model" / "model.safetensors").read_bytes(),
        "moments": (newest / "optimizer.safetensors").read_bytes(),
        "best": run.best.resolve().parent.name,
        "metrics": [
            {k: v for k, v in record.to_dict().items() if k not in CLOCKS}
            for records in run.metrics()
            for record in records
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), args.kills, args.seed)
    if args.json:
        print(json.dumps(report))
    else:
        for what, value in report.items():
            print(f"{what.replace('_', ' ')}: {value}")
    sys.exit(1 if report["differences"] else 0)


if __name__ == "__main__":
    main()
