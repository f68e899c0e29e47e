"""Blocks of a store: mapped from its shards, checked when they are first used, forgotten again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bertmill.errors import StoreError
from bertmill.storage import file_sha256, read_derived, write_derived

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

    def sha256(self) -> bytes:
        """Hash what the block holds; 32 bytes."""
        digest = hashlib.sha256()
        for values in (self.tokens, self.sentence_starts, self.document_starts):
            digest.update(values.data)
        return digest.digest()


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

    When a shard is first used its file is hashed, and the hashes of its blocks are kept
    next to it (``train-00000.hashes``); from then on a process hashes only the blocks that it
    uses, each of them once. At most 32 blocks are held open; arrays of a forgotten one stay valid.

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
        self._hashes: dict[str, bytes] = {}
        self._checked: set[int] = set()
        self._block = lru_cache(_MOST_OPEN_BLOCKS)(self._open)

    def block(self, number: int) -> Block:
        """Open a block, or return it where it is open."""
        return self._block(number)

    def _open(self, number: int) -> Block:
        shard, i = self._places[number]
        path = self._folder / shard["file"]
        try:
            hashes = self._hashes_of(shard)
            block = _map_block(path, i)
            if number not in self._checked:
                if block.sha256() != hashes[32 * i : 32 * (i + 1)]:
                    what = f"is damaged (the SHA-256 of block {i} differs)"
                    raise StoreError(path, what, PREPARE_AGAIN)
                _check_block(block, shard["blocks"][i], self._vocab_size)
                self._checked.add(number)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            raise StoreError(path, f"block {i} cannot be read ({error})", PREPARE_AGAIN) from None
        return block

    def _hashes_of(self, shard: dict[str, Any]) -> bytes:
        """Return the hashes of a shard's blocks, end to end; the whole shard is checked once."""
        path = self._folder / shard["file"]
        if path.name not in self._hashes:
            kept_in = path.with_suffix(".hashes")
            hashes = read_derived(kept_in, shard["sha256"])
            if hashes is None:
                check_file(path, shard)
                blocks = (_map_block(path, i) for i in range(len(shard["blocks"])))
                hashes = b"".join(block.sha256() for block in blocks)
                write_derived(kept_in, shard["sha256"], hashes)
            self._hashes[path.name] = hashes
        return self._hashes[path.name]


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
