"""Labeled examples for fine-tuning: the columns they are in, and the task that they pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from bertmill.errors import CorpusError, InputError
from bertmill.model.task import Task
from bertmill.text.files import refuse_surrogates
from bertmill.text.rows import Row, read_rows, text_of

Kind = Literal["classification", "regression", "words"]
Label = str | float | list[str]

_TEXT_COLUMNS = ("text", "sentence1", "sentence", "words", "tokens")
_TEXT_B_COLUMNS = ("text_b", "sentence2")
_LABEL_COLUMNS = ("label", "labels")
_LARGEST_NUMBER = 1e18
"""Its square, the loss, is still far from the largest 32-bit float."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None: the first usual name that the file has."""

    text: str | None = None
    """``text``, ``sentence1``, ``sentence``, ``words`` or ``tokens``."""
    text_b: str | None = None
    """``text_b`` or ``sentence2``, if the file has one."""
    label: str | None = None
    """``label`` or ``labels``."""


@dataclass(frozen=True)
class Examples:
    """Texts, pairs of texts or lists of words, with the label of each."""

    kind: Kind
    first: Sequence[Any]
    """Texts, or lists of words."""
    second: Sequence[str] | None
    labels: Sequence[Label] = ()
    """A class's name, a number, or a class's name for each word; none where they are not known."""

    def __len__(self) -> int:
        return len(self.first)

    def select(self, rows: Sequence[int]) -> Examples:
        """Return some of the examples."""
        first = [self.first[row] for row in rows]
        second = None if self.second is None else [self.second[row] for row in rows]
        return Examples(self.kind, first, second, [self.labels[row] for row in rows])


def read_examples(source: str, columns: Columns, kind: str | None) -> Examples:
    """Read the examples of a file.

    Parameters
    ----------
    source : str
        As `read_rows` takes it.
    columns : Columns
    kind : str or None
        A `Kind`. None: lists label words, numbers with a decimal point (5.0, not 5) are regression,
        anything else is a class.

    Raises
    ------
    CorpusError
        The file cannot be read, lacks a column, or a row differs from the others.
    InputError
        No examples, or an unknown kind.
    """
    if kind is not None and kind not in get_args(Kind):
        raise InputError("`task`", f"{kind!r} is not known", f"give {', '.join(get_args(Kind))}")
    rows = read_all(source)
    label = _column(rows[0], columns.label, _LABEL_COLUMNS, "`label_column`")
    found = cast(Kind, kind) if kind else _kind_of([values.get(label) for _, values in rows])
    texts = _texts(rows, columns, found)
    examples = replace(texts, labels=[_label_of(row, label, found) for row in rows])
    for (where, _), words, labels in zip(rows, examples.first, examples.labels, strict=True):
        if isinstance(labels, list) and len(words) != len(labels):
            raise CorpusError(where, f"has {len(words)} words but {len(labels)} labels")
    return examples


def read_similar(source: str, columns: Columns, others: Examples) -> Examples:
    """Read examples of the same kind as others, with as many texts each; see `read_examples`."""
    found = read_examples(source, columns, others.kind)
    if (found.second is None) != (others.second is None):
        raise InputError(
            source,
            "does not have as many texts per row as the training examples",
            "use the same columns in both files",
        )
    return found


def read_all(source: str) -> list[Row]:
    """Read all rows of a file; raise `InputError` where there are none."""
    rows = list(read_rows(source))
    if not rows:
        raise InputError(source, "has no examples", "give a file with one row per example")
    return rows


def texts_of(rows: Sequence[Row], columns: Columns, task: Task) -> Examples:
    """Take texts, pairs of texts or lists of words, as `read_examples` does, without labels.

    Where the task is not for pairs, a column with a usual name of second texts is ignored.
    """
    texts = _texts(rows, columns, task.kind)
    is_single = task.is_pair is False and columns.text_b is None
    return replace(texts, second=None) if is_single else texts


