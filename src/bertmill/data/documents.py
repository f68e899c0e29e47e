"""The documents of a corpus, as often as they are read, and how far the reading is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from datetime import timedelta
from typing import Any

from bertmill.config import TextSection
from bertmill.errors import CorpusError
from bertmill.text.corpus import Document, read_documents
from bertmill.text.files import SourceFile

Show = Callable[[str, float | None], None]
"""Takes a line about work that goes on and the share that is done, None where it is not known."""

_SECONDS_BETWEEN = 0.2


class Documents:
    """The documents of files, without those that are held out too.

    Parameters
    ----------
    files : sequence of SourceFile
    text : TextSection
    show : callable
        Is called a few times a second while documents are read.
    withheld : set of int
        Identities of held-out documents.

    Attributes
    ----------
    num_left_out : int
        Documents that were left out when they were last read.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        text: TextSection,
        show: Show,
        withheld: Set[int] = frozenset(),
    ) -> None:
        self.text, self.num_left_out = text, 0
        self._files, self._show, self._withheld = files, show, withheld

    def read(self, stage: str) -> Iterator[Document]:
        """Stream the documents; `stage` says in what is shown what they are read for."""
        self.num_left_out = num_read = bytes_before = 0
        total = sum(file.num_bytes for file in self._files)
        began = shown_at = time.monotonic()
        for file in self._files:
            watched = _Watched(file)
            for document in read_documents([replace(file, open=watched.open)], self.text):
                num_read += 1
                if self._withheld and document.identity in self._withheld:
                    self.num_left_out += 1
                else:
                    yield document
                if (now := time.monotonic()) - shown_at > _SECONDS_BETWEEN:
                    shown_at = now
                    at = bytes_before + watched.position()
                    self._show(*_progress(stage, num_read, at, total, now - began))
            bytes_before += file.num_bytes

    def is_empty(self) -> CorpusError:
        """Make the error of text without a document to train on."""
        fix = "give a corpus with text"
        if self.text.sentences == "spaced-period":
            fix += " whose sentences end with ' . ' (or set text.sentences=sentencex)"
        if self.text.held_out_fraction:
            fix += ", or lower text.held_out_fraction"
        where = ", ".join(file.url for file in self._files[:3]) or "`corpus`"
        return CorpusError(where, "is empty or all held out: no document to train on", fix)


class _Watched:
    """A file that knows how far it has been read, in bytes as they are stored."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._stream = file, None

    def open(self) -> Any:
        self._stream = self._file.open()
        return self._stream

    def position(self) -> int:
        return 0 if self._stream is None or self._stream.closed else int(self._stream.tell())


def _progress(
    stage: str, num_documents: int, at: int, total: int, seconds: float
) -> tuple[str, float | None]:
    documents = f"{num_documents:,} documents"
    if not at:  # a sample, whose files are not ours
        return f"{stage}: {documents}", None
    done = min(at / total, 1.0)
    left = timedelta(seconds=round(seconds / done - seconds))
    return f"{stage}: {at / 1e6:,.0f} of {total / 1e6:,.0f} MB  {left} left  {documents}", done
