import hashlib
import inspect
import random
import subprocess
import sys
import tracemalloc
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from bertmill.config import MaskingSection, PairsSection, TextSection, TokenizerSection
from bertmill.data.batch import Batch, Batches
from bertmill.data.prepare import prepare
from bertmill.data.store import EncodedDocuments, Store, StoreWriter, TokenStore
from bertmill.text.tokenizer import load_tokenizer

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


# --- ranks and micro-batches ----------------------------------------------------------------------

PARTS = [(kind, whole_word) for kind in KINDS for whole_word in (False, True)]


def sequences_of(batch: Batch) -> list[tuple]:
    """Each sequence with all that is known of it, in the batch's order."""
    labels = batch.next_sentence_labels.tolist() or [None] * len(batch.lengths)
    found = []
    for start, stop, label in zip(
        batch.sequence_starts[:-1], batch.sequence_starts[1:], labels, strict=True
    ):
        is_own = (batch.masked_at >= start) & (batch.masked_at < stop)
        arrays = [
            values[start:stop]
            for values in (batch.token_ids, batch.segment_ids, batch.position_ids)
        ]
        arrays += [batch.masked_at[is_own] - start, batch.masked_labels[is_own]]
        found.append((*(tuple(values.tolist()) for values in arrays), label))
    return found


@pytest.mark.parametrize(("kind", "whole_word"), PARTS)
@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("max_tokens", [0, 1, 31, 40, 100, 10_000])
def test_ranks_and_micro_batches_share_the_batch_of_a_step(
    make_batches, kind, whole_word, size, max_tokens
):
    batches = make_batches(kind, whole_word=whole_word)
    whole = batches.batch_at(3)
    ranks = [batches.micro_batches_at(3, max_tokens, rank, size) for rank in range(size)]
    sequences = [s for parts in ranks for part in parts for s in sequences_of(part)]
    assert sorted(sequences) == sorted(sequences_of(whole))
    assert len({len(parts) for parts in ranks}) == 1
    sizes = [[len(part.token_ids) for part in parts] for parts in ranks]
    assert max(map(sum, sizes)) - min(map(sum, sizes)) <= max(whole.lengths)
    for parts in ranks:
        assert all(len(part.lengths) > 0 and part.sequence_starts[0] == 0 for part in parts)
        for part in parts[:-1]:
            assert not max_tokens or len(part.token_ids) <= max_tokens or len(part.lengths) == 1
    if max_tokens in (0, 10_000):
        assert all(len(parts) == 1 for parts in ranks)
    if size == 1:
        for one, two in pairwise(ranks[0]):  # none could have taken one more
            assert len(one.token_ids) + two.lengths[0] > max_tokens
        assert sequences == sequences_of(whole)
        if max_tokens == 0:
            assert equal(ranks[0][0], whole)


def test_a_row_that_not_every_rank_has_is_no_micro_batch_of_its_own(make_batches):
    """17 sequences on 3 ranks: five rounds and a sixth, which two ranks have a row of."""
    batches = make_batches("none", batch_size=17)
    ranks = [batches.micro_batches_at(0, 1, rank, 3) for rank in range(3)]
    assert [[len(part.lengths) for part in parts] for parts in ranks] == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 2],
        [1, 1, 1, 1, 2],
    ]


def test_a_rank_reads_its_own_rows_alone(make_batches, monkeypatch):
    batches, read = make_batches(), []
    gather = TokenStore.gather

    def counting(self, sources, sizes):
        read.append(int(sizes.sum()))
        return gather(self, sources, sizes)

    monkeypatch.setattr(TokenStore, "gather", counting)
    batches.batch_at(0)
    batches.micro_batches_at(0, 0, 1, 4)
    assert 0 < read[1] < 0.3 * read[0]


