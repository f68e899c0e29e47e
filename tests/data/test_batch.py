import numpy as np
import pytest

from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batch, Batches

KINDS = ["sentences", "segments", "none"]


@pytest.fixture
def make_batches(small_store):
    def make(kind="segments", seed=1, batch_size=16, **masking):
        return Batches(
            small_store.train,
            small_store.tokenizer,
            PairsSection(kind=kind, max_length=32),
            MaskingSection(**masking),
            batch_size,
            seed,
            "text",
        )

    return make


def equal(one: Batch, two: Batch) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_function_of_its_step(make_batches, kind):
    wanted = make_batches(kind).batch_at(7)
    batches = make_batches(kind)
    for step in (9, 0, 7):  # whatever was made before
        got = batches.batch_at(step)
    assert equal(got, wanted)
    assert not equal(batches.batch_at(8), wanted)
    assert not equal(make_batches(kind, seed=2).batch_at(7), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_the_sequences(make_batches, small_store, kind):
    tokenizer = small_store.tokenizer
    batch = make_batches(kind).batch_at(0)
    assert batch.lengths == sorted(batch.lengths, reverse=True)
    for start, stop in zip(batch.sequence_starts[:-1], batch.sequence_starts[1:], strict=True):
        ids, segments = batch.token_ids[start:stop], batch.segment_ids[start:stop]
        assert stop - start <= 32
        assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
        assert (ids == tokenizer.cls_id).sum() == 1
        separators = np.flatnonzero(ids == tokenizer.sep_id)
        assert len(separators) == (1 if kind == "none" else 2)
        assert (segments == (np.arange(stop - start) > separators[0])).all()
        assert (batch.position_ids[start:stop] == np.arange(stop - start)).all()


def test_tokens_are_the_stores(make_batches, small_store):
    """Undo the masks: every sequence must be found in the store as it stands."""
    batches = make_batches()
    places = np.arange(16)
    batch, (pairs, _) = batches.batch_of(places), batches.pairs_at(places)
    ids = batch.token_ids.copy()
    ids[batch.masked_at] = batch.masked_labels
    flat = small_store.train.gather(np.array([0]), np.array([small_store.train.num_tokens]))
    want = sorted(
        [*flat[a0:a1].tolist(), -1, *flat[b0:b1].tolist()]
        for a0, a1, b0, b1 in zip(*pairs[:4], strict=True)
    )
    sep = small_store.tokenizer.sep_id
    got = sorted(
        [-1 if i == sep else i for i in ids[start + 1 : stop - 1].tolist()]
        for start, stop in zip(batch.sequence_starts[:-1], batch.sequence_starts[1:], strict=True)
    )
    assert got == want


def test_labels_of_the_pairs_stay_with_their_sequences(make_batches):
    batches = make_batches()
    places = np.arange(16)
    pairs, _ = batches.pairs_at(places)
    batch = batches.batch_of(places)
    lengths = pairs.a_stops - pairs.a_starts + pairs.b_stops - pairs.b_starts + 3
    by_length = np.argsort(-lengths, kind="stable")
    assert batch.lengths == lengths[by_length].tolist()
    assert (batch.next_sentence_labels == pairs.is_next[by_length]).all()


def test_without_pairs_there_are_no_labels(make_batches):
    batch = make_batches("none").batch_at(0)
    assert len(batch.next_sentence_labels) == 0
    assert not batch.segment_ids.any()


def test_an_epoch_uses_every_example_once_and_runs_on(make_batches):
    batches = make_batches("sentences")
    n = batches.num_examples
    starts = batches.pairs_at(np.arange(n))[0].a_starts
    assert len(set(starts.tolist())) == n
    across = batches.pairs_at(np.arange(n - 3, n + 3))[0].a_starts
    assert across[:3].tolist() == starts[-3:].tolist()
    next_epoch = batches.pairs_at(np.arange(n, 2 * n))[0].a_starts
    assert across[3:].tolist() == next_epoch[:3].tolist()


def test_masks_are_fresh_in_every_epoch(make_batches):
    batches = make_batches("none")
    n = batches.num_examples
    one, two = (batches.batch_of(np.arange(e * n, (e + 1) * n)) for e in (0, 1))
    masked = [
        {
            (int(b.token_ids[at]), int(label))
            for at, label in zip(b.masked_at, b.masked_labels, strict=True)
        }
        for b in (one, two)
    ]
    assert masked[0] != masked[1]


def test_a_batch_touches_only_the_blocks_of_its_window(make_batches, small_store):
    """Work, not time: what a batch reads does not grow with the corpus."""
    batches = make_batches()
    touched = set()
    original = small_store.train.block

    def counting(number):
        touched.add(number)
        return original(number)

    small_store.train.block = counting
    try:
        batches.batch_at(3)
    finally:
        del small_store.train.block
    assert touched == {0}
