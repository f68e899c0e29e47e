import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmill.config import MaskingSection, PairsSection, TokenizerSection
from bertmill.data import batch as batch_module
from bertmill.data.batch import Batches
from bertmill.data.order import EpochOrder, Located
from bertmill.data.pairs import (
    _DOCUMENT,
    _IS_NEXT,
    _IS_SHORT,
    _KEPT_A,
    _KEPT_B,
    _SENTENCE,
    _SPLIT,
    _TARGET,
    PairMaker,
    Pairs,
    _truncate,
)
from bertmill.data.randomness import below, make_key, random_bits, uniform
from bertmill.data.store import EncodedDocuments, Store, StoreWriter
from bertmill.errors import CorpusError
from bertmill.text.vocabulary import train_tokenizer

TOKENIZER = train_tokenizer(
    [" ".join(f"w{i}" for i in range(50))], TokenizerSection(kind="word", min_frequency=1)
)
# A document is a list of sentence lengths.
CORPORA = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=2, max_size=15)


def make_store(folder, corpus, monkeypatch=None, block_tokens=None):
    if block_tokens:
        monkeypatch.setattr("bertmill.data.store.BLOCK_TOKENS", block_tokens)
    writer = StoreWriter(folder, TOKENIZER)
    for document in corpus:
        tokens = np.random.default_rng(sum(document)).integers(5, TOKENIZER.size, sum(document))
        writer.add("train", EncodedDocuments(tokens, np.array(document), np.array([len(document)])))
    writer.close({"text": {}, "tokenizer": {}})
    return Store(folder).train


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 25, rng.integers(2, 30)).tolist() for _ in range(120)]


def draw_epoch(store, section, epoch=0, seed=1) -> Pairs:
    batches = Batches(store, TOKENIZER, section, MaskingSection(), 1, seed, "text")
    n = batches.num_examples
    return batches.pairs_at(np.arange(epoch * n, (epoch + 1) * n))[0]


def layout(corpus):
    """Sentence ranges of each document, in token positions."""
    out, at = [], 0
    for document in corpus:
        ranges = []
        for length in document:
            ranges.append((at, at + length))
            at += length
        out.append(ranges)
    return out


def document_of(corpus, position):
    ends = np.cumsum([sum(document) for document in corpus])
    return int(np.searchsorted(ends, position, "right"))


# --- sentences -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(CORPORA)
def test_sentence_pairs_follow_the_rule(tmp_path_factory, corpus):
    section = PairsSection(kind="sentences", max_length=32)
    fitting = [
        (a, b)
        for ranges in layout(corpus)
        for a, b in itertools.pairwise(ranges)
        if b[1] - a[0] + 3 <= 32
    ]
    store = make_store(tmp_path_factory.mktemp("store"), corpus)
    if not fitting:
        with pytest.raises(CorpusError):
            draw_epoch(store, section)
        return
    pairs = draw_epoch(store, section)
    starts = {s: (s, e) for ranges in layout(corpus) for s, e in ranges}
    assert sorted(pairs.a_starts.tolist()) == sorted(a[0] for a, _ in fitting)
    following = dict(fitting)
    for a0, a1, b0, b1, is_next in zip(*map(np.ndarray.tolist, pairs), strict=True):
        assert (a0, a1) == starts[a0]
        assert a1 - a0 + b1 - b0 + 3 <= 32
        if is_next:
            assert (b0, b1) == following[a0, a1]
        else:
            assert document_of(corpus, a0) != document_of(corpus, b0)
            assert b0 in starts and b1 <= starts[b0][1]


def test_half_of_the_sentence_pairs_are_next(tmp_path, corpus):
    store = make_store(tmp_path, corpus)
    section = PairsSection(kind="sentences", max_length=64)
    share = np.concatenate([draw_epoch(store, section, e).is_next for e in range(5)]).mean()
    assert abs(share - 0.5) < 0.02


def test_random_seconds_come_from_all_other_documents_alike(tmp_path):
    corpus = [[5, 5], [5] * 40, *[[5]] * 8]  # by documents, not by sentences
    store = make_store(tmp_path, corpus)
    section = PairsSection(kind="sentences", next_fraction=0.0)
    drawn = [
        document_of(corpus, b)
        for e in range(100)
        for b in draw_epoch(store, section, e).b_starts.tolist()
    ]
    counts = np.bincount(drawn, minlength=10)
    # 39 examples an epoch are the big document's own, and one is the first's: its 100 draws hit
    # the big one no more often than any other document, once in 9, though it has most sentences.
    assert counts[1] < 25
    assert abs(counts[2:] / counts[2:].mean() - 1).max() < 0.2


