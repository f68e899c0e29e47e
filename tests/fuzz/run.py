"""Fuzz every reader: ``python tests/fuzz/run.py --inputs 100000``.

Each target runs in a process of its own, whose memory is bounded and in which an input that takes
too long is a death by SIGALRM. Inputs are found by coverage with ``atheris`` where it is installed,
else by changing good ones at random. The exit status is 1 where any input was a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is forked for each target
os.environ.setdefault("OMP_NUM_THREADS", "1")

_HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
_LONGEST_INPUT = 2**16
_KEPT_FAILURES = 20


@dataclass
class Outcome:
    """What the inputs of a target came to."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak_mebibytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """What went wrong, and the file that holds the first input that did it."""


def main() -> int:
    """Run the targets, print the table and return the exit status."""
    options = _options()
    import_targets = nullcontext()
    if options.atheris:
        import atheris

        import_targets = atheris.instrument_imports(include=["bertmill"])
    with import_targets:
        from targets import TARGETS, make_seeds

    chosen = [t for t in TARGETS if not options.target or t.name in options.target]
    if missing := set(options.target) - {t.name for t in chosen}:
        sys.exit(
            f"no such target: {', '.join(missing)}; known: {', '.join(t.name for t in TARGETS)}"
        )
    out = Path(options.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    print(f"coverage-guided: {options.atheris}; bertmill from {sys.modules['bertmill'].__file__}")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bertmill-fuzz-", dir=memory) as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        if _in_child(out / "seeds.log", lambda: make_seeds(seeds)) != 0:
            sys.exit(f"the seeds could not be made; see {out}/seeds.log")
        total = sum(target.weight for target in chosen)
        counts = {t.name: max(20, math.ceil(options.inputs * t.weight / total)) for t in chosen}
        outcomes = _run_all(chosen, counts, Path(scratch), out, options)
    outcomes.sort(key=lambda outcome: [t.name for t in chosen].index(outcome.name))
    _print_table(outcomes)
    report = {
        "coverage_guided": options.atheris,
        "seed": options.seed,
        "inputs": sum(outcome.inputs for outcome in outcomes),
        "targets": [asdict(outcome) for outcome in outcomes],
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets")
    parser.add_argument("--target", action="append", default=[], help="may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", default="build/fuzz", help="report and failing inputs")
    parser.add_argument("--seconds", type=int, default=10, help="for an input at most")
    parser.add_argument("--mebibytes", type=int, default=4096, help="of memory more, at most")
    parser.add_argument("--plain", dest="atheris", action="store_false", default=_HAS_ATHERIS)
    return parser.parse_args()


def _run_all(
    chosen: list[Any], counts: dict[str, int], scratch: Path, out: Path, options: Any
) -> list[Outcome]:
    """Run each target in a forked process, some at a time, the dearest first."""
    waiting = sorted(chosen, key=lambda target: (target.weight < 1, counts[target.name]))
    running: dict[int, tuple[Any, Path, float]] = {}
    outcomes: list[Outcome] = []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            target = waiting.pop()
            folder = scratch / target.name
            process = _fork(
                out / f"{target.name}.log",
                lambda t=target, f=folder: _Child(t, f, scratch, out, options, counts).run(),
            )
            running[process] = (target, folder, time.monotonic())
        process, status = os.wait()
        target, folder, started = running.pop(process)
        outcomes.append(_collect(target, folder, out, status, time.monotonic() - started))
        shutil.rmtree(folder, ignore_errors=True)
        last = outcomes[-1]
        print(f"{last.name}: {last.inputs} inputs, {len(last.failures)} failures", flush=True)
    return outcomes


def _fork(log: Path, work: Any) -> int:
    """Begin `work` in a process of its own whose output goes to a file."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _in_child(log: Path, work: Any) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_fork(log, work), 0)[1])


def _collect(target: Any, folder: Path, out: Path, status: int, seconds: float) -> Outcome:
    """Read what a process left; one that died leaves the input that killed it."""
    outcome, ended = Outcome(target.name), folder / "outcome.json"
    if ended.exists():
        outcome = Outcome(**json.loads(ended.read_text("utf-8")))
    else:
        code = os.waitstatus_to_exitcode(status)
        cause = "took too long" if code == -signal.SIGALRM else f"the process died ({code})"
        failing = out / f"{target.name}-died"
        if (folder / "current").exists():
            shutil.copy(folder / "current", failing)
        if (folder / "count").exists():
            outcome.inputs = int((folder / "count").read_text())
        outcome.failures[cause] = str(failing)
    outcome.seconds = round(seconds, 1)
    return outcome


