"""Text to store: train or open the tokenizer, encode every document, write the shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path

from bertmill.config import TextSection, TokenizerSection
from bertmill.data.documents import Documents, Show
from bertmill.data.encode import DocumentPool, is_held_out
from bertmill.data.store import FORMAT, Store, StoreWriter, is_store
from bertmill.errors import BertmillError, CorpusError, StoreError, TokenizerError
from bertmill.storage import file_lock, folder_that_appears_whole
from bertmill.text.files import SourceFile, find_files, fingerprint
from bertmill.text.sentences import split_sentences
from bertmill.text.tokenizer import Tokenizer, load_tokenizer
from bertmill.text.vocabulary import train_tokenizer

_READING_RULE = 2
"""How text is read, apart from the recipe; another one makes another store of the same text."""


def prepare(
    corpus: Sequence[str],
    out: str | Path,
    text: TextSection,
    tokenizer: TokenizerSection,
    held_out: Sequence[str] = (),
    workers: int | None = 1,
    say: Callable[[str], None] = lambda line: None,
    show: Show = lambda line, done: None,
) -> Store:
    """Make a token store of a corpus; it is whole when its folder appears.

    Parameters
    ----------
    corpus : sequence of str
        Files, folders, globs, URLs or ``sample:sotu``.
    out : str or Path
        The store's folder, which must not exist yet.
    text, tokenizer : TextSection, TokenizerSection
        The recipe's sections.
    held_out : sequence of str
        Sources that training never sees; empty: a share of the corpus is held out.
    workers : int, optional
        Processes that encode, at most; None: as many as there are cores, up to 8. They are started
        once the text is long enough for them to pay. 1: this process alone, whatever the text,
        because a script with more needs ``if __name__ == "__main__":`` around its work.
    say : callable
        Takes a line about each stage.
    show : callable
        Takes a line about work that goes on, a few times a second, and the share that is done.

    Returns
    -------
    Store

    Raises
    ------
    CorpusError, TokenizerError, StoreError
    """
    out = Path(out)
    if os.path.exists(out):
        raise StoreError(out, "already exists", "choose another `out`, or delete it first")
    text = resolve_text(text, held_out)
    files, withheld = _find_both(corpus, held_out)
    held_out_text = Documents(withheld, text, show)
    identities = {document.identity for document in held_out_text.read("held-out text")}
    training = Documents(files, text, show, identities)
    with folder_that_appears_whole(out, StoreError) as folder:
        made = make_tokenizer(training, tokenizer, say, show)
        writer = StoreWriter(folder, made)
        with DocumentPool(made, text, workers) as pool:
            for name, documents in (("train", training), ("held_out", held_out_text)):
                for encoded in pool.encode(documents.read("encoding")):
                    if isinstance(encoded, str):
                        say(encoded)
                    else:
                        writer.add(name, encoded[0])
                        writer.add("held_out", encoded[1])
        num_documents, num_tokens = writer.close(
            {
                "corpus": [str(source) for source in corpus],
                "held_out": [str(source) for source in held_out],
                "text": text.model_dump(),
                "tokenizer": tokenizer.model_dump(),
            }
        )
        if training.num_left_out:
            say(f"held out too, so not trained on: {training.num_left_out:,} of the documents")
        if not num_documents:
            raise training.is_empty()
    say(f"store: {num_documents:,} documents, {num_tokens:,} tokens in {out}")
    return Store(out)


def open_or_prepare(
    corpus: Sequence[str],
    text: TextSection,
    tokenizer: TokenizerSection,
    held_out: Sequence[str] = (),
    workers: int | None = 1,
    say: Callable[[str], None] = lambda line: None,
    show: Show = lambda line, done: None,
) -> Store:
    """Open the store of this corpus and these settings from the cache, or prepare it there.

    The cache is ``$BERTMILL_CACHE``, else ``bertmill`` in the user's cache folder. A corpus file
    that changed, another setting, another tokenizer, or another version of the libraries that cut
    and encode, make another store.
    """
    text = resolve_text(text, held_out)
    states = [fingerprint(found) for found in _find_both(corpus, held_out)]
    # A tokenizer that is given is known by what it does, wherever it lies.
    vocabulary = (
        load_tokenizer(tokenizer.path, tokenizer).identity
        if tokenizer.path
        else tokenizer.model_dump()
    )
    libraries = {name: metadata.version(name) for name in ("sentencex", "tokenizers")}
    parts = [FORMAT, _READING_RULE, states, text.model_dump(), vocabulary, libraries]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    folder = cache_folder() / "stores" / name
    lock = cache_folder() / "locks" / name
    if folder.exists():
        with suppress(BertmillError):  # damaged: said once the lock is held
            return _open_cached(folder, say)

    def wait() -> None:
        say("another process is preparing this corpus; waiting for its store")

    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(lock, wait))
        except OSError as error:
            raise StoreError(
                lock,
                f"cannot be written ({error.strerror})",
                "set BERTMILL_CACHE to a folder that can be written to",
            ) from None
        if folder.exists():
            try:
                return _open_cached(folder, say)
            except BertmillError as error:
                say(f"{error}; preparing it again")
                shutil.rmtree(folder)
        store = prepare(corpus, folder, text, tokenizer, held_out, workers, say, show)
        store.check_changed()
        return store


def _open_cached(folder: Path, say: Callable[[str], None]) -> Store:
    store = Store(folder)
    store.check_changed()
    say(f"store: {store.train.num_documents:,} documents from {folder}")
    return store


def _find_both(
    corpus: Sequence[str], held_out: Sequence[str]
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Find the files of both splits; a held-out file is not trained on, whatever its name."""
    for source in (*corpus, *held_out):
        if is_store(source):
            raise StoreError(
                source, "is a prepared store, not text", "pass it alone as `corpus` of pretrain"
            )
    withheld = find_files(held_out)
    names = {os.path.realpath(file.url) for file in withheld}
    return [f for f in find_files(corpus) if os.path.realpath(f.url) not in names], withheld


def cache_folder() -> Path:
    """Return the folder that prepared stores are kept in."""
    if moved := os.environ.get("BERTMILL_CACHE"):
        return Path(moved)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertmill"
    except RuntimeError:
        raise StoreError(
            "cache", "this user has no home folder", "set BERTMILL_CACHE to a folder"
        ) from None


def resolve_text(text: TextSection, held_out: Sequence[str]) -> TextSection:
    """Hold nothing of the corpus out when held-out text is given."""
    return text.model_copy(update={"held_out_fraction": 0.0}) if held_out else text


def make_tokenizer(
    training: Documents,
    section: TokenizerSection,
    say: Callable[[str], None],
    show: Show,
) -> Tokenizer:
    """Open the recipe's tokenizer, or train it on the training documents."""
    if section.path:
        return load_tokenizer(section.path, section)
    num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_bytes
        for document in training.read("tokenizer"):
            if is_held_out(document, training.text):
                continue
            # Word counts need every document; WordPiece is content with a sample, and says so.
            if section.kind == "wordpiece" and num_bytes >= section.max_training_bytes:
                say(f"tokenizer: trained on the first {num_bytes:,} bytes of the corpus")
                break
            try:
                sentences = "\n".join(split_sentences(document.text, training.text))
            except CorpusError:  # named when it is encoded
                continue
            num_bytes += len(sentences.encode())
            yield sentences
        show("tokenizer: making the vocabulary", 1.0)

    try:
        made = train_tokenizer(texts(), section)
    except TokenizerError:
        if num_bytes:
            raise
        raise training.is_empty() from None
    say(f"tokenizer: {made.size:,} entries from {num_bytes:,} bytes")
    return made
