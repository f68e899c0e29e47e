"""A run's folder: its recipe, its facts, its metrics, and the rule that one process writes it.

::

    recipe.toml       resolved: every knob
    run.json          corpus, store, versions
    metrics.jsonl     one line per log interval, and one per validation
    decisions.jsonl   lengths fixed by a time budget
    diagnosis.json    what the run, once finished, was found not to have learned
    checkpoints/      step-N folders: the newest ones and the best by held-out loss
    lock              held by the process that writes
    model, best       links to the model folders of the newest and of the best checkpoint
    loss.png          both losses, train and held-out, and the yardsticks
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from bertmill.config import Recipe, Section, load_recipe, read_json, recipe_to_toml
from bertmill.errors import RunError
from bertmill.storage import file_lock, flush_to_disk, refuse_bad_name, refuse_unless_run
from bertmill.train.metrics import HeldOutRecord, Metrics, Record, TrainRecord, read_record
from bertmill.train.schedule import Decision

_FACTS, _DIAGNOSIS = "run.json", "diagnosis.json"
# What a process that was killed before its run began may leave.
_BEFORE_A_RUN = {"lock", _FACTS, f".{_FACTS}.part", ".recipe.toml.part"}

_LINES = TypeAdapter(tuple[str, ...])
_Value = TypeVar("_Value")


class FirstWeights(Section):
    """Where a run's first weights were, and their hash."""

    folder: str
    sha256: str


class Facts(Section):
    """What ``run.json`` says of a run besides its recipe."""

    corpus: Annotated[list[str], Field(min_length=1)]
    held_out: list[str]
    store: str
    store_identity: str
    budget_seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Of runs of earlier versions; it is ``train.budget_seconds`` now."""
    init_from: FirstWeights | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    segments_rule: int = 1
    """Which rule cuts and draws pairs of ``pairs.kind=segments``; 1: that of earlier versions."""


class RunFolder:
    """Paths and small files of a run; see the module's text."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model, self.best = self.path / "model", self.path / "best"

    def refuse_if_taken(self) -> None:
        """Raise `RunError` unless a run can start here: the folder must be new or empty."""
        refuse_bad_name(self.path, RunError)
        if (self.path / "recipe.toml").exists():
            raise RunError(
                self.path,
                "already holds a run",
                f"choose another `out`, or go on with: bertmill pretrain --resume {self.path}",
            )
        if self.path.exists() and (
            not self.path.is_dir() or any(f.name not in _BEFORE_A_RUN for f in self.path.iterdir())
        ):
            raise RunError(self.path, "already exists and is not empty", "choose another `out`")
        above = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise RunError(self.path, f"cannot be made in {above}", "choose another `out`")

    def create(self, recipe: Recipe, facts: Facts) -> None:
        """Start a run here; the folder is locked by the caller."""
        self.refuse_if_taken()
        self.write_facts(facts)
        self.write_recipe(recipe)  # last: from here on there is a run

    def write_facts(self, facts: Facts) -> None:
        """Write ``run.json``."""
        self._write(_FACTS, facts.model_dump_json(indent=1) + "\n")

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe."""
        self._write("recipe.toml", recipe_to_toml(recipe))

    @property
    def holds_run(self) -> bool:
        """Whether there is a run here."""
        return os.path.isfile(self.path / "recipe.toml")

    def read(self) -> tuple[Recipe, Facts]:
        """Read recipe and facts of the run that is here."""
        refuse_unless_run(self.path)
        fix = "put it back, or start a new run"
        facts = read_json(self.path / _FACTS, Facts.model_validate_json, RunError, fix)
        return load_recipe(self.path / "recipe.toml"), facts

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this run; the lock goes with the process."""

        def refuse() -> None:
            raise RunError(self.path, "is in use by another process", "wait until that has ended")

        with ExitStack() as held:
            with self.writing(self.path):
                held.enter_context(file_lock(self.path / "lock", refuse))
            yield

    def log(self, record: Record) -> None:
        """Append a line to the metrics."""
        self._append("metrics.jsonl", record.to_dict())

    def metrics(self) -> Metrics:
        """Read all metrics."""
        records = self._read_lines("metrics.jsonl", read_record)
        return Metrics(
            [record for record in records if isinstance(record, TrainRecord)],
            [record for record in records if isinstance(record, HeldOutRecord)],
        )

    def cut(self, step: int) -> None:
        """Drop later metrics, which the resumed run writes again, torn lines and any diagnosis."""
        records = self._read_lines("metrics.jsonl", read_record)
        kept = [record.to_dict() for record in records if record.step <= step]
        decisions = [decision.model_dump() for decision in self.decisions()]
        for name, lines in (("metrics.jsonl", kept), ("decisions.jsonl", decisions)):
            if (self.path / name).exists():
                self._write(name, "".join(json.dumps(line) + "\n" for line in lines))
        with self.writing(self.path / _DIAGNOSIS):
            (self.path / _DIAGNOSIS).unlink(missing_ok=True)

    def decisions(self) -> list[Decision]:
        """Read the lengths that were fixed so far."""
        return self._read_lines("decisions.jsonl", Decision.model_validate_json)

    def write_diagnosis(self, lines: list[str]) -> None:
        """Keep what the finished run was found not to have learned, a line for each finding."""
        self._write(_DIAGNOSIS, json.dumps(lines, indent=1) + "\n")

    def diagnosis(self) -> tuple[str, ...]:
        """Read the findings; none where the run has not finished."""
        path = self.path / _DIAGNOSIS
        if not path.is_file():
            return ()
        return read_json(path, _LINES.validate_json, RunError, "delete the file")

    def record_decision(self, decision: Decision) -> None:
        """Keep a decision safe before it is used."""
        with self.writing(self.path / "decisions.jsonl"):
            flush_to_disk(self._append("decisions.jsonl", decision.model_dump()))

    def _append(self, name: str, values: dict[str, Any]) -> Path:
        path = self.path / name
        with self.writing(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
        return path

    def _read_lines(self, name: str, read: Callable[[bytes], _Value]) -> list[_Value]:
        """Read the JSON objects of a file; a last line that was cut short is left out."""
        path = self.path / name
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        records: list[_Value] = []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                records.append(read(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RunError(f"{path}, line {number}", "is damaged", "delete the line") from None
        return records

    def _write(self, name: str, text: str) -> None:
        """Replace a small file in one step."""
        whole = self.path / f".{name}.part"
        with self.writing(self.path / name):
            whole.write_text(text, "utf-8")
            flush_to_disk(whole)
            whole.replace(self.path / name)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turn what the disk says while `path` is written into our one line."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise RunError(
                path,
                f"cannot be written ({error.strerror or error})",
                f"free some space, then go on with: bertmill pretrain --resume {self.path}",
            ) from None