def _texts(rows: Sequence[Row], columns: Columns, kind: Kind) -> Examples:
    text = _column(rows[0], columns.text, _TEXT_COLUMNS, "`column`")
    if kind == "words":
        return Examples(kind, [_list_of(row, text) for row in rows], None)
    text_b = columns.text_b or next((name for name in _TEXT_B_COLUMNS if name in rows[0][1]), None)
    second = None if text_b is None else [text_of(row, text_b) for row in rows]
    return Examples(kind, [text_of(row, text) for row in rows], second)


def task_of(examples: Examples, source: str) -> Task:
    """Derive the task from texts and labels: classes sorted as whole numbers, else as text.

    Raises
    ------
    InputError
        Only one class.
    """
    if examples.kind == "regression":
        return Task("regression", (), examples.second is not None)
    names = {name for labels in examples.labels for name in _listed(labels)}
    if len(names) < 2:
        raise InputError(source, f"has only one class, {min(names, default='')!r}", "give two")
    ordered = sorted(names)
    if all(_is_whole(name) for name in names):
        ordered.sort(key=int)
    return Task(examples.kind, tuple(ordered), examples.second is not None)


def targets_of(examples: Examples, task: Task, source: str) -> list[float]:
    """Turn labels into numbers, end to end: that of the class, or the label itself.

    Raises
    ------
    InputError
        A class that the task does not have.
    """
    if task.kind == "regression":
        return [float(label) for label in examples.labels if isinstance(label, int | float)]
    numbers = {name: float(i) for i, name in enumerate(task.labels)}
    names = [name for labels in examples.labels for name in _listed(labels)]
    if unknown := next((name for name in names if name not in numbers), None):
        known = ", ".join(task.labels[:8])
        raise InputError(
            source, f"has the label {unknown!r}, but only {known} are learned", "fix it"
        )
    return [numbers[name] for name in names]


def _listed(label: Label) -> list[str]:
    return label if isinstance(label, list) else [str(label)]


def _column(row: Row, name: str | None, usual: Sequence[str], option: str) -> str:
    """Return the name that was given, or the first usual one that the row has."""
    where, values = row
    if name is not None:
        return name
    found = next((name for name in usual if name in values), None)
    if found is None:
        raise CorpusError(
            where,
            f"has no column named {' or '.join(usual)} (has {', '.join(map(str, values))})",
            f"rename one, or name it with {option}",
        )
    return found


def _kind_of(labels: Sequence[object]) -> Kind:
    if isinstance(labels[0], list):
        return "words"
    if any(_number(label) is None for label in labels):
        return "classification"
    is_real = any(isinstance(label, float) or "." in str(label) for label in labels)
    return "regression" if is_real else "classification"


def _label_of(row: Row, column: str, kind: Kind) -> Label:
    where, values = row
    if kind == "words":
        return [_class_name(row, name, column) for name in _list_of(row, column)]
    label = values.get(column)
    if kind == "regression":
        number = _number(label)
        if number is None or not math.isfinite(number):
            raise CorpusError(
                where, f"label {label!r} is not a number", "fix it, or give another `task`"
            )
        if abs(number) > _LARGEST_NUMBER:
            raise CorpusError(where, f"label {label!r} is too large", "scale the labels down")
        return number
    return _class_name(row, label, column)


def _class_name(row: Row, label: object, column: str) -> str:
    where, _ = row
    if not isinstance(label, str | int | float) or label == "":
        raise CorpusError(
            where,
            f"has no label in the column {column!r}",
            "name another with `label_column`",
        )
    name = str(label)
    refuse_surrogates(name, where)
    return name


def _list_of(row: Row, column: str) -> list[Any]:
    where, values = row
    found = values.get(column)
    if not isinstance(found, list):
        raise CorpusError(
            where, f"has no list in the column {column!r}", "lists are needed to label words"
        )
    return found


def _number(label: object) -> float | None:
    """Read a number, finite or not, or text that spells one."""
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    try:
        return float(str(label))
    except ValueError:
        return None


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii() and len(name) < 20
