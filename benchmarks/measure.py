"""What the benchmarks share: rounds and their spread, the machine, the versions, the results' file.

A script in this folder imports it by name: ``from measure import Spread, write_results``.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """The middle of several measurements, and how far they lie apart."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 2) -> str:
        return f"{self.median:,.{digits}f} ({self.min:,.{digits}f} to {self.max:,.{digits}f})"


def round_ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times their seconds are of ours, round by round: 6, 4 and 2, 2 make 3 and 2.

    A slow moment of the machine is in both times of a round, and so leaves the ratio.
    """
    return Spread.of(t / o for t, o in zip(theirs, ours, strict=True))


def timed(compute: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def interleave(
    programs: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each program in each round; in a round every program has one turn."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(num_rounds):
        for name, compute in programs.items():
            seconds[name].append(timed(compute))
    return seconds


def memory_bytes(kind: str, process: int | str = "self") -> int:
    """Read ``VmHWM``, ``RssAnon`` and the like of a process (Linux); 0 where it has none."""
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    found = [line for line in status.splitlines() if line.startswith(f"{kind}:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def peak_memory_bytes() -> int:
    """Most memory that this process has held so far."""
    return memory_bytes("VmHWM")


def describe_machine(num_threads: int | None = None) -> dict[str, str | int]:
    """Processor, cores, threads (by default the cores) and memory; no names."""
    num_cores = len(os.sched_getaffinity(0))
    return {
        "processor": _processor(),
        "cores": num_cores,
        "threads": num_threads or num_cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def describe_commit() -> str:
    """Short hash; ``-dirty`` where the tree differs from it in anything but results."""
    commit = _git("rev-parse", "--short", "HEAD")
    is_dirty = _git("status", "--porcelain", "--", ":/", ":(exclude)results")
    return f"{commit}-dirty" if is_dirty else commit


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_results(
    name: str,
    figures: Mapping[str, object],
    packages: Iterable[str],
    num_threads: int | None = None,
) -> Path:
    """Write ``results/NAME.json``: the figures, with machine, versions and commit."""
    about = {
        "machine": describe_machine(num_threads),
        "versions": describe_versions(packages),
        "commit": describe_commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, **about}, indent=1, default=asdict) + "\n", "utf-8")
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()