# --- segments: a slow oracle of our own rule ------------------------------------------------------


def slow_pieces(document, room):
    """A document's sentences; those that are longer than the room in pieces of half of it."""
    pieces = []
    for start, stop in document:
        count = math.ceil((stop - start) / ((room + 1) // 2)) if stop - start > room else 1
        edges = [start + (stop - start) * i // count for i in range(count + 1)]
        pieces += itertools.pairwise(edges)
    return pieces


def slow_units(corpus, room):
    """Whole sentences until they reach the room, document by document."""
    units = []
    for d, ranges in enumerate(layout(corpus)):
        unit = []
        for sentence in slow_pieces(ranges, room):
            unit.append(sentence)
            if unit[-1][1] - unit[0][0] >= room:
                units.append((d, unit))
                unit = []
        if unit:
            units.append((d, unit))
    return units


def slow_lengths(a, b, room):
    """A token at a time from the longer side, B on a tie."""
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def slow_part(side, kept, draw):
    """One of the parts that lie side by side from the front; the last one lies at the end."""
    start, stop = side
    starts = [*range(start, stop - kept, kept), stop - kept]
    at = starts[draw(len(starts))]
    return at, at + kept


@settings(max_examples=30)
@given(CORPORA, st.integers(8, 40), st.floats(0, 1), st.floats(0, 1))
def test_segments_follow_the_rule(tmp_path_factory, corpus, max_length, next_, short):
    section = PairsSection(max_length=max_length, next_fraction=next_, short_fraction=short)
    room = max_length - 3
    store = make_store(tmp_path_factory.mktemp("store"), corpus)
    maker = PairMaker(store, section, "text")
    units = slow_units(corpus, room)
    order = EpochOrder(maker.block_examples, store.block_documents, key=0)
    everything = Located(
        np.arange(len(units)),
        order.windows[0],
        np.zeros(len(units), np.int64),
        np.arange(len(units)),
    )
    pairs = maker.draw(everything, make_key(1, "pairs", 0))
    assert len(units) == maker.block_examples.sum()
    for (d, unit), a0, a1, b0, b1, is_next in zip(
        units, *map(np.ndarray.tolist, pairs), strict=True
    ):
        total = a1 - a0 + b1 - b0
        assert a1 - a0 >= 1 and b1 - b0 >= 1 and total <= room
        # A lies in a run of leading sentences of the unit, and the next B in the rest of it.
        splits = {sentence[1] for sentence in unit}
        assert unit[0][0] <= a0 and any(a1 <= split for split in splits)
        if is_next:
            assert len(unit) > 1 and a1 <= b0 and b1 <= unit[-1][1]
            assert document_of(corpus, b0) == d
        else:
            assert document_of(corpus, b0) != d
            assert document_of(corpus, b0) == document_of(corpus, b1 - 1)
        if short == 0 and len(unit) > 1 and is_next:
            # Nothing is lost but what does not fit.
            assert total == min(room, unit[-1][1] - unit[0][0])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 50), st.integers(0, 2**32))
def test_truncation_is_the_published_routine_token_by_token(a_length, b_length, room, seed):
    keys = random_bits(seed, 0)
    a, b = (100, 100 + a_length), (500, 500 + b_length)
    got = _truncate(*(np.array([x]) for x in (*a, *b)), room, keys)
    a0, a1, b0, b1 = (int(x[0]) for x in got)
    draws = KeyedDraws(keys)
    kept_a, kept_b = slow_lengths(a_length, b_length, room)
    assert (a0, a1) == slow_part(a, kept_a, lambda n: draws.below(n, _KEPT_A))
    assert (b0, b1) == slow_part(b, kept_b, lambda n: draws.below(n, _KEPT_B))


@given(st.integers(1, 100), st.integers(2, 60))
def test_the_parts_that_may_be_kept_are_the_whole(length, kept):
    kept = min(kept, length)
    parts = [range(*slow_part((0, length), kept, lambda n, i=i: i % n)) for i in range(length)]
    assert set(itertools.chain(*parts)) == set(range(length))


def test_shares_of_segments(tmp_path):
    corpus = [[10] * 48 for _ in range(60)]  # eight full units a document
    store = make_store(tmp_path, corpus)
    epochs = [draw_epoch(store, PairsSection(max_length=63), e) for e in range(20)]
    is_next = np.concatenate([p.is_next for p in epochs])
    total = np.concatenate([p.a_stops - p.a_starts + p.b_stops - p.b_starts for p in epochs])
    # Short targets are 2 to 60. Nine of these 59 leave one sentence, which has no next.
    assert abs(is_next.mean() - 0.5 * (1 - 0.1 * 9 / 59)) < 0.02
    # Pairs with a next are filled up to whole sentences: targets of 11 to 50 stay shorter.
    # (A random second may also end with its document.)
    assert abs((total[is_next] < 60).mean() - 0.1 * 40 / 59 / (1 - 0.1 * 9 / 59)) < 0.012


def test_a_unit_of_one_sentence_has_a_random_second(tmp_path):
    corpus = [[40], [40], [40]]
    pairs = draw_epoch(make_store(tmp_path, corpus), PairsSection(next_fraction=1.0, max_length=50))
    assert not pairs.is_next.any()


# --- segments: the same pairs as the slow oracle, draw by draw -----------------------------------


def documents_of(store) -> list[list[list[tuple[int, int]]]]:
    """Of each block its documents, of each of these the token ranges of its sentences."""
    blocks = []
    for number, first in enumerate(store.block_token_starts[:-1].tolist()):
        block = store.block(number)
        bounds = [first + int(at) for at in block.sentence_starts]
        ranges = list(itertools.pairwise(bounds))
        blocks.append([ranges[a:b] for a, b in itertools.pairwise(block.document_starts.tolist())])
    return blocks


class KeyedDraws:
    """The draws of one example of one epoch, as the package makes them."""

    def __init__(self, key):
        self.key = key

    def uniform(self, purpose):
        return float(uniform(self.key, purpose)[0])

    def below(self, limit, *purpose):
        return int(below(limit, self.key, *purpose)[0])


class OtherDraws:
    """Draws that have nothing to do with keys."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def uniform(self, _purpose):
        return self.random.random()

    def below(self, limit, *_purpose):
        return self.random.randrange(limit)


def until(sentences, num_tokens):
    """The first sentences, up to the one that reaches so many tokens."""
    taken = []
    for sentence in sentences:
        taken.append(sentence)
        if sentence[1] - taken[0][0] >= num_tokens:
            break
    return taken


def slow_segments(documents, own, unit, section, draws):
    """One pair by docs/explanation/pairs.md: a unit of `documents[own]`, and what is drawn."""
    room = section.max_length - 3
    target = room
    if draws.uniform(_IS_SHORT) < section.short_fraction:
        target = 2 + draws.below(room - 1, _TARGET)
    unit = until(unit, target)
    if len(unit) > 1:
        split = 1 + draws.below(len(unit) - 1, _SPLIT)
        is_next = draws.uniform(_IS_NEXT) < section.next_fraction
    else:
        split, is_next = 1, False
    first, second = unit[:split], unit[split:]
    a = first[0][0], first[-1][1]
    if not is_next:
        others = documents[:own] + documents[own + 1 :]
        other = others[draws.below(len(others), _DOCUMENT, 0)]
        at = draws.below(len(other), _SENTENCE, 0)
        second = until(other[at:], target - (a[1] - a[0]))
    b = second[0][0], second[-1][1]
    kept_a, kept_b = slow_lengths(a[1] - a[0], b[1] - b[0], room)
    part_a = slow_part(a, kept_a, lambda n: draws.below(n, _KEPT_A))
    part_b = slow_part(b, kept_b, lambda n: draws.below(n, _KEPT_B))
    return (*part_a, *part_b, is_next)


def assert_segments_are_the_oracles(store, section, epoch, seed, every=1):
    """Compare an epoch, or every so many places of it, with the oracle."""
    batches = Batches(store, TOKENIZER, section, MaskingSection(), 1, seed, "text")
    blocks = in_pieces(documents_of(store), section)
    units = [
        [(d, unit) for d, document in enumerate(block) for unit in cut(document, section)]
        for block in blocks
    ]
    num_examples = np.array([len(block) for block in units])
    assert batches.num_examples == num_examples.sum()
    places = np.arange(0, batches.num_examples, every)
    pairs, _ = batches.pairs_at(epoch * batches.num_examples + places)
    got = list(zip(*map(np.ndarray.tolist, pairs), strict=True))
    documents = np.array([len(block) for block in blocks])
    order = batch_module.EpochOrder(num_examples, documents, make_key(seed, "order", epoch))
    for located in order.locate(places):
        numbers = located.window.blocks.tolist()
        window = [document for number in numbers for document in blocks[number]]
        for row, index, example in zip(
            *map(np.ndarray.tolist, located[:1] + located[2:]), strict=True
        ):
            d, unit = units[numbers[index]][example]
            own = sum(len(blocks[number]) for number in numbers[:index]) + d
            key = random_bits(make_key(seed, "pairs", epoch), numbers[index], example)
            assert got[row] == slow_segments(window, own, unit, section, KeyedDraws(key))


def in_pieces(blocks, section):
    return [[slow_pieces(each, section.max_length - 3) for each in block] for block in blocks]


def cut(document, section):
    """Runs of whole sentences that just reach the room."""
    units = []
    while document:
        units.append(until(document, section.max_length - 3))
        document = document[len(units[-1]) :]
    return units


@settings(max_examples=40)
@given(
    CORPORA,
    st.integers(8, 40),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 300),
    st.integers(0, 2**62),
)
def test_segments_equal_the_slow_oracle(
    tmp_path_factory, corpus, max_length, next_, short, block_tokens, seed
):
    section = PairsSection(max_length=max_length, next_fraction=next_, short_fraction=short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.order.WINDOW_BLOCKS", 3)
        store = make_store(tmp_path_factory.mktemp("store"), corpus, patch, block_tokens)
        assert_segments_are_the_oracles(store, section, seed % 3, seed)


@pytest.mark.parametrize("max_length", [64, 128])
def test_segments_of_real_text_equal_the_slow_oracle(real_store, max_length):
    section = PairsSection(max_length=max_length)
    assert_segments_are_the_oracles(real_store.train, section, epoch=1, seed=7, every=4)


def test_segments_of_real_text_have_the_oracles_lengths_and_shares(real_store):
    """Other draws, none of them keyed: draws that hang together would be seen here."""
    store, section = real_store.train, PairsSection(max_length=64)
    documents = [each for block in in_pieces(documents_of(store), section) for each in block]
    draws = OtherDraws(0)
    slow, num_epochs = [], 3
    for own, document in enumerate(documents):
        for unit in cut(document, section):
            slow += [slow_segments(documents, own, unit, section, draws) for _ in range(num_epochs)]
    epochs = [draw_epoch(store, section, epoch) for epoch in range(num_epochs)]
    pairs = [tuple(row) for epoch in epochs for row in np.stack(epoch, 1)]
    assert len(pairs) == len(slow)
    ours, theirs = (summary(np.array(rows)) for rows in (pairs, slow))
    for name, (mean, variance) in ours.items():
        error = (2 * variance / len(pairs)) ** 0.5
        assert abs(mean - theirs[name][0]) < 4 * error, (name, mean, theirs[name][0])


def summary(rows):
    """Mean and variance of what describes a pair."""
    a, b, is_next = rows[:, 1] - rows[:, 0], rows[:, 3] - rows[:, 2], rows[:, 4]
    values = {"a": a, "b": b, "next": is_next, "short": a + b < 55, "next a": a * is_next}
    return {name: (value.mean(), value.var()) for name, value in values.items()}


# --- what an epoch sees --------------------------------------------------------------------------

LONG = [[3, 200, 5], [90], [61, 62, 63], [7] * 30, [1000], [20, 45, 50, 60, 61], [2]]


def seen_in(store, section, epochs):
    """Whether each token is in a pair of one of these epochs."""
    seen = np.zeros(store.num_tokens, bool)
    for pairs in (draw_epoch(store, section, epoch) for epoch in epochs):
        for starts, stops in (pairs[:2], pairs[2:4]):
            for start, stop in zip(starts, stops, strict=True):
                seen[start:stop] = True
    return seen


def test_a_few_epochs_see_every_token(tmp_path):
    store, section = make_store(tmp_path, LONG), PairsSection(max_length=64)
    assert seen_in(store, section, range(1)).mean() > 0.6
    assert seen_in(store, section, range(5)).mean() > 0.95
    assert seen_in(store, section, range(20)).all()


@pytest.mark.parametrize("max_length", [64, 128])
def test_a_few_epochs_see_all_of_real_text(real_store, max_length):
    section = PairsSection(max_length=max_length)
    assert seen_in(real_store.train, section, range(10)).mean() > 0.99


@settings(max_examples=30)
@given(CORPORA, st.sampled_from(["segments", "sentences", "none"]), st.integers(1, 300))
def test_the_share_of_tokens_that_an_epoch_sees(tmp_path_factory, corpus, kind, block_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.order.WINDOW_BLOCKS", 1000)
        store = make_store(tmp_path_factory.mktemp("store"), corpus, patch, block_tokens)
        section = PairsSection(kind=kind, max_length=24)
        try:
            batches = Batches(store, TOKENIZER, section, MaskingSection(), 1, 1, "text")
        except CorpusError:  # no two sentences fit
            return
        assert batches.seen_fraction() == seen_in(store, section, range(1)).mean()


def test_the_share_of_a_large_store_is_that_of_its_first_window(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("bertmill.data.order.WINDOW_BLOCKS", 3)
    store = make_store(tmp_path, corpus, monkeypatch, block_tokens=500)
    section = PairsSection(max_length=48)
    batches = Batches(store, TOKENIZER, section, MaskingSection(), 1, 1, "text")
    assert abs(batches.seen_fraction() - seen_in(store, section, range(1)).mean()) < 0.05


# --- none ----------------------------------------------------------------------------------------


def test_full_blocks_cover_every_token_once(tmp_path, corpus):
    store = make_store(tmp_path, corpus)
    pairs = draw_epoch(store, PairsSection(kind="none", max_length=34))
    covered = np.concatenate(
        [np.arange(a, b) for a, b in zip(pairs.a_starts, pairs.a_stops, strict=True)]
    )
    assert sorted(covered.tolist()) == list(range(store.num_tokens))
    assert ((pairs.a_stops - pairs.a_starts) == 32).sum() == store.num_tokens // 32
    assert (pairs.b_starts == pairs.b_stops).all()


# --- all -----------------------------------------------------------------------------------------

SECTIONS = [
    PairsSection(kind="sentences", max_length=48),
    PairsSection(kind="segments", max_length=48),
    PairsSection(kind="none", max_length=48),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_every_epoch_has_the_same_examples_and_other_draws(tmp_path, corpus, section):
    store = make_store(tmp_path, corpus)
    one, two = (draw_epoch(store, section, e) for e in (0, 1))
    assert not np.array_equal(one.a_starts, two.a_starts)
    assert len(one.a_starts) == len(two.a_starts)
    if section.kind != "segments":  # there the front of A may be cut off
        assert sorted(one.a_starts.tolist()) == sorted(two.a_starts.tolist())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_same_seed_same_pairs_other_seed_others(tmp_path, corpus, section):
    store = make_store(tmp_path, corpus)
    one, same, other = (draw_epoch(store, section, 3, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.a_starts, other.a_starts)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_many_blocks_hold_the_rules_too(tmp_path, corpus, section, monkeypatch):
    monkeypatch.setattr("bertmill.data.order.WINDOW_BLOCKS", 3)
    store = make_store(tmp_path, corpus, monkeypatch, block_tokens=500)
    assert store.num_blocks > 10
    pairs = draw_epoch(store, section)
    for a0, a1, b0, b1, is_next in zip(*map(np.ndarray.tolist, pairs), strict=True):
        if section.kind == "none":
            continue
        same = document_of(corpus, a0) == document_of(corpus, b0)
        assert same == is_next
        assert document_of(corpus, b0) == document_of(corpus, b1 - 1)
        assert document_of(corpus, a0) == document_of(corpus, a1 - 1)


@pytest.mark.parametrize("kind", ["sentences", "segments"])
def test_a_single_document_is_refused_not_mislabeled(tmp_path, kind):
    store = make_store(tmp_path, [[5, 5, 5]])
    with pytest.raises(CorpusError, match="single document"):
        PairMaker(store, PairsSection(kind=kind), "my.txt")


def test_a_single_document_is_fine_without_random_seconds(tmp_path):
    store = make_store(tmp_path, [[5, 5, 5]])
    assert draw_epoch(store, PairsSection(kind="sentences", next_fraction=1.0)).is_next.all()
    assert len(draw_epoch(store, PairsSection(kind="none")).a_starts) == 1


def test_a_second_that_never_fits_is_cut_to_fit(tmp_path):
    corpus = [[20, 2], [30], [30]]
    section = PairsSection(kind="sentences", max_length=28, next_fraction=0.0)
    pairs = draw_epoch(make_store(tmp_path, corpus), section)
    assert (pairs.a_stops - pairs.a_starts + pairs.b_stops - pairs.b_starts).tolist() == [25]
    assert not pairs.is_next.any()


# --- all, on real text ---------------------------------------------------------------------------


def documents_that_yield(store, section) -> set[int]:
    """Numbers of the documents that give an example, counted over the split."""
    documents = [document for block in documents_of(store) for document in block]
    if section.kind != "sentences":
        return set(range(len(documents)))
    return {
        d
        for d, sentences in enumerate(documents)
        for a, b in itertools.pairwise(sentences)
        if b[1] - a[0] + 3 <= section.max_length
    }


def documents_at(store, positions) -> np.ndarray:
    """Number of the document that holds each token, counted over the split."""
    ends = [document[-1][1] for block in documents_of(store) for document in block]
    return np.searchsorted(ends, positions, "right")


def assert_every_document_is_used(store, section, epoch):
    pairs = draw_epoch(store, section, epoch)
    used = [np.arange(a, b) for a, b in zip(pairs.a_starts, pairs.a_stops, strict=True)]
    assert set(documents_at(store, np.concatenate(used)).tolist()) == documents_that_yield(
        store, section
    )


@settings(max_examples=30)
@given(CORPORA, st.sampled_from(SECTIONS), st.integers(1, 300))
def test_every_document_that_yields_an_example_is_used(tmp_path_factory, corpus, section, tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.order.WINDOW_BLOCKS", 3)
        store = make_store(tmp_path_factory.mktemp("store"), corpus, patch, tokens)
        if documents_that_yield(store, section):
            assert_every_document_is_used(store, section, epoch=2)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_every_document_of_real_text_is_used(real_store, section):
    assert_every_document_is_used(real_store.train, section, epoch=1)


@pytest.mark.parametrize("kind", ["sentences", "segments"])
def test_no_random_second_of_real_text_is_from_the_same_document(real_store, kind):
    store = real_store.train
    for epoch in range(3):
        pairs = draw_epoch(store, PairsSection(kind=kind, max_length=64), epoch)
        own, others, ends = (
            documents_at(store, at) for at in (pairs.a_starts, pairs.b_starts, pairs.b_stops - 1)
        )
        assert ((own == others) == pairs.is_next).all()
        assert (others == ends).all()


def test_sentence_pairs_of_real_text(real_store):
    store, section = real_store.train, PairsSection(kind="sentences", max_length=64)
    pairs = draw_epoch(store, section)
    fitting = {
        a: b
        for block in documents_of(store)
        for document in block
        for a, b in itertools.pairwise(document)
        if b[1] - a[0] + 3 <= 64
    }
    sentences = {s for block in documents_of(store) for document in block for s in document}
    assert sorted(zip(pairs.a_starts, pairs.a_stops, strict=True)) == sorted(fitting)
    cut = 0
    for a0, a1, b0, b1, is_next in zip(*map(np.ndarray.tolist, pairs), strict=True):
        if is_next:
            assert (b0, b1) == fitting[a0, a1]
        elif (b0, b1) not in sentences:
            assert a1 - a0 + b1 - b0 + 3 == 64  # never fitted in 32 draws
            cut += 1
    assert cut < 0.01 * len(pairs.is_next)
    assert abs(pairs.is_next.mean() - 0.5) < 4 * (0.25 / len(pairs.is_next)) ** 0.5


def test_the_coins_of_two_epochs_agree_as_often_as_coins_do(real_store):
    section = PairsSection(kind="sentences", max_length=64)
    one, two = (
        dict(zip(pairs.a_starts.tolist(), pairs.is_next.tolist(), strict=True))
        for pairs in (draw_epoch(real_store.train, section, epoch) for epoch in (0, 1))
    )
    assert list(one) != list(two)  # another order
    agree = np.mean([one[example] == two[example] for example in one])
    assert abs(agree - 0.5) < 4 * (0.25 / len(one)) ** 0.5
