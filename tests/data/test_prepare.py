import json
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencex

import bertmill.data.encode as encode_module
from bertmill.config import TextSection, TokenizerSection, load_recipe
from bertmill.data.prepare import cache_folder, open_or_prepare, prepare
from bertmill.data.store import Store, TokenStore
from bertmill.errors import BertmillError, CorpusError, StoreError, TokenizerError
from bertmill.text.tokenizer import load_tokenizer
from bertmill.text.vocabulary import train_tokenizer

NOTHING_HELD_OUT = TextSection(held_out_fraction=0.0)
SMALL = TokenizerSection(vocab_size=200)
WORDS = TokenizerSection(kind="word", min_frequency=1)


def write_lines(path: Path, texts) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


def split_texts(split: TokenStore, tokenizer) -> list[str]:
    """The documents of a split, read back through the tokenizer."""
    texts = []
    for number in range(split.num_blocks):
        block = split.block(number)
        bounds = block.sentence_starts[block.document_starts]
        texts += [tokenizer.decode(block.tokens[a:b].tolist()) for a, b in pairwise(bounds)]
    return texts


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"document number {i}" for i in range(first, first + count)]


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory) -> TokenizerSection:
    """A tokenizer that knows every word of `numbered`, so that reading back is exact."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(numbered(600), WORDS).save(folder)
    return TokenizerSection(path=str(folder))


# --- what is in a store --------------------------------------------------------------------------


def test_documents_come_in_order(tmp_path, word_tokenizer):
    corpus = write_lines(tmp_path / "a.jsonl", numbered(50))
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer)
    assert split_texts(store.train, store.tokenizer) == numbered(50)
    assert store.folder == tmp_path / "out"


def test_sentences_and_documents_are_kept_apart(tmp_path):
    texts = ["A crane feeds. A crane waits.\nThe river.", "One sentence."]
    corpus = write_lines(tmp_path / "a.jsonl", texts)
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, WORDS)
    block = store.train.block(0)
    assert block.document_starts.tolist() == [0, 3, 4]
    assert block.sentence_starts.tolist() == [0, 3, 6, 8, 10]


def test_manifest_tells_how_the_text_was_read(tmp_path, corpus_file):
    text = TextSection(held_out_fraction=0.25)
    store = prepare([str(corpus_file)], tmp_path / "out", text, SMALL)
    assert store.manifest["corpus"] == [str(corpus_file)]
    assert store.manifest["text"] == text.model_dump()
    assert store.manifest["tokenizer"] == SMALL.model_dump()


def test_every_stage_is_told(tmp_path, corpus_file):
    lines: list[str] = []
    prepare([str(corpus_file)], tmp_path / "out", NOTHING_HELD_OUT, SMALL, say=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["tokenizer", "store"]


def test_same_corpus_gives_the_same_store(tmp_path, corpus_file):
    stores = [
        prepare([str(corpus_file)], tmp_path / name, TextSection(), SMALL) for name in ("a", "b")
    ]
    assert stores[0].identity == stores[1].identity


# --- worker processes ----------------------------------------------------------------------------


@pytest.fixture
def pools(monkeypatch) -> list[int]:
    """How many processes each pool that was started may have."""
    started = []

    def start(num_workers, *more):
        started.append(num_workers)
        return ProcessPoolExecutor(num_workers, *more)

    monkeypatch.setattr(encode_module, "ProcessPoolExecutor", start)
    return started


@pytest.mark.slow
def test_workers_give_the_same_store(tmp_path, corpus_file, monkeypatch, pools):
    monkeypatch.setattr(encode_module, "_CHUNK_CHARACTERS", 1000)  # many chunks to get in order
    monkeypatch.setattr(encode_module, "_CHUNKS_BEFORE_WORKERS", 3)
    monkeypatch.setattr(encode_module, "_num_cores", lambda: 2)
    text = TextSection(held_out_fraction=0.2)
    one, *others = (
        prepare([str(corpus_file)], tmp_path / str(n), text, SMALL, workers=n) for n in (1, 2, None)
    )
    assert pools == [2, 2]
    for other in others:
        assert one.identity == other.identity
        manifests = [(store.folder / "manifest.json").read_bytes() for store in (one, other)]
        assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_workers_are_started_once_for_both_splits(tmp_path, word_tokenizer, monkeypatch, pools):
    monkeypatch.setattr(encode_module, "_CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(encode_module, "_CHUNKS_BEFORE_WORKERS", 2)
    corpus = write_lines(tmp_path / "a.jsonl", numbered(40))
    held_out = write_lines(tmp_path / "b.jsonl", numbered(40, 40))
    out = tmp_path / "out"
    store = prepare([corpus], out, TextSection(), word_tokenizer, [held_out], workers=2)
    assert pools == [2]
    assert split_texts(store.train, store.tokenizer) == numbered(40)
    assert split_texts(store.held_out, store.tokenizer) == numbered(40, 40)


@pytest.mark.parametrize("workers", [2, None])
def test_short_text_starts_no_process(tmp_path, word_tokenizer, monkeypatch, pools, workers):
    monkeypatch.setattr(encode_module, "_num_cores", lambda: 2)
    monkeypatch.setattr(encode_module, "_CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(encode_module, "_CHUNKS_BEFORE_WORKERS", 8)
    texts = numbered(40)  # 8 chunks, the last one not full
    assert 700 < sum(map(len, texts)) < 800
    corpus = write_lines(tmp_path / "a.jsonl", texts)
    out = tmp_path / "out"
    store = prepare([corpus], out, NOTHING_HELD_OUT, word_tokenizer, workers=workers)
    assert pools == []
    assert split_texts(store.train, store.tokenizer) == texts


@pytest.mark.slow
def test_at_most_eight_processes_by_default(tmp_path, word_tokenizer, monkeypatch, pools):
    monkeypatch.setattr(encode_module, "_num_cores", lambda: 100)
    monkeypatch.setattr(encode_module, "_CHUNKS_BEFORE_WORKERS", 0)
    corpus = write_lines(tmp_path / "a.jsonl", numbered(2))
    prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer, workers=None)
    assert pools == [8]


def test_cores_that_this_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert encode_module._num_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert encode_module._num_cores() == os.cpu_count()


@pytest.mark.slow
def test_failure_with_workers_leaves_nothing(tmp_path, word_tokenizer, monkeypatch, pools):
    monkeypatch.setattr(encode_module, "_CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(encode_module, "_CHUNKS_BEFORE_WORKERS", 2)
    corpus = write_lines(tmp_path / "a.jsonl", [*numbered(40), 5])
    with pytest.raises(CorpusError, match="line 41"):
        prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer, workers=2)
    assert pools == [2]
    assert names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("kind", [CorpusError, StoreError, TokenizerError])
def test_errors_survive_the_way_from_a_worker(kind):
    error = kind("file, line 3", "is broken", "mend it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


# --- the held-out split --------------------------------------------------------------------------


def held_out_of(folder: Path, texts, tokenizer, fraction=0.2) -> tuple[set[str], set[str]]:
    folder.mkdir()
    corpus = write_lines(folder / "a.jsonl", texts)
    store = prepare([corpus], folder / "out", TextSection(held_out_fraction=fraction), tokenizer)
    return tuple(set(split_texts(s, store.tokenizer)) for s in (store.train, store.held_out))


def test_splits_share_nothing_and_lose_nothing(tmp_path, word_tokenizer):
    train, held_out = held_out_of(tmp_path / "a", numbered(500), word_tokenizer)
    assert not train & held_out
    assert train | held_out == set(numbered(500))
    # A share of 0.2 of 500: a hash outside of five standard deviations would be no hash.
    assert abs(len(held_out) - 100) < 5 * np.sqrt(500 * 0.2 * 0.8)


def test_held_out_documents_do_not_move(tmp_path, word_tokenizer):
    texts = numbered(200)
    train, held_out = held_out_of(tmp_path / "a", texts, word_tokenizer)
    assert held_out_of(tmp_path / "b", texts[::-1], word_tokenizer) == (train, held_out)
    more_train, more_held_out = held_out_of(
        tmp_path / "c", numbered(100, 400) + texts, word_tokenizer
    )
    assert train < more_train
    assert held_out < more_held_out


def test_larger_share_holds_out_the_same_and_more(tmp_path, word_tokenizer):
    _, some = held_out_of(tmp_path / "a", numbered(300), word_tokenizer, 0.1)
    _, more = held_out_of(tmp_path / "b", numbered(300), word_tokenizer, 0.3)
    assert some < more


def test_held_out_sources_leave_the_corpus_whole(tmp_path, word_tokenizer):
    corpus = write_lines(tmp_path / "a.jsonl", numbered(100))
    other = write_lines(tmp_path / "b.jsonl", numbered(20, 300))
    text = TextSection(held_out_fraction=0.5)
    store = prepare([corpus], tmp_path / "out", text, word_tokenizer, [other])
    assert split_texts(store.train, store.tokenizer) == numbered(100)
    assert split_texts(store.held_out, store.tokenizer) == numbered(20, 300)


def link_file(path, target):
    path.symlink_to(target)
    return path


def link_folder(path, target):
    path.symlink_to(target.parent)
    return path / target.name


def hard_link(path, target):
    path.hardlink_to(target)
    return path


def copy(path, target):
    return Path(shutil.copy(target, path))


def other_kind(path, target):
    path = path.with_suffix(".txt")
    path.write_text("\n\n".join(numbered(20, 100)), "utf-8")
    return path


@pytest.mark.parametrize("another_name", [link_file, link_folder, hard_link, copy, other_kind])
@pytest.mark.parametrize("given", [True, False])
def test_held_out_text_under_another_name_is_not_trained_on(
    tmp_path, word_tokenizer, another_name, given
):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_lines(folder / "a.jsonl", numbered(100))
    inside = folder / "b.jsonl"
    write_lines(inside, numbered(20, 100))
    outside = another_name(tmp_path / "other.jsonl", inside)
    lines: list[str] = []
    section = word_tokenizer if given else WORDS
    corpus, held_out = str(folder), str(outside)
    store = prepare([corpus], tmp_path / "s", TextSection(), section, [held_out], say=lines.append)
    assert split_texts(store.train, store.tokenizer) == numbered(100)
    assert store.held_out.num_documents == 20
    if not given:
        assert "119" not in store.tokenizer.tokens(range(store.tokenizer.size))
    wanted = another_name not in (link_file, link_folder)  # those are the very file
    said = "held out too, so not trained on: 20 of the documents"
    assert (said in lines) == wanted


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
def test_vocabulary_sees_no_held_out_document(tmp_path, kind):
    # Each document has a letter of its own: a letter in the vocabulary was seen.
    alphabet = [chr(ord("一") + i) for i in range(200)]
    corpus = write_lines(tmp_path / "a.jsonl", alphabet)
    section = TokenizerSection(kind=kind, min_frequency=1)
    store = prepare([corpus], tmp_path / "out", TextSection(held_out_fraction=0.3), section)
    unknown = store.tokenizer.unk_id
    assert store.held_out.num_documents > 20
    assert {int(i) for i in store.held_out.block(0).tokens} == {unknown}
    assert unknown not in store.train.block(0).tokens


def test_counts_are_of_the_training_split(tmp_path, corpus_file):
    store = prepare([str(corpus_file)], tmp_path / "out", TextSection(held_out_fraction=0.3), SMALL)
    tokens = np.concatenate([store.train.block(i).tokens for i in range(store.train.num_blocks)])
    assert store.held_out.num_documents
    assert (store.token_counts == np.bincount(tokens, minlength=store.tokenizer.size)).all()


def test_wordpiece_is_trained_on_a_bounded_sample(tmp_path):
    corpus = write_lines(tmp_path / "a.jsonl", ["abc abc abc"] * 50 + ["xyz xyz"] * 50)
    lines: list[str] = []
    section = TokenizerSection(vocab_size=200, max_training_bytes=300)
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, section, say=lines.append)
    tokens = store.tokenizer.tokens(range(store.tokenizer.size))
    assert "abc" in tokens and "x" not in tokens
    assert "first" in lines[0]


def test_words_are_counted_over_the_whole_corpus(tmp_path):
    corpus = write_lines(tmp_path / "a.jsonl", ["abc abc abc"] * 50 + ["xyz xyz"] * 50)
    section = TokenizerSection(kind="word", max_training_bytes=300)
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, section)
    assert "xyz" in store.tokenizer.tokens(range(store.tokenizer.size))


# --- documents that a library fails on -----------------------------------------------------------


class PanicException(BaseException):
    """What a library in Rust raises when it gives up: not an `Exception`."""


@pytest.fixture
def panicking(monkeypatch):
    """A segmenter that panics at some numbers."""
    segment = sentencex.segment

    def panic(language, text):
        if text.endswith(("7", "31")):
            raise PanicException("byte index 7 is not a char boundary")
        return segment(language, text)

    monkeypatch.setattr(sentencex, "segment", panic)


LEFT = [text for text in numbered(40) if not text.endswith(("7", "31"))]


@pytest.mark.parametrize("given", [True, False])
def test_a_document_that_a_library_panics_on_is_left_out_and_named(
    tmp_path, word_tokenizer, panicking, given
):
    corpus = write_lines(tmp_path / "a.jsonl", numbered(40))
    lines: list[str] = []
    section = word_tokenizer if given else WORDS
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, section, say=lines.append)
    assert split_texts(store.train, store.tokenizer) == LEFT
    named = [line for line in lines if line.startswith("left out")]
    assert len(named) == 40 - len(LEFT) == 5
    assert named[0] == (
        f"left out {corpus}, document 7: cannot be split into sentences "
        "(byte index 7 is not a char boundary)"
    )


def test_a_document_that_a_library_panics_on_is_refused_where_the_recipe_says_so(
    tmp_path, word_tokenizer, panicking
):
    corpus = write_lines(tmp_path / "a.jsonl", numbered(40))
    text = TextSection(held_out_fraction=0.0, failures="refuse")
    with pytest.raises(CorpusError, match=r"a\.jsonl, document 7: cannot be split into sentences"):
        prepare([corpus], tmp_path / "out", text, word_tokenizer)
    assert names(tmp_path) == ["a.jsonl"]


def test_an_interrupt_is_not_a_failure_of_a_library(tmp_path, word_tokenizer, monkeypatch):
    def interrupt(language, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(sentencex, "segment", interrupt)
    corpus = write_lines(tmp_path / "a.jsonl", numbered(4))
    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_existing_out_is_refused(tmp_path, corpus_file, make):
    make(tmp_path / "out")
    with pytest.raises(StoreError, match="already exists"):
        prepare([str(corpus_file)], tmp_path / "out", TextSection(), SMALL)


def test_out_below_a_file_is_refused(tmp_path, corpus_file):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        prepare([str(corpus_file)], tmp_path / "file" / "out", TextSection(), SMALL)


@pytest.mark.parametrize("trained", [True, False])
def test_failing_corpus_leaves_nothing(tmp_path, word_tokenizer, trained):
    good = write_lines(tmp_path / "a.jsonl", numbered(50))
    (tmp_path / "b.txt").write_bytes(b"\n\n".join(t.encode() for t in numbered(50)) + b" \xff")
    section = WORDS if trained else word_tokenizer
    with pytest.raises(CorpusError, match=r"b\.txt.*byte"):
        prepare([good, str(tmp_path / "b.txt")], tmp_path / "out", NOTHING_HELD_OUT, section)
    assert names(tmp_path) == ["a.jsonl", "b.txt"]


def test_missing_held_out_source_leaves_nothing(tmp_path, corpus_file):
    with pytest.raises(CorpusError, match="none"):
        prepare(
            [str(corpus_file)], tmp_path / "out", TextSection(), SMALL, [str(tmp_path / "none")]
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("data", ["", " \n\n\t\n", "\ufeff"])
def test_empty_corpus_is_refused(tmp_path, word_tokenizer, data, given):
    (tmp_path / "a.txt").write_text(data, "utf-8")
    section = word_tokenizer if given else SMALL
    with pytest.raises(CorpusError, match=r"a\.txt.*empty"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "out", TextSection(), section)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("given", [True, False])
def test_corpus_that_is_all_held_out_is_refused(tmp_path, word_tokenizer, given):
    _, held_out = held_out_of(tmp_path / "a", numbered(50), word_tokenizer)
    corpus = write_lines(tmp_path / "b.jsonl", sorted(held_out))
    section = word_tokenizer if given else WORDS
    with pytest.raises(CorpusError, match=r"b\.jsonl.*no document to train on"):
        prepare([corpus], tmp_path / "out", TextSection(held_out_fraction=0.2), section)
    assert names(tmp_path) == ["a", "b.jsonl"]


@pytest.mark.parametrize("given", [True, False])
def test_control_characters_alone_are_an_empty_corpus(tmp_path, corpus_file, given):
    section = SMALL
    if given:
        prepare([str(corpus_file)], tmp_path / "first", TextSection(), SMALL)
        section = TokenizerSection(path=str(tmp_path / "first" / "tokenizer"))
    corpus = write_lines(tmp_path / "a.jsonl", ["\x01\x02", "\x00"])
    with pytest.raises(BertmillError, match=r"empty|no words"):
        prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, section)
    assert not (tmp_path / "out").exists()


def test_document_of_control_characters_is_dropped(tmp_path):
    texts = ["\x01\x02", "A crane. \x01\n\x02\nA river.", "\x00"]
    corpus = write_lines(tmp_path / "a.jsonl", texts)
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, SMALL)
    block = store.train.block(0)
    assert store.train.num_documents == 1
    assert (np.diff(block.sentence_starts) > 0).all()
    assert store.tokenizer.decode(block.tokens.tolist()) == "a crane . a river ."


def test_too_long_document_is_named(tmp_path, word_tokenizer, monkeypatch):
    monkeypatch.setattr(encode_module, "LONGEST_DOCUMENT_TOKENS", 6)
    corpus = write_lines(tmp_path / "a.jsonl", [*numbered(2), "document number 1 " * 3])
    with pytest.raises(CorpusError, match=r"a\.jsonl, document 2: has 9 tokens, more than 6"):
        prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer)
    assert names(tmp_path) == ["a.jsonl"]


def test_longest_document_is_allowed(tmp_path, word_tokenizer, monkeypatch):
    monkeypatch.setattr(encode_module, "LONGEST_DOCUMENT_TOKENS", 3)
    corpus = write_lines(tmp_path / "a.jsonl", numbered(2))
    store = prepare([corpus], tmp_path / "out", NOTHING_HELD_OUT, word_tokenizer)
    assert store.train.num_documents == 2


# --- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path) -> str:
    return write_lines(tmp_path / "corpus.jsonl", numbered(50))


def test_second_time_reuses_the_store(cache, corpus):
    first = open_or_prepare([corpus], TextSection(), WORDS)
    changed = (first.folder / "manifest.json").stat().st_mtime_ns
    lines: list[str] = []
    second = open_or_prepare([corpus], TextSection(), WORDS, say=lines.append)
    assert second.folder == first.folder
    assert cache in first.folder.parents
    assert (second.folder / "manifest.json").stat().st_mtime_ns == changed
    assert len(lines) == 1 and str(first.folder) in lines[0]


def test_changed_file_makes_another_store(cache, corpus):
    first = open_or_prepare([corpus], NOTHING_HELD_OUT, WORDS)
    write_lines(Path(corpus), numbered(60))
    second = open_or_prepare([corpus], NOTHING_HELD_OUT, WORDS)
    assert second.folder != first.folder
    assert second.train.num_documents == 60


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        (TextSection(held_out_fraction=0.3), WORDS),
        (TextSection(sentences="sentencex", language="de"), WORDS),
        (TextSection(), WORDS.model_copy(update={"lowercase": False})),
        (TextSection(), SMALL),
    ],
)
def test_other_settings_make_another_store(cache, corpus, text, tokenizer):
    first = open_or_prepare([corpus], TextSection(), WORDS)
    assert open_or_prepare([corpus], text, tokenizer).folder != first.folder


def test_held_out_source_makes_another_store(cache, corpus, tmp_path):
    other = write_lines(tmp_path / "other.jsonl", numbered(10, 100))
    first = open_or_prepare([corpus], TextSection(), WORDS)
    second = open_or_prepare([corpus], TextSection(), WORDS, [other])
    assert second.folder != first.folder
    assert second.held_out.num_documents == 10


def test_another_tokenizer_in_the_same_place_makes_another_store(cache, corpus, tmp_path):
    section = TokenizerSection(path=str(tmp_path / "words"))
    train_tokenizer(numbered(50), WORDS).save(tmp_path / "words")
    first = open_or_prepare([corpus], TextSection(), section)
    train_tokenizer(numbered(10), WORDS).save(tmp_path / "words")
    second = open_or_prepare([corpus], TextSection(), section)
    assert second.folder != first.folder
    assert second.tokenizer.identity == load_tokenizer(tmp_path / "words").identity


def damage_shard(folder: Path) -> None:
    path = folder / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-5])


def delete_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def swap_tokenizer(folder: Path) -> None:
    train_tokenizer(["something else"] * 3, WORDS).save(folder / "tokenizer")


def delete_tokenizer(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage", [damage_shard, delete_manifest, swap_tokenizer, delete_tokenizer]
)
def test_damaged_cached_store_is_prepared_again(cache, corpus, damage):
    first = open_or_prepare([corpus], TextSection(), WORDS)
    identity = first.identity
    damage(first.folder)
    lines: list[str] = []
    again = open_or_prepare([corpus], TextSection(), WORDS, say=lines.append)
    assert (again.folder, again.identity) == (first.folder, identity)
    assert again.tokenizer.identity == again.manifest["tokenizer_identity"]
    assert "preparing it again" in lines[0]


def test_failure_leaves_the_cache_empty(cache, tmp_path, word_tokenizer):
    bad = write_lines(tmp_path / "bad.jsonl", [*numbered(5), 5])
    with pytest.raises(CorpusError):
        open_or_prepare([bad], TextSection(), word_tokenizer)
    assert list((cache / "stores").iterdir()) == []


def test_cache_can_be_moved(cache, monkeypatch, tmp_path):
    assert cache_folder() == cache
    monkeypatch.delenv("BERTMILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bertmill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "bertmill"


# --- the reference's corpus ----------------------------------------------------------------------


@pytest.mark.slow
def test_wikitext_2_as_the_reference_reads_it(tmp_path, shared_data):
    recipe = load_recipe("d2l")
    train, valid = (
        str(shared_data / "wikitext-2" / f"wiki.{name}.tokens.gz") for name in ("train", "valid")
    )
    store = prepare([train], tmp_path / "out", recipe.text, recipe.tokenizer, [valid])
    assert store.train.num_documents == 15_496
    assert store.tokenizer.size == 20_256
    assert Store(tmp_path / "out").identity == store.identity


def test_held_out_text_inside_the_corpus_is_not_trained_on(tmp_path):
    for name, text in (("a", "one. two."), ("b", "three. four."), ("valid", "five. six.")):
        (tmp_path / f"{name}.txt").write_text(text)
    section = TokenizerSection(kind="word", min_frequency=1)
    store = prepare(
        [str(tmp_path)], tmp_path / "store", TextSection(), section, [str(tmp_path / "valid.txt")]
    )
    assert (store.train.num_documents, store.held_out.num_documents) == (2, 1)
    assert "five" not in store.tokenizer.backend.get_vocab()
