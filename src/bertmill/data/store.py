"""The token store: Arrow files of documents, sentences and tokens, read through a memory map.

A store is a folder::

    manifest.json                 counts, hashes, tokenizer identity, and how the text was read
    tokenizer/                    the tokenizer itself
    token-counts.npy              how often each id occurs in the training split
    train-00000.arrow ...         shards: a row a document, a list of sentences, each a list of ids
    held_out-00000.arrow ...
    examples-<digits>.bin ...     made when first used, and again where they are missing: how many
                                  examples each block gives

A record batch of a shard is a *block*: the unit of local reading and shuffling.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from bertmill.arrays import Ints
from bertmill.config import Section, TextSection, TokenizerSection, first_problem
from bertmill.data.blocks import (
    PREPARE_AGAIN,
    Block,
    BlockSource,
    MappedBlocks,
    check_file,
    check_size,
    schema,
)
from bertmill.errors import BertmillError, StoreError
from bertmill.storage import file_sha256, file_that_appears_whole, flush_to_disk, hold
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

FORMAT = 2
BLOCK_TOKENS = 2**22
"""A block is closed once it holds this many tokens: 8 MB in memory, far below int32 offsets."""
LONGEST_DOCUMENT_TOKENS = 2**24
_SHARD_BLOCKS = 8
_MANIFEST_FILE, _COUNTS_FILE = "manifest.json", "token-counts.npy"

_Size = Annotated[int, Field(ge=1, lt=2**31)]
_BlockSizes = Annotated[list[_Size], Field(min_length=3, max_length=3)]


class _File(Section):
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Shard(_File):
    file: Annotated[str, Field(pattern=r"^(train|held_out)-[0-9]+\.arrow$")]
    blocks: Annotated[list[_BlockSizes], Field(min_length=1)]
    """Documents, sentences and tokens of each."""


class _Counts(_File):
    file: Literal["token-counts.npy"]


class _Split(Section):
    num_documents: int
    num_sentences: int
    num_tokens: int
    shards: list[_Shard]


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
    splits: Annotated[dict[Literal["train", "held_out"], _Split], Field(min_length=2)]
    token_counts: _Counts


class EncodedDocuments(NamedTuple):
    """Documents as token ids, end to end."""

    tokens: npt.NDArray[Any]
    sentence_lengths: Ints
    """Tokens in each sentence; none is 0."""
    document_lengths: Ints
    """Sentences in each document; none is 0."""


class TokenStore:
    """One split of a store: blocks of documents, and the tokens at any position.

    A token's position counts from the start of the split, across blocks and shards, in int64.

    Parameters
    ----------
    source : BlockSource
    block_sizes : sequence of three numbers
        Documents, sentences and tokens of each block.
    folder : Path
        Where counts of examples are kept.
    key : str
        Names the split's content: another key, other counts.
    """

    def __init__(
        self, source: BlockSource, block_sizes: Sequence[Sequence[int]], folder: Path, key: str
    ) -> None:
        self._source, self._folder, self._key = source, folder, key
        table = np.array(block_sizes, np.int64).reshape(-1, 3)
        self.block_documents = table[:, 0]
        self.block_token_starts = np.concatenate([[0], np.cumsum(table[:, 2])])
        self.num_documents, self.num_sentences, self.num_tokens = (int(n) for n in table.sum(0))

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the split."""
        return len(self.block_documents)

    def block(self, number: int) -> Block:
        """Open a block.

        Raises
        ------
        StoreError
            It is damaged.
        """
        return self._source.block(number)

    def count_by_block(self, what: str, count: Callable[[int], int]) -> Ints:
        """Count something in each block, once: the counts are kept in a file of the store's folder.

        Where that cannot be written to, every process counts for itself.

        Parameters
        ----------
        what : str
            Names what is counted, with all that the counts depend on.
        count : callable
            Takes the number of a block.

        Returns
        -------
        ndarray of int64, shape (number of blocks,)
        """
        key = f"{self._key} {what}".encode()
        path = self._folder / f"examples-{hashlib.sha256(key).hexdigest()[:16]}.bin"

        def with_hash(data: bytes) -> bytes:
            """Put a hash before the counts: neither damaged ones nor others' are ever taken."""
            return hashlib.sha256(key + data).digest() + data

        with suppress(OSError):
            content = path.read_bytes()
            if content == with_hash(content[32:]):
                return np.frombuffer(content, "<i8", offset=32).astype(np.int64)
        counts = np.array([count(i) for i in range(self.num_blocks)], np.int64)
        with suppress(BertmillError, OSError):
            path.unlink(missing_ok=True)
            with file_that_appears_whole(path, StoreError) as file:
                file.write_bytes(with_hash(counts.astype("<i8").tobytes()))
        return counts

    def gather(self, starts: Ints, lengths: Ints) -> Ints:
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
        return np.concatenate([np.empty(0, np.int64), *pieces], dtype=np.int64)


