"""Blocks of a store: mapped from its shards, checked when they are first used, forgotten again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bertmill.errors import StoreError
from bertmill.storage import file_sha256

PREPARE_AGAIN = "delete the store and prepare the corpus again"
_MOST_OPEN_BLOCKS = 32
"""Two windows of an epoch, so that the step across their border opens none twice."""


@dataclass(frozen=True)
class Block:
    """A stretch of whole documents; the arrays may be views of a mapped file."""

    tokens: npt.NDArray[Any]
    """Ids, shape (tokens,), uint16 or uint32."""
    sentence_starts: npt.NDArray[np.int32]
    """Offsets into `tokens`, shape (sentences + 1,)."""
    document_starts: npt.NDArray[np.int32]
    """Offsets into the sentences, shape (documents + 1,)."""


class BlockSource(Protocol):
    """Where the blocks of a split come from."""

    def block(self, number: int) -> Block:
        """Open a block, counted from 0 over all shards.

        Raises
        ------
        StoreError
            It cannot be read, or is not what the manifest says.
        """
        ...


class MappedBlocks:
    """Blocks of local shards, read through a memory map.

    A shard's file is hashed when the first of its blocks is used, and the numbers in a block are
    checked when it is first used, both once in a process. At most 32 blocks are held open; arrays
    of a forgotten one stay valid.

    Parameters
    ----------
    folder : Path
    shards : sequence of dict
        As the manifest lists them.
    vocab_size : int
    """

    def __init__(self, folder: Path, shards: Sequence[dict[str, Any]], vocab_size: int) -> None:
        self._folder, self._vocab_size = folder, vocab_size
        self._places = [(shard, i) for shard in shards for i in range(len(shard["blocks"]))]
        self._checked_shards: set[Path] = set()
        self._checked_blocks: set[int] = set()
        self._block = lru_cache(_MOST_OPEN_BLOCKS)(self._open)

    def block(self, number: int) -> Block:
        """Open a block, or return it where it is open."""
        return self._block(number)

    def _open(self, number: int) -> Block:
        shard, i = self._places[number]
        path = self._folder / shard["file"]
        try:
            if path not in self._checked_shards:
                check_file(path, shard)
                self._checked_shards.add(path)
            block = _map_block(path, i)
            if number not in self._checked_blocks:
                _check_block(block, shard["blocks"][i], self._vocab_size)
                self._checked_blocks.add(number)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            raise StoreError(path, f"block {i} cannot be read ({error})", PREPARE_AGAIN) from None
        return block


def check_file(path: Path, listed: dict[str, Any]) -> None:
    """Raise `StoreError` unless the file's size and hash are those that the manifest lists."""
    check_size(path, listed)
    if file_sha256(path) != listed["sha256"]:
        raise StoreError(
            path, "is damaged (its SHA-256 differs from the manifest's)", PREPARE_AGAIN
        )


def check_size(path: Path, listed: dict[str, Any]) -> None:
    """Raise `StoreError` unless the file is there and as long as the manifest says."""
    if not path.is_file():
        raise StoreError(path, "is missing from the store", PREPARE_AGAIN)
    if (size := path.stat().st_size) != listed["num_bytes"]:
        raise StoreError(path, f"has {size} bytes instead of {listed['num_bytes']}", PREPARE_AGAIN)


def schema(ids: pa.DataType) -> pa.Schema:
    """Return the shards' schema: a row for each document, a list of sentences, each of ids."""
    return pa.schema([("sentences", pa.list_(pa.list_(ids)))])


def _map_block(path: Path, i: int) -> Block:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        if reader.schema not in (schema(pa.uint16()), schema(pa.uint32())):
            raise ValueError("it holds no lists of ids")
        batch = reader.get_batch(i)
    batch.validate(full=True)
    sentences = batch.column(0)
    arrays = (sentences.values.values, sentences.values.offsets, sentences.offsets)
    return Block(*map(_view, arrays))


def _view(array: pa.Array) -> npt.NDArray[Any]:
    """View an array in place; its own ``to_numpy`` loads pandas first, where that is installed."""
    return np.from_dlpack(array)


def _check_block(block: Block, listed: list[int], vocab_size: int) -> None:
    """Refuse what a right hash does not: a store from elsewhere whose numbers do not fit."""
    sentences, documents = block.sentence_starts, block.document_starts
    counts = [len(documents) - 1, len(sentences) - 1, len(block.tokens)]
    ends = (documents[0], documents[-1], sentences[0], sentences[-1])
    if counts != listed or ends != (0, counts[1], 0, counts[2]):
        raise ValueError("its sizes are not the manifest's")
    if np.diff(sentences).min() < 1 or np.diff(documents).min() < 1:
        raise ValueError("a sentence or a document is empty")
    if block.tokens.max() >= vocab_size:
        raise ValueError(f"the id {block.tokens.max()} is not in the vocabulary")
