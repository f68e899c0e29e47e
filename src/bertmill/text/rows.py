"""Files to rows: a record of named values each.

A line of a ``.txt`` file is a row with the one value ``text``. The values of ``.csv`` (quoted as in
RFC 4180) and ``.tsv`` (never quoted) are texts, named by the first line; ``.jsonl`` and
``.parquet`` keep their types. Rows are streamed.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import pyarrow as pa

from bertmill.errors import CorpusError
from bertmill.text.files import (
    SourceFile,
    find_files,
    open_parquet,
    read_lines,
    refuse_damage,
    refuse_surrogates,
)

Row = tuple[str, dict[str, Any]]
"""Where it stands, for an error, and its values by name."""

ROW_ENDINGS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
STANDARD_INPUT = "-"
_PARQUET_ROWS_AT_ONCE = 1024
_LONGEST_CSV_VALUE = 2**31 - 1


def read_rows(source: str) -> Iterator[Row]:
    """Stream the rows of a file, folder, glob or URL, or the lines of standard input (``-``).

    Raises
    ------
    CorpusError
        Nothing there, damaged, or a row that does not fit its file.
    """
    for file in find_row_files(source):
        yield from refuse_damage(file, rows_of(file))


def find_row_files(source: str) -> list[SourceFile]:
    """List the files that `read_rows` reads.

    Raises
    ------
    CorpusError
        Nothing there, or of another kind.
    """
    if source.startswith("sample:"):
        raise CorpusError(
            source, "is a corpus, it has no rows", f"give a file of {', '.join(ROW_ENDINGS)}"
        )
    if source == STANDARD_INPUT:
        return [SourceFile("standard input", ".txt", "", "", _open_standard_input)]
    return find_files([source], ROW_ENDINGS)


def rows_of(file: SourceFile, column: str | None = None) -> Iterator[Row]:
    """Stream the rows of one file.

    Parameters
    ----------
    file : SourceFile
    column : str, optional
        The only one that is needed. Of a ``.parquet`` file no other is read, it must be of text,
        and rows without a value are left out.
    """
    if file.suffix == ".parquet":
        return _read_parquet(file, column)
    return _READERS[file.suffix](file)


def _open_standard_input() -> AbstractContextManager[BinaryIO]:
    """Return standard input as a file that stays open."""
    if sys.stdin is None:
        raise CorpusError("standard input", "is closed", "pipe text into it")
    return nullcontext(sys.stdin.buffer)


def text_of(row: Row, column: str, fix: str = "name another column") -> str:
    """Return a row's text; `fix` says how another column is named.

    Raises
    ------
    CorpusError
        No such column, or no text in it.
    """
    where, values = row
    if column not in values:
        names = ", ".join(list(map(str, values))[:8])
        raise CorpusError(where, f"has no column {column!r} (has {names})", fix)
    text = values[column]
    if not isinstance(text, str):
        found = "empty" if text is None else type(text).__name__
        raise CorpusError(where, f"column {column!r} is {found}, not text", f"fix it, or {fix}")
    if not text.isascii():
        refuse_surrogates(text, where)
    return text


def _read_json_lines(file: SourceFile) -> Iterator[Row]:
    """Stream the objects of a ``.jsonl`` file; empty lines are skipped."""
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file.url}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(where, f"is not JSON ({error})", "fix or delete it") from None
        if not isinstance(record, dict):
            raise CorpusError(where, "is not a JSON object", "fix or delete it")
        yield where, record


def _read_text(file: SourceFile) -> Iterator[Row]:
    for number, line in enumerate(read_lines(file), 1):
        yield f"{file.url}, line {number}", {"text": line}


def _read_table(file: SourceFile) -> Iterator[Row]:
    lines: Iterable[list[str]]
    if file.suffix == ".csv":  # a quoted value may hold line ends, which are part of it
        csv.field_size_limit(_LONGEST_CSV_VALUE)
        lines = csv.reader(read_lines(file, keep_ends=True), strict=True)
    else:
        lines = (line.split("\t") for line in read_lines(file))
    names: list[str] = []
    try:
        for number, values in enumerate(lines, 1):
            if not values or (values == [""] and len(names) != 1):
                continue  # an empty line
            if not names:
                names = values
                _refuse_twins(names, file)
                if file.suffix == ".csv" and len(names) == 1 and ";" in names[0]:
                    raise CorpusError(
                        file.url,
                        f"has the one column {names[0]!r}, with semicolons in its name",
                        "separate the values with commas, or with tabs in a .tsv",
                    )
                continue
            where = f"{file.url}, row {number}"
            if len(values) != len(names):
                raise CorpusError(
                    where, f"has {len(values)} values, not {len(names)}", "fix or delete it"
                )
            yield where, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise CorpusError(file.url, f"is not CSV ({error})", "write it again") from None


def _read_parquet(file: SourceFile, column: str | None) -> Iterator[Row]:
    with open_parquet(file) as table:
        schema = table.schema_arrow
        _refuse_twins(schema.names, file)
        columns = None
        if column in schema.names:
            columns, kind = [column], schema.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise CorpusError(
                    file.url, f"column {column!r} is {kind}, not text", "name another column"
                )
        batches = table.iter_batches(_PARQUET_ROWS_AT_ONCE, columns=columns)
        rows = (batch.slice(i, 1) for batch in batches for i in range(len(batch)))
        for number, row in enumerate(rows, 1):
            where = f"{file.url}, row {number}"
            try:
                values = {name: row.column(name)[0].as_py() for name in row.schema.names}
            except (ValueError, OverflowError) as error:  # not UTF-8, or a date that Python lacks
                raise CorpusError(
                    where, f"holds a value that cannot be read ({error})", "write it again"
                ) from None
            if columns is None or values[column] is not None:
                yield where, values


def _refuse_twins(names: Sequence[str], file: SourceFile) -> None:
    """Raise `CorpusError` where two columns have one name."""
    if len(set(names)) < len(names):
        raise CorpusError(file.url, "names a column twice", "rename one")


_READERS = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".csv": _read_table,
    ".tsv": _read_table,
}