class _Child:
    """A target's own process."""

    def __init__(
        self,
        target: Any,
        folder: Path,
        scratch: Path,
        out: Path,
        options: Any,
        counts: dict[str, int],
    ) -> None:
        self._target, self._folder, self._out = target, folder, out
        self._options, self._inputs = options, counts[target.name]
        shutil.copytree(scratch / "seeds", folder, symlinks=True)
        shutil.copytree(scratch / "seeds", folder / "good", symlinks=True)
        os.chdir(folder)
        os.environ["BERTMILL_CACHE"] = str(folder / "cache")
        self._outcome = Outcome(target.name)
        self._current = os.open(folder / "current", os.O_WRONLY | os.O_CREAT)

    def run(self) -> None:
        warnings.simplefilter("error")
        sys.setrecursionlimit(1000)
        seeds = self._target.seeds(self._folder / "good")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        bound = mapped + self._options.mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        self._one(seeds[0])
        if not self._outcome.accepted:
            self._fail("the seed is refused", seeds[0])
        if self._options.atheris:
            self._search(seeds)
        rng = random.Random(f"{self._options.seed} {self._target.name}")
        from mutate import mutate

        for seed in seeds[1:]:
            self._one(seed)
        while True:
            data = mutate(rng.choice(seeds), rng)
            self._one(mutate(data, rng) if rng.random() < 0.3 else data)

    def _search(self, seeds: list[bytes]) -> None:
        """Let libFuzzer look for inputs that reach new code; half of them are made by `mutate`."""
        import atheris
        from mutate import mutate

        corpus = self._folder / "found"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)

        def change(data: bytes, max_size: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.5:
                return bytes(atheris.Mutate(data, max_size))
            return mutate(data, rng)[:max_size]

        flags = [f"-seed={self._options.seed}", f"-max_len={_LONGEST_INPUT}", "-len_control=0"]
        flags += ["-verbosity=0", "-rss_limit_mb=0", "-handle_alrm=0", "-mutate_depth=1"]
        flags += [
            f"-handle_{name}=0" for name in ("abrt", "bus", "fpe", "ill", "segv", "int", "term")
        ]
        atheris.Setup(["fuzz", *flags, str(corpus)], self._one, custom_mutator=change)
        atheris.Fuzz()

    def _one(self, data: bytes) -> None:
        """Try an input; the last one ends the process."""
        from bertmill.errors import BertmillError

        outcome = self._outcome
        os.pwrite(self._current, data, 0)
        os.ftruncate(self._current, len(data))
        outcome.inputs += 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self._options.seconds)
        try:
            self._target.read(data, self._folder)
            outcome.accepted += 1
        except BertmillError as error:
            outcome.refused += 1
            line = str(error)
            if len(line.splitlines()) != 1 or not line.isprintable() or len(line) > 4000:
                self._fail(f"{type(error).__name__} is not told in one line", data)
        except BaseException as error:
            self._fail(_describe(error), data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome.inputs % 64 == 0:
            (self._folder / "count").write_text(str(outcome.inputs))
        if outcome.inputs >= self._inputs:
            outcome.peak_mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            text = json.dumps(asdict(outcome))
            (self._folder / "outcome.part").write_text(text, "utf-8")
            (self._folder / "outcome.part").rename(self._folder / "outcome.json")
            os._exit(0)

    def _fail(self, what: str, data: bytes) -> None:
        failures = self._outcome.failures
        if what in failures or len(failures) >= _KEPT_FAILURES:
            return
        path = self._out / f"{self._target.name}-{len(failures)}"
        path.write_bytes(data)
        failures[what] = f"{path}: {str(sys.exception())[:200]!r}"
        print(f"--- {what} -> {path}")
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()


def _describe(error: BaseException) -> str:
    """Name an error and where it came from, so that the same one is listed once."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "bertmill/" in f.filename]
    frames = frames or list(traceback.extract_tb(error.__traceback__))
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} in {where}"


def _print_table(outcomes: list[Outcome]) -> None:
    print(f"\n{'target':<20}{'inputs':>9}{'seconds':>9}{'accepted':>10}{'refused':>9}", end="")
    print(f"{'peak MiB':>10}{'failures':>10}")
    for o in outcomes:
        print(
            f"{o.name:<20}{o.inputs:>9,}{o.seconds:>9.1f}{o.accepted:>10,}{o.refused:>9,}", end=""
        )
        print(f"{o.peak_mebibytes:>10,}{len(o.failures):>10}")
        for what, path in o.failures.items():
            print(f"    {what}: {path}")
    print(f"{'all':<20}{sum(o.inputs for o in outcomes):>9,}")


if __name__ == "__main__":
    sys.exit(main())
