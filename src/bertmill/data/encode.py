"""Documents to token ids, in order: in this process, then in others where the text is long."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import chain, repeat
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from bertmill.config import TextSection
from bertmill.data.store import LONGEST_DOCUMENT_TOKENS, EncodedDocuments
from bertmill.errors import CorpusError, StoreError
from bertmill.text.corpus import Document
from bertmill.text.sentences import split_sentences
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

_CHUNK_CHARACTERS = 1_000_000

# Chunks that this process encodes before others are started. Two save what starting them takes
# from some 25 chunks on (two cores). With this many before, 20 MB start none; 60 MB take 7 s (7.6
# in one process, 5.3 with two from the start), 200 MB 16 (27 and 15).
_CHUNKS_BEFORE_WORKERS = 24

# Reading and writing stay in this process: a ninth of the work, so that more would wait for it.
_MOST_WORKERS = 8


def is_held_out(document: Document, text: TextSection) -> bool:
    """Whether a document belongs to the held-out split, which its text alone decides."""
    return document.identity < text.held_out_fraction * 2**64


def _encode_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, text: TextSection
) -> tuple[EncodedDocuments, EncodedDocuments]:
    """Encode documents and deal them out to the training and the held-out split."""
    sentences = [split_sentences(document.text, text) for document in documents]
    tokens, lengths = tokenizer.encode_batch([s for parts in sentences for s in parts])
    owner = np.repeat(np.arange(len(documents)), [len(parts) for parts in sentences])
    held_out = np.array([is_held_out(document, text) for document in documents], bool)
    for document, size in zip(
        documents, np.bincount(owner, lengths, len(documents)).tolist(), strict=True
    ):
        if size > LONGEST_DOCUMENT_TOKENS:
            raise CorpusError(
                f"{document.source}, document {document.ordinal}",
                f"has {int(size):,} tokens, more than {LONGEST_DOCUMENT_TOKENS:,}",
                "separate its parts with blank lines, or set text.document=line",
            )
    # A sentence of control characters alone has no tokens, a document of such has no sentences.
    return (
        _select(tokens, lengths, owner, ~held_out),
        _select(tokens, lengths, owner, held_out),
    )


def _select(
    tokens: np.ndarray[tuple[int], np.dtype[np.int64]],
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]],
    owner: np.ndarray[tuple[int], np.dtype[np.int64]],
    wanted: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> EncodedDocuments:
    kept = (lengths > 0) & wanted[owner]
    per_document = np.bincount(owner[kept], minlength=len(wanted))
    return EncodedDocuments(
        tokens[np.repeat(kept, lengths)], lengths[kept], per_document[per_document > 0]
    )


_Chunks = Iterator[tuple[EncodedDocuments, EncodedDocuments]]

# What a worker process encodes with; set once when it starts.
_worker_state: tuple[Tokenizer, TextSection] | None = None


def _start_worker(tokenizer_folder: str, text: TextSection) -> None:
    global _worker_state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_state = (load_tokenizer(tokenizer_folder), text)


def _end_with_parent() -> None:
    """End this process with the one that started it: the pool's own wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(
    documents: Sequence[Document],
) -> tuple[EncodedDocuments, EncodedDocuments]:
    assert _worker_state is not None
    return _encode_documents(documents, *_worker_state)


@contextmanager
def encoder(
    tokenizer: Tokenizer, text: TextSection, workers: int | None
) -> Iterator[Callable[[Iterable[Document]], _Chunks]]:
    """Give a function that encodes a stream of documents in order: here, then in processes.

    It yields, for a chunk of documents at a time, those of the training and of the held-out split.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : TextSection
    workers : int or None
        Processes at most; None: as many as there are cores, up to 8.
    """
    num_workers = min(_num_cores(), _MOST_WORKERS) if workers is None else workers
    # Taken one by one, over all streams.
    here = repeat(None) if num_workers <= 1 else iter([None] * _CHUNKS_BEFORE_WORKERS)
    with ExitStack() as entered:

        @cache
        def pool() -> Executor:
            return entered.enter_context(_worker_pool(tokenizer, text, num_workers))

        def encode(documents: Iterable[Document]) -> _Chunks:
            chunks = _chunks(documents)
            for _, chunk in zip(here, chunks, strict=False):
                yield _encode_documents(chunk, tokenizer, text)
            if (first := next(chunks, None)) is not None:
                yield from _map_in_order(pool(), chain([first], chunks), 2 * num_workers)

        yield encode


@contextmanager
def _worker_pool(tokenizer: Tokenizer, text: TextSection, num_workers: int) -> Iterator[Executor]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        with ProcessPoolExecutor(
            num_workers, get_context("spawn"), _start_worker, (folder, text)
        ) as pool:
            yield pool


def _num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _map_in_order(pool: Executor, chunks: Iterable[list[Document]], in_flight: int) -> _Chunks:
    """Map with results in order and a bounded number of chunks in memory."""
    waiting: deque[Future[tuple[EncodedDocuments, EncodedDocuments]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_encode_in_worker, chunk))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise StoreError(
            "prepare",
            "a worker process died: out of memory, or a script without a __main__ guard",
            "use fewer workers",
        ) from None
    finally:
        for future in waiting:
            future.cancel()


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