@pytest.fixture(scope="module")
def write_synthetic(tmp_path_factory):
    """Write a store of many blocks; blocks are alike, whatever their number."""
    folder = tmp_path_factory.mktemp("synthetic")
    vocabulary = folder / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"{'##' if i % 5 == 0 else ''}w{i}" for i in range(995)]
    vocabulary.write_text("\n".join(words), "utf-8")

    @cache
    def write(num_blocks):
        rng = np.random.default_rng(0)
        path = folder / str(num_blocks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bertmill.data.store.BLOCK_TOKENS", 1)  # a block whenever some are added
            path.mkdir()
            writer = StoreWriter(path, load_tokenizer(vocabulary))
            for _ in range(num_blocks):
                sentences = rng.integers(1, 40, 2000)
                ids = rng.integers(5, 1000, sentences.sum())
                writer.add("train", EncodedDocuments(ids, sentences, np.full(200, 10)))
            writer.close({"text": {}, "tokenizer": {}})
        return Store(path)

    return write


def open_large(store, kind="segments", whole_word=False):
    section, masking = PairsSection(kind=kind, max_length=64), MaskingSection(whole_word=whole_word)
    return Batches(store.train, store.tokenizer, section, masking, 32, 1, "text")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_touches_only_its_own_documents(write_synthetic, monkeypatch, kind):
    """Work, not time: what a batch reads does not grow with the corpus."""
    store = write_synthetic(40)
    blocks, read = set(), []
    block, gather = TokenStore.block, TokenStore.gather

    def counting_block(self, number):
        blocks.add(number)
        return block(self, number)

    def counting_gather(self, starts, lengths):
        read.append((starts, lengths))
        return gather(self, starts, lengths)

    monkeypatch.setattr("bertmill.data.batch._EXAMPLES_AT_ONCE", 256)  # within a window
    monkeypatch.setattr(TokenStore, "block", counting_block)
    monkeypatch.setattr(TokenStore, "gather", counting_gather)
    batches = open_large(store, kind)
    order = batches._order(0)
    windows, starts = order.windows, order._starts
    assert [len(window.blocks) for window in windows] == [16, 16, 8]
    for number, window in enumerate(windows):
        step = int(starts[number] + starts[number + 1]) // 2 // 32
        blocks.clear()
        read.clear()
        batch = batches.batch_at(step)
        assert blocks <= set(window.blocks.tolist())
        # Each token is read once: those of the batch, special tokens apart, and no other.
        framing = len(batch.lengths) * (2 if kind == "none" else 3)
        assert sum(lengths.sum() for _, lengths in read) == len(batch.token_ids) - framing
        pairs, _ = batches.pairs_at(np.arange(step * 32, (step + 1) * 32))
        own = set(zip(pairs.a_starts.tolist(), pairs.a_stops.tolist(), strict=True))
        if kind != "none":
            own |= set(zip(pairs.b_starts.tolist(), pairs.b_stops.tolist(), strict=True))
        ranges = {
            (int(a), int(a + n)) for s, lengths in read for a, n in zip(s, lengths, strict=True)
        }
        assert ranges == own


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_batch_does_not_grow_with_the_corpus(write_synthetic, monkeypatch, kind):
    monkeypatch.setattr("bertmill.data.batch._EXAMPLES_AT_ONCE", 256)  # drawn several times

    def allocated(num_blocks):
        batches = open_large(write_synthetic(num_blocks), kind, whole_word=True)
        peaks = []
        batches.batch_at(0)
        tracemalloc.start()
        for step in range(1, 64):
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            batches.batch_at(step)
            peaks.append(tracemalloc.get_traced_memory()[1] - held)
        tracemalloc.stop()
        return max(peaks)

    small, large = allocated(17), allocated(100)
    assert large < 1.05 * small


# --- the same batches whoever makes them, and when -----------------------------------------------

CHOICES = [(kind, whole_word) for kind in KINDS for whole_word in (False, True)]
# Steps of the first epoch and of later ones.
STEPS = (0, 1, 2, 60, 200)


def digest(batches: Batches) -> str:
    """SHA-256 of every array of some batches."""
    sha = hashlib.sha256()
    for step in STEPS:
        for name, values in vars(batches.batch_at(step)).items():
            sha.update(f"{name} {values.dtype} {values.shape}".encode())
            sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def open_batches(store: Store, kind: str, whole_word: bool) -> Batches:
    section = PairsSection(kind=kind, max_length=32)
    masking = MaskingSection(whole_word=whole_word)
    return Batches(store.train, store.tokenizer, section, masking, 8, 1, "text")


VOCABULARY = """[PAD] [UNK] [CLS] [SEP] [MASK] . the a river farm ##er old bridge my sister market
grey crane cross ##es remember ##s follow watch feed ##ch valley two horse long road winter rain
its own shadow in year 1 2 3 4 5 6 7 8 9 0 ##1 ##2 ##3 ##4 ##5 ##6 ##7 ##8 ##9 ##0 wat f ##eed"""


@pytest.fixture(scope="module")
def fixed_store(corpus_file, tmp_path_factory) -> Store:
    """A store that no tokenizer training and no sentence splitter has a part in."""
    folder = tmp_path_factory.mktemp("fixed")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY.split()), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.store.BLOCK_TOKENS", 150)  # two windows
        (folder / "store").mkdir()
        writer = StoreWriter(folder / "store", load_tokenizer(vocabulary))
        for document in corpus_file.read_text("utf-8").split("\n\n"):
            sentences = [f"{s.rstrip('.')}." for s in document.split(". ")]
            tokens, lengths = load_tokenizer(vocabulary).encode_batch(sentences)
            writer.add("train", EncodedDocuments(tokens, lengths, np.array([len(sentences)])))
        writer.close({"text": {}, "tokenizer": {}})
    return Store(folder / "store")


