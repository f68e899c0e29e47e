"""The token store: Arrow files of documents, sentences and tokens, read through a memory map.

A store is a folder::

    manifest.json                 counts, hashes, tokenizer identity, and how the text was read
    tokenizer/                    the tokenizer itself
    token-counts.npy              how often each id occurs in the training split
    train-00000.arrow ...         shards: a row a document, a list of sentences, each a list of ids
    held_out-00000.arrow ...

A record batch of a shard is a *block*: the unit of local reading and shuffling.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from bertmill.config import Section, TextSection, TokenizerSection, first_problem
from bertmill.errors import StoreError
from bertmill.storage import file_sha256
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

FORMAT = 2
BLOCK_TOKENS = 2**22
"""A block is closed once it holds this many tokens: 8 MB in memory, far below int32 offsets."""
LONGEST_DOCUMENT_TOKENS = 2**24
_SHARD_BLOCKS = 64
_COUNTS_FILE = "token-counts.npy"
_PREPARE_AGAIN = "prepare the corpus again"

_Size = Annotated[int, Field(ge=1, lt=2**31)]


class _File(Section):
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Shard(_File):
    file: Annotated[str, Field(pattern=r"^(train|held_out)-[0-9]+\.arrow$")]
    blocks: list[Annotated[list[_Size], Field(min_length=3, max_length=3)]]
    """Documents, sentences and tokens of each."""


class _Counts(_File):
    file: Literal["token-counts.npy"]


class _Split(Section):
    num_documents: int
    num_sentences: int
    num_tokens: int
    shards: list[_Shard]


class _Splits(Section):
    train: _Split
    held_out: _Split


class _Manifest(Section, extra="allow"):
    """What a manifest must be before anything in it is believed."""

    format: int
    tokenizer_identity: str
    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    dtype: Literal["uint16", "uint32"]
    corpus: list[str] = Field(default_factory=list)
    held_out: list[str] = Field(default_factory=list)
    text: TextSection = TextSection()
    tokenizer: TokenizerSection = TokenizerSection()
    splits: _Splits
    token_counts: _Counts


class EncodedDocuments(NamedTuple):
    """Documents as token ids, end to end."""

    tokens: npt.NDArray[Any]
    sentence_lengths: npt.NDArray[np.int64]
    """Tokens in each sentence; none is 0."""
    document_lengths: npt.NDArray[np.int64]
    """Sentences in each document; none is 0."""


@dataclass(frozen=True)
class Block:
    """A stretch of whole documents; the arrays are views of the mapped file."""

    tokens: npt.NDArray[Any]
    """Ids, shape (tokens,), uint16 or uint32."""
    sentence_starts: npt.NDArray[np.int32]
    """Offsets into `tokens`, shape (sentences + 1,)."""
    document_starts: npt.NDArray[np.int32]
    """Offsets into the sentences, shape (documents + 1,)."""


class TokenStore:
    """One split of a store: blocks of documents, and the tokens at any position.

    A token's position counts from the start of the split, across blocks and shards, in int64.
    """

    def __init__(self, folder: Path, split: dict[str, Any], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._shards = [
            (folder / shard["file"], i)
            for shard in split["shards"]
            for i in range(len(shard["blocks"]))
        ]
        sizes = [block for shard in split["shards"] for block in shard["blocks"]]
        self._sizes = table = np.array(sizes, np.int64).reshape(-1, 3)
        self.block_documents = table[:, 0]
        self.block_token_starts = np.concatenate([[0], np.cumsum(table[:, 2])])
        self.num_documents, self.num_sentences, self.num_tokens = (int(n) for n in table.sum(0))
        self._readers: dict[Path, pa.ipc.RecordBatchFileReader] = {}
        self._blocks: dict[int, Block] = {}

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the split."""
        return len(self._shards)

    def block(self, number: int) -> Block:
        """Map a block; its views are opened once."""
        if number not in self._blocks:
            path, i = self._shards[number]
            try:
                block = self._open_block(path, i)
                self._check_block(block, number)
            except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
                raise StoreError(path, f"cannot be read ({error})", _PREPARE_AGAIN) from None
            self._blocks[number] = block
        return self._blocks[number]

    def _open_block(self, path: Path, i: int) -> Block:
        if path not in self._readers:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema not in (_schema(pa.uint16()), _schema(pa.uint32())):
                raise ValueError("it holds no lists of ids")
            self._readers[path] = reader
        batch = self._readers[path].get_batch(i)
        batch.validate(full=True)
        sentences = batch.column(0)
        return Block(
            *map(_view, (sentences.values.values, sentences.values.offsets, sentences.offsets))
        )

    def _check_block(self, block: Block, number: int) -> None:
        """Refuse what a right hash does not: a store from elsewhere whose numbers do not fit."""
        sentences, documents = block.sentence_starts, block.document_starts
        counts = (len(documents) - 1, len(sentences) - 1, len(block.tokens))
        ends = (documents[0], documents[-1], sentences[0], sentences[-1])
        if counts != tuple(self._sizes[number]) or ends != (0, counts[1], 0, counts[2]):
            raise ValueError("its sizes are not the manifest's")
        if np.diff(sentences).min() < 1 or np.diff(documents).min() < 1:
            raise ValueError("a sentence or a document is empty")
        if block.tokens.max() >= self._vocab_size:
            raise ValueError(f"the id {block.tokens.max()} is not in the vocabulary")

    def gather(
        self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Read token ranges end to end.

        Parameters
        ----------
        starts, lengths : ndarray of int64, shape (n,)
            Each range lies within a block.

        Returns
        -------
        ndarray of int64, shape (sum of lengths,)
        """
        blocks = np.searchsorted(self.block_token_starts, starts, "right") - 1
        first = starts - self.block_token_starts[blocks]
        # A slice a range: what it costs does not depend on how many blocks they lie in.
        ranges = zip(blocks.tolist(), first.tolist(), (first + lengths).tolist(), strict=True)
        pieces = [self.block(block).tokens[start:stop] for block, start, stop in ranges]
        return np.concatenate([np.empty(0, self._sizes.dtype), *pieces], dtype=np.int64)


class Store:
    """A prepared corpus: two splits, the tokenizer and the training split's token counts.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    StoreError
        Not a store, made by another format version, or damaged (every file's hash is checked).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.train, self.held_out = (
            TokenStore(self.folder, self.manifest["splits"][name], self.manifest["vocab_size"])
            for name in ("train", "held_out")
        )
        for name, (size, digest) in _listed_files(self.manifest).items():
            _check_file(self.folder / name, size, digest)

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the tokenizer's identity and every file's hash: equal stores, equal ids."""
        digests = [digest for _, digest in _listed_files(self.manifest).values()]
        parts = [FORMAT, self.manifest["tokenizer_identity"], *digests]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids; refused when it is not the manifest's."""
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        known = (self.manifest["tokenizer_identity"], self.manifest["vocab_size"])
        if (tokenizer.identity, tokenizer.size) != known:
            raise StoreError(
                self.folder / "tokenizer",
                "is not the tokenizer that made this store (its identity differs)",
                "put the right one back, or prepare again",
            )
        return tokenizer

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Occurrences of each id in the training split, shape (V,)."""
        path, num_tokens = self.folder / _COUNTS_FILE, self.train.num_tokens
        try:
            with path.open("rb") as stream:
                counts: npt.NDArray[np.int64] = np.lib.format.read_array(stream, allow_pickle=False)
            if counts.dtype != np.int64 or counts.shape != (self.manifest["vocab_size"],):
                raise ValueError("it is no count for each id")
            if counts.min() < 0 or counts.max() > num_tokens or counts.sum() != num_tokens:
                raise ValueError(f"its counts do not add up to {num_tokens:,}")
        except Exception as error:  # numpy reads the file's header as Python
            raise StoreError(path, f"cannot be read ({error})", _PREPARE_AGAIN) from None
        return counts


def open_whole_store(folder: str | Path) -> Store:
    """Open a store, and its tokenizer too, which a `Store` checks only when it is asked for."""
    store = Store(folder)
    _ = store.tokenizer
    return store


def is_store(folder: str | Path) -> bool:
    """Whether a folder looks like a store."""
    return all(os.path.isfile(Path(folder) / name) for name in ("manifest.json", _COUNTS_FILE))


class StoreWriter:
    """Write a store into an empty folder; `close` writes the manifest last.

    Parameters
    ----------
    folder : Path
    tokenizer : Tokenizer
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        tokenizer.save(folder / "tokenizer")
        self._dtype = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
        self._counts = np.zeros(tokenizer.size, np.int64)
        self._splits = {
            name: _SplitWriter(folder, name, self._dtype) for name in ("train", "held_out")
        }

    def add(self, split: str, documents: EncodedDocuments) -> None:
        """Append documents to ``train`` or ``held_out``."""
        if split == "train":
            self._counts += np.bincount(documents.tokens, minlength=len(self._counts))
        self._splits[split].add(documents)

    def close(self, about: dict[str, Any]) -> tuple[int, int]:
        """Flush everything to disk and write the manifest, with `about` in it.

        Returns
        -------
        tuple of int
            Documents and tokens of the training split.
        """
        splits = {name: writer.close() for name, writer in self._splits.items()}
        np.save(self._folder / _COUNTS_FILE, self._counts)
        manifest = {
            "format": FORMAT,
            "tokenizer_identity": self._tokenizer.identity,
            "vocab_size": self._tokenizer.size,
            "dtype": self._dtype.name,
            **about,
            "splits": splits,
            "token_counts": _describe_file(self._folder / _COUNTS_FILE),
        }
        with (self._folder / "manifest.json").open("w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        return splits["train"]["num_documents"], splits["train"]["num_tokens"]


class _SplitWriter:
    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._folder, self._name = folder, name
        ids = pa.uint16() if dtype == np.uint16 else pa.uint32()
        self._dtype = dtype
        self._schema = _schema(ids)
        self._pending: list[EncodedDocuments] = []
        self._pending_tokens = 0
        self._shards: list[dict[str, Any]] = []
        self._blocks: list[list[int]] = []
        self._stream: pa.OSFile | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, documents: EncodedDocuments) -> None:
        if not len(documents.document_lengths):
            return
        self._pending.append(documents._replace(tokens=documents.tokens.astype(self._dtype)))
        self._pending_tokens += len(documents.tokens)
        if self._pending_tokens >= BLOCK_TOKENS:
            self._write_block()

    def close(self) -> dict[str, Any]:
        self._write_block()
        self._close_shard()
        blocks = [block for shard in self._shards for block in shard["blocks"]]
        totals = np.array(blocks, np.int64).reshape(-1, 3).sum(0).tolist()
        return {
            **dict(zip(("num_documents", "num_sentences", "num_tokens"), totals, strict=True)),
            "shards": self._shards,
        }

    def _write_block(self) -> None:
        if not self._pending:
            return
        tokens, sentence_lengths, document_lengths = (
            np.concatenate(parts) for parts in zip(*self._pending, strict=True)
        )
        self._pending, self._pending_tokens = [], 0
        sentences = pa.ListArray.from_arrays(
            _offsets(document_lengths),
            pa.ListArray.from_arrays(_offsets(sentence_lengths), tokens),
        )
        if self._writer is None:
            path = self._folder / f"{self._name}-{len(self._shards):05d}.arrow"
            self._stream = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._stream, self._schema)
            self._shards.append({"file": path.name})
        self._writer.write_batch(pa.record_batch([sentences], schema=self._schema))
        self._blocks.append([len(document_lengths), len(sentence_lengths), len(tokens)])
        if len(self._blocks) == _SHARD_BLOCKS:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None or self._stream is None:
            return
        self._writer.close()
        self._stream.close()
        self._writer = self._stream = None
        shard = self._shards[-1]
        shard.update(_describe_file(self._folder / shard["file"]), blocks=self._blocks)
        self._blocks = []


