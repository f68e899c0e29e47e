"""Documents to token ids, in order: in this process, then in others where the text is long."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from bertmill.arrays import Bools
from bertmill.config import TextSection
from bertmill.data.store import LONGEST_DOCUMENT_TOKENS, EncodedDocuments
from bertmill.errors import CorpusError, StoreError
from bertmill.text.corpus import Document
from bertmill.text.sentences import split_sentences
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

_CHUNK_CHARACTERS = 1_000_000

# Chunks that this process encodes before others are started. Two processes save the time that
# starting them takes from about 25 chunks on (two cores). With this many before, 20 MB start none;
# 60 MB take 7 s (7.6 in one process, 5.3 with two from the start), 200 MB 16 (27 and 15).
_CHUNKS_BEFORE_WORKERS = 24

# This process reads and writes, about a ninth of the work; more than 8 workers would wait for it.
_MOST_WORKERS = 8


_Encoded = tuple[EncodedDocuments, EncodedDocuments] | str
"""Documents of the training and of the held-out split; or what to say of one that was left out."""


def is_held_out(document: Document, text: TextSection) -> bool:
    """Whether a document belongs to the held-out split, which its text alone decides."""
    return document.identity < text.held_out_fraction * 2**64


def _encode_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, text: TextSection
) -> list[_Encoded]:
    """Encode documents and deal them out to the training and the held-out split."""
    try:
        sentences = [split_sentences(document.text, text) for document in documents]
        tokens, lengths = tokenizer.encode_batch([s for parts in sentences for s in parts])
    except CorpusError as error:
        if len(documents) > 1:  # which of them?
            return [
                part for each in documents for part in _encode_documents([each], tokenizer, text)
            ]
        place = documents[0].place
        if text.failures == "refuse":
            raise CorpusError(place, error.what, "set text.failures=skip to leave it out") from None
        return [f"left out {place}: {error.what}"]
    owner = np.repeat(np.arange(len(documents)), [len(parts) for parts in sentences])
    held_out = np.array([is_held_out(document, text) for document in documents], bool)
    sizes = np.bincount(owner, lengths, len(documents)).tolist()
    for document, size in zip(documents, sizes, strict=True):
        if size > LONGEST_DOCUMENT_TOKENS:
            raise CorpusError(
                document.place,
                f"has {int(size):,} tokens, more than {LONGEST_DOCUMENT_TOKENS:,}",
                "separate its parts with blank lines, or set text.document=line",
            )

    # A sentence of control characters alone has no tokens, a document of such has no sentences.
    def select(wanted: Bools) -> EncodedDocuments:
        kept = (lengths > 0) & wanted[owner]
        _, per_document = np.unique(owner[kept], return_counts=True)
        return EncodedDocuments(tokens[np.repeat(kept, lengths)], lengths[kept], per_document)

    return [(select(~held_out), select(held_out))]


# What a worker process encodes with; set once when it starts.
_worker_state: tuple[Tokenizer, TextSection] | None = None


def _start_worker(tokenizer_folder: str, text: TextSection) -> None:
    global _worker_state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_state = (load_tokenizer(tokenizer_folder), text)


def _end_with_parent() -> None:
    """Exit when the parent dies; workers of a pool would otherwise wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(documents: Sequence[Document]) -> list[_Encoded]:
    assert _worker_state is not None
    return _encode_documents(documents, *_worker_state)


class DocumentPool(ExitStack):
    """Encode streams of documents in order: in this process, then in others where there are many.

    A context manager: the processes end with it.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : TextSection
    workers : int or None
        Processes at most; None: as many as there are cores, up to 8.
    """

    def __init__(self, tokenizer: Tokenizer, text: TextSection, workers: int | None) -> None:
        super().__init__()
        self._tokenizer, self._text = tokenizer, text
        self._num_workers = min(_num_cores(), _MOST_WORKERS) if workers is None else workers
        self._chunks_encoded_here = 0
        self._processes: Executor | None = None

    def encode(self, documents: Iterable[Document]) -> Iterator[_Encoded]:
        """Encode some documents at a time."""
        chunks = _chunks(documents)
        for chunk in chunks:
            if self._num_workers > 1 and self._chunks_encoded_here >= _CHUNKS_BEFORE_WORKERS:
                yield from self._encode_in_processes(chain([chunk], chunks))
                return
            self._chunks_encoded_here += 1
            yield from _encode_documents(chunk, self._tokenizer, self._text)

    def _encode_in_processes(self, chunks: Iterable[list[Document]]) -> Iterator[_Encoded]:
        """Encode in order, with a bounded number of chunks in memory."""
        if self._processes is None:
            self._processes = self._start_processes()
        waiting: deque[Future[list[_Encoded]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._processes.submit(_encode_in_worker, chunk))
                if len(waiting) >= 2 * self._num_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise StoreError(
                "prepare",
                "a worker process died: out of memory, or a script without a __main__ guard",
                "use fewer workers",
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _start_processes(self) -> Executor:
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self._tokenizer.save(Path(folder))
        return self.enter_context(
            ProcessPoolExecutor(
                self._num_workers, get_context("spawn"), _start_worker, (folder, self._text)
            )
        )


def _num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