def test_golden_tokens_of_the_fixed_store(fixed_store):
    """Where this fails, the golden batches fail too, and no draw is to blame."""
    train, sha = fixed_store.train, hashlib.sha256()
    for number in range(train.num_blocks):
        block = train.block(number)
        for values in (block.tokens, block.sentence_starts, block.document_starts):
            sha.update(np.asarray(values, np.int64).tobytes())
    assert sha.hexdigest() == "cfe3e26b5ee97361006f65e569a9c7f1d1110f848129a3c91c5c0bf9851acef0"


GOLDEN = {
    ("sentences", False): "dbeaa1bb445e93a45ea8e68b301c2dcf3adf2459e53b26ae31a0821096e5646c",
    ("sentences", True): "637b686b0a581e39391dfaaaf14422e3adf860d3b2cbbfb1e6bff42bd3b0c541",
    ("segments", False): "ea849cc48228711d81e0664edbc80b578bcc424597b0c3d230784b0d7637f8c7",
    ("segments", True): "9218cbd4849940655bd12261e65f7685228b2684370de0d5b5bac36a095e3561",
    ("none", False): "4da8ab0e4df15eee5084231231663cfd866e096468055cc1cec69613186f4427",
    ("none", True): "6a20cb44a778e5720a8bbba78bce7edacfef470461ec4b68c36dd1daaa87b843",
}


@pytest.mark.parametrize(("kind", "whole_word"), CHOICES)
def test_golden_batches(fixed_store, kind, whole_word):
    """A change of any draw, of its order or of the layout is seen here.

    It changes every run that people have: old checkpoints would not resume exactly. If that is on
    purpose, print `digest` for each row of GOLDEN, put the new ones in, and say in the CHANGELOG
    that runs of earlier versions cannot be repeated or resumed bit by bit.
    """
    assert digest(open_batches(fixed_store, kind, whole_word)) == GOLDEN[kind, whole_word]


# What a fresh process runs: the same functions, taken from this file.
PROGRAM = """
import hashlib, sys
import numpy as np
from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batches
from bertmill.data.store import Store
{definitions}
for choice in sys.argv[2:]:
    kind, whole_word = choice.split(",")
    print(digest(open_batches(Store(sys.argv[1]), kind, whole_word == "True")))
"""


def test_another_process_makes_the_same_batches(fixed_store):
    """Nothing depends on this process: not on its hash seed, nor on what it made before."""
    sources = [f"STEPS = {STEPS}", *map(inspect.getsource, (digest, open_batches))]
    program = PROGRAM.format(definitions="\n".join(sources))
    arguments = [f"{kind},{whole_word}" for kind, whole_word in CHOICES]
    done = subprocess.run(
        [sys.executable, "-c", program, str(fixed_store.folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [digest(open_batches(fixed_store, *choice)) for choice in CHOICES]
    assert done.stdout.split() == here
    assert len(set(here)) == len(CHOICES)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_in_any_order_and_twice_are_the_same(fixed_store, kind):
    steps = list(range(80))
    batches = open_batches(fixed_store, kind, True)
    assert batches.num_examples < 8 * 80  # several epochs
    wanted = [batches.batch_at(step) for step in steps]
    again = open_batches(fixed_store, kind, True)
    asked = steps * 2
    random.Random(0).shuffle(asked)
    assert all(equal(again.batch_at(step), wanted[step]) for step in asked)


@pytest.mark.slow
def test_workers_that_prepare_leave_the_batches_as_they_are(tmp_path, corpus_file, monkeypatch):
    monkeypatch.setattr("bertmill.data.encode._CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr("bertmill.data.encode._CHUNKS_BEFORE_WORKERS", 0)
    monkeypatch.setattr("bertmill.data.store.BLOCK_TOKENS", 500)
    one, two = (
        prepare(
            [str(corpus_file)],
            tmp_path / str(workers),
            TextSection(held_out_fraction=0.2),
            TokenizerSection(vocab_size=200),
            workers=workers,
        )
        for workers in (1, 2)
    )
    assert one.identity == two.identity
    assert one.train.num_blocks > 1
    for choice in CHOICES:
        assert digest(open_batches(one, *choice)) == digest(open_batches(two, *choice))
