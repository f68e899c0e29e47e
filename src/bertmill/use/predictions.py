"""Predictions of a fine-tuned model to ``.jsonl``, ``.csv`` or ``.parquet``, one row per text."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.errors import InputError
from bertmill.storage import file_that_appears_whole, refuse_as_new_file
from bertmill.use.examples import Columns, read_texts
from bertmill.use.predict import Prediction, Predictions
from bertmill.use.pretrained import Pretrained


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    task: str
    num_texts: int
    num_cut: int
    """Texts longer than the examples of fine-tuning could be; their ends do not count."""


def predict_file(model: Pretrained, source: str, out: Path, columns: Columns) -> Predicted:
    """Answer for each text of a file with a fine-tuned model; see `bertmill.predict`.

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    refuse_as_new_file(out, _WRITERS)
    task = model.require_task_model().task
    examples = read_texts(source, columns, task)
    predictions, num_cut = model.predict_counted(examples)
    write_predictions(out, predictions)
    return Predicted(out, task.kind, len(examples), num_cut)


def write_predictions(out: Path, predictions: Predictions) -> None:
    """Write one row per text, in their order.

    A class has ``label`` and ``probability``, a number ``value``, and words have the lists
    ``labels`` and ``probabilities``, with nothing for words that did not fit.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with file_that_appears_whole(out, InputError) as path:
        _WRITERS[out.suffix](path, [_to_row(prediction) for prediction in predictions])


def _to_row(prediction: Prediction | float | list[Prediction | None]) -> dict[str, Any]:
    if isinstance(prediction, Prediction):
        return prediction._asdict()
    if isinstance(prediction, float):
        return {"value": prediction}
    return {
        "labels": [None if word is None else word.label for word in prediction],
        "probabilities": [None if word is None else word.probability for word in prediction],
    }


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            # A list is one cell, as JSON.
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            )


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
