"""A fine-tuned model's answers to the rows of a file, beside the rows' own values."""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.errors import InputError
from bertmill.model.task import Task
from bertmill.storage import file_that_appears_whole, refuse_as_new_file
from bertmill.use.examples import Columns, read_all, texts_of
from bertmill.use.predict import Prediction, Predictions
from bertmill.use.pretrained import Pretrained

_STANDARD_OUTPUT = Path("-")
_Values = dict[str, Any]


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    task: str
    num_texts: int
    num_cut: int
    """Texts longer than the examples of fine-tuning could be; their ends do not count."""


def predict_file(
    model: Pretrained, source: str, out: Path, columns: Columns, stream: IO[str] | None
) -> Predicted:
    """Answer for each text of a file with a fine-tuned model; see `bertmill.predict`.

    `stream`, or else standard output, takes the rows where `out` is ``-``.

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    if out != _STANDARD_OUTPUT:
        refuse_as_new_file(out, _WRITERS)
    task = model.require_task_model().task
    rows = read_all(source)
    predictions, num_cut = model.predict_counted(texts_of(rows, columns, task))
    answered = with_answers([values for _, values in rows], predictions, task)
    if out != _STANDARD_OUTPUT:
        write_rows(out, answered)
    else:
        _print_rows(answered, stream)
        if num_cut:
            print(f"{num_cut:,} of {len(rows):,} texts are too long and were cut", file=sys.stderr)
    return Predicted(out, task.kind, len(rows), num_cut)


def with_answers(rows: Sequence[_Values], predictions: Predictions, task: Task) -> list[_Values]:
    """Put the answer to each row beside its values.

    A class is ``label``, ``probability`` and, of all classes, ``probabilities``; a number is
    ``value``; words have the lists ``labels`` and ``probabilities``, with nothing for words that
    did not fit. A value with such a name is kept under another, ``input_label`` for one.
    """
    answers = [_to_values(prediction, task) for prediction in predictions]
    taken, names = {name for answer in answers for name in answer}, {}
    for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
        names[name] = name
        while names[name] in taken:
            names[name] = f"input_{names[name]}"
        taken.add(names[name])
    return [
        {kept: row.get(name) for name, kept in names.items()} | answer
        for row, answer in zip(rows, answers, strict=True)
    ]


def _to_values(prediction: Prediction | float | list[Prediction | None], task: Task) -> _Values:
    if isinstance(prediction, Prediction):
        probabilities = dict(zip(task.labels, prediction.probabilities, strict=True))
        return prediction._asdict() | {"probabilities": probabilities}
    if isinstance(prediction, float):
        return {"value": prediction}
    return {
        "labels": [None if word is None else word.label for word in prediction],
        "probabilities": [None if word is None else word.probability for word in prediction],
    }


def write_rows(out: Path, rows: Sequence[_Values]) -> None:
    """Write rows of the same names to a new file.

    Raises
    ------
    InputError
        The file cannot be written, or not with these values.
    """
    with file_that_appears_whole(out, InputError) as path:
        try:
            _WRITERS[out.suffix](path, rows)
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            what = " ".join(str(error).split())
            raise InputError(out, f"cannot hold these columns ({what})", "write .jsonl") from None


def _print_rows(rows: Sequence[_Values], stream: IO[str] | None) -> None:
    try:
        print("".join(map(_to_line, rows)), end="", file=stream, flush=True)
    except BrokenPipeError:  # a reader that went away, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _to_line(values: object) -> str:
    text = json.dumps(values, ensure_ascii=False, default=str) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # half a character: an escape


def _write_jsonl(path: Path, rows: Sequence[_Values]) -> None:
    path.write_text("".join(map(_to_line, rows)), "utf-8")


def _write_csv(path: Path, rows: Sequence[_Values]) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            # What has parts is one cell, as JSON.
            cells = (
                (k, _to_line(v)[:-1] if isinstance(v, list | dict) else v) for k, v in row.items()
            )
            writer.writerow(dict(cells))


def _write_parquet(path: Path, rows: Sequence[_Values]) -> None:
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
