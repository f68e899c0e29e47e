"""Files of texts to files of vectors, ``.npy`` or ``.parquet``, streamed, whole or absent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.errors import InputError
from bertmill.storage import file_that_appears_whole, refuse_as_new_file
from bertmill.text.rows import read_rows, text_of
from bertmill.use.pretrained import Pretrained

_TEXTS_AT_ONCE = 4096

Write = Callable[[list[str], npt.NDArray[np.float32]], None]
"""Takes some texts and their vectors, [texts, D]."""


@dataclass(frozen=True)
class Embedded:
    """What `embed` wrote."""

    out: Path
    num_texts: int
    hidden_size: int
    num_cut: int
    """Texts longer than the folder says or than it was trained on; their ends do not count."""
    seconds: float
    """Reading, computing and writing; without opening the model."""
    texts_per_second: float


def embed_file(
    model: Pretrained,
    source: str,
    out: Path,
    column: str,
    pool: str | None,
    normalize: bool | None,
    show: Callable[[str, None], None],
) -> Embedded:
    """Compute a vector for each text of a file; see `bertmill.embed`.

    `show` takes a line about how far it is, and None.

    Raises
    ------
    InputError
        No texts, an output that cannot be written, or another `pool`.
    CorpusError
        The source cannot be read.
    """
    width = model.model.section.hidden_size
    started = time.monotonic()
    num_texts = num_cut = 0
    rows = read_rows(source)
    with open_vectors(out, width) as write:
        while texts := [text_of(row, column) for row in itertools.islice(rows, _TEXTS_AT_ONCE)]:
            vectors, cut = model.embed_counted(texts, pool, normalize)
            write(texts, vectors)
            num_texts, num_cut = num_texts + len(texts), num_cut + cut
            rate = num_texts / (time.monotonic() - started)
            show(f"{num_texts:,} texts, {rate:,.0f} texts/s", None)
        if not num_texts:
            raise InputError(source, "holds no texts", "give a file with one text per line or row")
    seconds = time.monotonic() - started
    return Embedded(out, num_texts, width, num_cut, seconds, num_texts / seconds)


@contextmanager
def open_vectors(out: Path, width: int) -> Iterator[Write]:
    """Give a function that appends vectors of `width` numbers to a new file.

    Raises
    ------
    InputError
        Another ending, or the file exists or cannot be written.
    """
    refuse_as_new_file(out, _WRITERS)
    with (
        file_that_appears_whole(out, InputError) as path,
        _WRITERS[out.suffix](path, width) as write,
    ):
        yield write


@contextmanager
def _open_npy(path: Path, width: int) -> Iterator[Write]:
    num_rows = 0
    with path.open("wb") as stream:

        def write_header() -> None:
            # NumPy leaves room in a header for the first number of the shape to grow.
            description = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_1_0(stream, description)

        def write(_: list[str], vectors: npt.NDArray[np.float32]) -> None:
            nonlocal num_rows
            stream.write(vectors.astype("<f4", copy=False).tobytes())
            num_rows += len(vectors)

        write_header()
        yield write
        stream.seek(0)
        write_header()


@contextmanager
def _open_parquet(path: Path, width: int) -> Iterator[Write]:
    vector = pa.list_(pa.float32(), width)
    schema = pa.schema([("text", pa.string()), ("vector", vector)])
    with pq.ParquetWriter(path, schema) as writer:

        def write(texts: list[str], vectors: npt.NDArray[np.float32]) -> None:
            flat = pa.array(vectors.ravel())
            columns = [pa.array(texts), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

        yield write


_WRITERS = {".npy": _open_npy, ".parquet": _open_parquet}
