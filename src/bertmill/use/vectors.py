"""Sentence vectors streamed to a file, ``.npy`` or ``.parquet``, that is whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.errors import InputError
from bertmill.storage import file_that_appears_whole, refuse_as_new_file

Write = Callable[[list[str], npt.NDArray[np.float32]], None]
"""Takes some texts and their vectors, [texts, D]."""


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