def _view(array: pa.Array) -> npt.NDArray[Any]:
    """View an array in place; its own ``to_numpy`` loads pandas first, where that is installed."""
    return np.from_dlpack(array)


def _schema(ids: pa.DataType) -> pa.Schema:
    return pa.schema([("sentences", pa.list_(pa.list_(ids)))])


def _offsets(lengths: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"file": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _listed_files(manifest: dict[str, Any]) -> dict[str, tuple[int, str]]:
    shards: Iterable[dict[str, Any]] = (
        shard for split in manifest["splits"].values() for shard in split["shards"]
    )
    return {f["file"]: (f["num_bytes"], f["sha256"]) for f in [*shards, manifest["token_counts"]]}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise StoreError(folder, "is not a token store (no manifest.json)", "make one with prepare")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version = manifest["format"]
        if version != FORMAT:
            raise StoreError(
                path, f"has format {version!r}, this bertmill reads {FORMAT}", _PREPARE_AGAIN
            )
        return _Manifest.model_validate(manifest).model_dump()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(path, f"is damaged ({first_problem(error)})", _PREPARE_AGAIN) from None


def _check_file(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise StoreError(path, "is missing from the store", _PREPARE_AGAIN)
    if path.stat().st_size != size:
        raise StoreError(path, f"has {path.stat().st_size} bytes instead of {size}", _PREPARE_AGAIN)
    if file_sha256(path) != digest:
        raise StoreError(
            path, "is damaged (its SHA-256 differs from the manifest's)", _PREPARE_AGAIN
        )
