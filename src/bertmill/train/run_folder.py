"""A run's folder: its recipe, its facts, its metrics, and the rule that one process writes it.

::

    recipe.toml       resolved: every knob
    run.json          corpus, store, budget, versions
    metrics.jsonl     a line a log interval and a line a validation
    decisions.jsonl   lengths fixed by a time budget
    checkpoints/      step-N folders
    lock              held by the process that writes
    model             link to the newest checkpoint's model folder
    loss.png          both losses, train and held-out, and the yardsticks
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bertmill.config import Recipe, load_recipe, recipe_to_toml
from bertmill.errors import RunError
from bertmill.train.schedule import Decision


class RunFolder:
    """Paths and small files of a run; see the module's text."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Link to the newest checkpoint's model folder."""
        return self.path / "model"

    def refuse_if_taken(self) -> None:
        """Raise `RunError` unless a run can start here: the folder must be new or empty."""
        if (self.path / "recipe.toml").exists():
            raise RunError(
                self.path,
                "already holds a run",
                f"choose another --out, or go on with: bertmill pretrain --resume {self.path}",
            )
        if self.path.exists() and (
            not self.path.is_dir() or any(f.name != "lock" for f in self.path.iterdir())
        ):
            raise RunError(self.path, "already exists and is not empty", "choose another --out")
        above = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise RunError(self.path, f"cannot be made in {above}", "choose another --out")

    def create(self, recipe: Recipe, facts: dict[str, Any]) -> None:
        """Start a run here; the folder is locked by the caller."""
        self.refuse_if_taken()
        self.write_recipe(recipe)
        self._write("run.json", json.dumps(facts, indent=1) + "\n")

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe."""
        self._write("recipe.toml", recipe_to_toml(recipe))

    def read(self) -> tuple[Recipe, dict[str, Any]]:
        """Read recipe and facts of the run that is here."""
        if not (self.path / "recipe.toml").is_file():
            raise RunError(self.path, "holds no run (no recipe.toml)", "give a run's folder")
        path, wanted = self.path / "run.json", {"corpus": list, "held_out": list, "store": str}
        try:
            facts = json.loads(path.read_text("utf-8"))
            known = {key: facts[key] for key in (*wanted, "store_identity", "budget_seconds")}
            if bad := [key for key, kind in wanted.items() if not isinstance(known[key], kind)]:
                raise ValueError(f"{bad[0]} is {known[bad[0]]!r}")
            if facts.setdefault("init_from", None) is not None:
                _ = facts["init_from"]["folder"] + facts["init_from"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                path, f"is damaged ({error!r})", "put it back, or start a new run"
            ) from None
        return load_recipe(self.path / "recipe.toml"), facts

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this run; the lock goes with the process."""
        with self._writing():
            stream = (self.path / "lock").open("a")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    self.path, "is in use by another process", "wait until it has ended"
                ) from None
            yield

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with self._writing(), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read all metrics."""
        return self._read_lines("metrics.jsonl", ("step", "split"))

    def cut(self, step: int) -> None:
        """Drop the metrics after a step, which the resumed run writes again, and torn lines."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        decisions = [asdict(decision) for decision in self.decisions()]
        for name, records in (("metrics.jsonl", kept), ("decisions.jsonl", decisions)):
            if (self.path / name).exists():
                self._write(name, "".join(json.dumps(record) + "\n" for record in records))

    def decisions(self) -> list[Decision]:
        """Read the lengths that were fixed so far."""
        keys = [field.name for field in fields(Decision)]
        return [
            Decision(**{key: record[key] for key in keys})
            for record in self._read_lines("decisions.jsonl", keys)
        ]

    def record_decision(self, decision: Decision) -> None:
        """Keep a decision safe before it is used."""
        path = self.path / "decisions.jsonl"
        with self._writing(), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(decision)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _read_lines(self, name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Read JSON objects that have these keys; a last line that was cut short is left out."""
        path = self.path / name
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                if missing := [key for key in keys if key not in record]:
                    raise KeyError(missing[0])
                records.append(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RunError(f"{path}, line {number}", "is damaged", "delete the line") from None
        return records

    def _write(self, name: str, text: str) -> None:
        """Replace a small file in one step."""
        whole = self.path / f".{name}.part"
        with self._writing():
            with whole.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            whole.replace(self.path / name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the disk says into our one line."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise RunError(
                error.filename or self.path,
                f"cannot be written ({error.strerror or error})",
                "make room or choose another --out; a run that has begun goes on with --resume",
            ) from None