class Store:
    """A prepared corpus: two splits, the tokenizer and the training split's token counts.

    Opening reads the manifest and no more. Each file must be as long as it says; what is in them is
    checked when it is first used, and all of it by `check`.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    StoreError
        Not a store, made by another format version, or a file is missing or cut off.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest_file = self.folder / _MANIFEST_FILE
        self.manifest = _read_manifest(self.folder)
        self._files = _listed_files(self.manifest)
        for name, listed in self._files.items():
            check_size(self.folder / name, listed)
        self.train, self.held_out = self._open_split("train"), self._open_split("held_out")

    def _open_split(self, name: str) -> TokenStore:
        shards = self.manifest["splits"][name]["shards"]
        blocks = [block for shard in shards for block in shard["blocks"]]
        source = MappedBlocks(self.folder, shards, self.manifest["vocab_size"])
        return TokenStore(source, blocks, self.folder, f"{self.identity} {name}")

    def check(self) -> None:
        """Read all of the store.

        Raises
        ------
        StoreError, TokenizerError
            Something is damaged, or does not belong to this store.
        """
        for split in (self.train, self.held_out):
            for number in range(split.num_blocks):
                split.block(number)
        _ = self.tokenizer, self.token_counts

    def check_changed(self) -> None:
        """Check the tokenizer, and the files that were written to after the store was finished.

        The manifest is the file that is written last. From here on the store is in use: the time is
        noted, and `prune_cache` leaves it alone.
        """
        with suppress(OSError):
            os.utime(self.folder)
        hold(self.manifest_file, self)
        finished = self.manifest_file.stat().st_mtime_ns
        for name, listed in self._files.items():
            if (self.folder / name).stat().st_mtime_ns > finished:
                check_file(self.folder / name, listed)
        _ = self.tokenizer

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the tokenizer's identity and every file's hash: equal stores, equal ids."""
        digests = [listed["sha256"] for listed in self._files.values()]
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
    def token_counts(self) -> Ints:
        """Occurrences of each id in the training split, shape (V,)."""
        path, num_tokens = self.folder / _COUNTS_FILE, self.train.num_tokens
        check_file(path, self._files[_COUNTS_FILE])
        try:
            counts: Ints = np.load(path, allow_pickle=False)
            if counts.dtype != np.int64 or counts.shape != (self.manifest["vocab_size"],):
                raise ValueError("it does not hold one count for each id")
            if counts.min() < 0 or counts.max() > num_tokens or counts.sum() != num_tokens:
                raise ValueError(f"its counts do not add up to {num_tokens:,}")
        except Exception as error:  # numpy reads the file's header as Python
            raise StoreError(path, f"cannot be read ({error})", PREPARE_AGAIN) from None
        return counts


def is_store(folder: str | Path) -> bool:
    """Whether a folder looks like a store."""
    return all(os.path.isfile(Path(folder) / name) for name in (_MANIFEST_FILE, _COUNTS_FILE))


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
        (self._folder / _MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), "utf-8")
        flush_to_disk(self._folder / _MANIFEST_FILE)
        return splits["train"]["num_documents"], splits["train"]["num_tokens"]


class _SplitWriter:
    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._folder, self._name, self._dtype = folder, name, dtype
        self._schema = schema(pa.from_numpy_dtype(dtype))
        self._pending: list[EncodedDocuments] = []
        self._pending_tokens = 0
        self._shards: list[dict[str, Any]] = []
        self._blocks: list[list[int]] = []
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
            self._shard_file = self._folder / f"{self._name}-{len(self._shards):05d}.arrow"
            self._writer = pa.ipc.new_file(str(self._shard_file), self._schema)
        self._writer.write_batch(pa.record_batch([sentences], schema=self._schema))
        self._blocks.append([len(document_lengths), len(sentence_lengths), len(tokens)])
        if len(self._blocks) == _SHARD_BLOCKS:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None  # which closes its file too
            self._shards.append({**_describe_file(self._shard_file), "blocks": self._blocks})
            self._blocks = []


def _offsets(lengths: Ints) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _describe_file(path: Path) -> dict[str, Any]:
    flush_to_disk(path)
    return {"file": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _listed_files(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the size and hash of each file by its name."""
    splits = manifest["splits"]
    shards = [shard for name in ("train", "held_out") for shard in splits[name]["shards"]]
    return {listed["file"]: listed for listed in [*shards, manifest["token_counts"]]}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST_FILE
    if not path.is_file():
        raise StoreError(folder, "is not a token store (no manifest.json)", "make one with prepare")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version = manifest["format"]
        if version != FORMAT:
            raise StoreError(
                path, f"has format {version!r}, this bertmill reads {FORMAT}", PREPARE_AGAIN
            )
        return _Manifest.model_validate(manifest).model_dump()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(path, f"is damaged ({first_problem(error)})", PREPARE_AGAIN) from None
