"""The yardstick of shared words: its features, its fit and its score, each against another way."""

import dataclasses
import gzip
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertmill.config import MaskingSection, PairsSection, TokenizerSection, load_recipe
from bertmill.data.batch import Batch, Batches
from bertmill.data.overlap import OverlapRule, overlap_features
from bertmill.data.prepare import prepare
from bertmill.text.vocabulary import train_tokenizer

TOKENIZER = train_tokenizer(
    [" ".join(f"w{i}" for i in range(20))], TokenizerSection(kind="word", min_frequency=1)
)
COUNTS = np.arange(TOKENIZER.size) ** 2
CLS, SEP, MASK = TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id

# Ordinary tokens, the unknown one, and masks.
SIDES = st.lists(
    st.sampled_from([TOKENIZER.unk_id, MASK, *range(5, TOKENIZER.size)]), min_size=1, max_size=12
)
PAIRS = st.lists(st.tuples(SIDES, SIDES, st.integers(0, 1)), min_size=1, max_size=12)


def to_batch(pairs, tokenizer=TOKENIZER) -> Batch:
    """Pairs of two lists of ids and a label, as they are; nothing of the masks but their ids."""
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    ids = [[cls, *a, sep, *b, sep] for a, b, _ in pairs]
    lengths = [len(sequence) for sequence in ids]
    nothing = np.empty(0, np.int64)
    return Batch(
        token_ids=np.concatenate(ids),
        segment_ids=np.concatenate([[0] * (len(a) + 2) + [1] * (len(b) + 1) for a, b, _ in pairs]),
        position_ids=np.concatenate([np.arange(length) for length in lengths]),
        sequence_starts=np.concatenate([[0], np.cumsum(lengths)]),
        masked_at=nothing,
        masked_labels=nothing,
        next_sentence_labels=np.array([label for *_, label in pairs]),
    )


def from_batch(batch: Batch):
    """The same the other way round."""
    pairs = []
    for i, label in enumerate(batch.next_sentence_labels.tolist()):
        start, stop = batch.sequence_starts[i : i + 2]
        ids = batch.token_ids[start:stop].tolist()
        second = batch.segment_ids[start:stop].tolist().index(1)
        pairs.append((ids[1 : second - 1], ids[second:-1], label))
    return pairs


def with_true_tokens(batch: Batch) -> Batch:
    ids = batch.token_ids.copy()
    ids[batch.masked_at] = batch.masked_labels
    return dataclasses.replace(batch, token_ids=ids)


# --- features ------------------------------------------------------------------------------------


def slow_features(a, b, counts, mask_id):
    """Seven numbers of one pair, with sets, by the docstring."""
    total = sum(count + 1 for count in counts.tolist())

    def nats(words):
        return sum(math.log(total / (int(counts[word]) + 1)) for word in words)

    first, second = set(a) - {mask_id}, set(b) - {mask_id}
    shared = first & second
    return [
        len(shared),
        nats(shared),
        max((nats([word]) for word in shared), default=0.0),
        nats(shared) / (1 + math.sqrt(nats(first) * nats(second))),
        math.log(1 + len(a)),
        math.log(1 + len(b)),
        abs(math.log(1 + len(a)) - math.log(1 + len(b))),
    ]


@given(PAIRS)
def test_features_are_the_slow_oracles(pairs):
    got = overlap_features(to_batch(pairs), COUNTS, TOKENIZER)
    assert got.shape == (len(pairs), 7)
    wanted = [slow_features(a, b, COUNTS, MASK) for a, b, _ in pairs]
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_features_of_real_pairs_are_the_slow_oracles(real_store):
    counts, tokenizer = real_store.token_counts, real_store.tokenizer
    batch = real_batches(real_store)[0]
    got = overlap_features(batch, counts, tokenizer)
    pairs = from_batch(batch)
    wanted = [slow_features(a, b, counts, tokenizer.mask_id) for a, b, _ in pairs]
    assert len(wanted) == 500
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_features_by_hand():
    a, b = [5, 6, 6, MASK], [6, MASK, 7]
    counts = np.zeros(TOKENIZER.size, np.int64)
    counts[5:8] = [9, 4, 1]
    total = counts.sum() + TOKENIZER.size
    five, six, seven = (math.log(total / n) for n in (10, 5, 2))
    share = six / (1 + math.sqrt((five + six) * (six + seven)))
    got = overlap_features(to_batch([(a, b, 1)]), counts, TOKENIZER)
    lengths = [math.log(5), math.log(4), math.log(5) - math.log(4)]
    assert got[0].tolist() == pytest.approx([1, six, six, share, *lengths])


def real_batches(store, count=4):
    section = PairsSection(kind="segments", max_length=64)
    batches = Batches(store.train, store.tokenizer, section, MaskingSection(), 500, 1, "text")
    return [batches.batch_at(step) for step in range(count)]


# --- fit -----------------------------------------------------------------------------------------


def standardized(rule, features):
    """Weights of the constant and of each feature in its own standard deviations."""
    slopes = np.array(rule.weights[1:])
    return np.array([rule.weights[0] + slopes @ features.mean(0), *slopes * features.std(0)])


def fit_with_sklearn(design, labels):
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(design, labels).coef_[0]


def fit_with_torch(design, labels):
    x, y = torch.tensor(design), torch.tensor(labels, dtype=torch.float64)
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=1000, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        nats = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights, y, reduction="sum")
        value = nats + 0.5 * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().numpy()


def assert_is_the_optimum(fit, batches, counts, tokenizer):
    features = np.concatenate([overlap_features(batch, counts, tokenizer) for batch in batches])
    labels = np.concatenate([batch.next_sentence_labels for batch in batches])
    spread = features.std(0)
    # One that never varies has a spread of rounding errors: it is left at 0.
    z = (features - features.mean(0)) / np.where(spread > 1e-12, spread, np.inf)
    rule = OverlapRule.fit(batches, counts, tokenizer)
    wanted = fit(np.column_stack([np.ones(len(z)), z]), labels)
    np.testing.assert_allclose(standardized(rule, features), wanted, atol=1e-3)


@pytest.mark.parametrize("fit", [fit_with_sklearn, fit_with_torch])
def test_fit_to_real_pairs_is_another_programs(real_store, fit):
    store = real_store
    assert_is_the_optimum(fit, real_batches(store), store.token_counts, store.tokenizer)


def rare_and_large(num_pairs):
    """A feature that is far from its mean in a few pairs only."""
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(5, 15, 5).tolist(), rng.integers(15, 25, 7).tolist(), int(rng.random() < 0.4))
        for _ in range(num_pairs)
    ]
    everything = list(range(5, 25))
    return [*pairs, (everything, everything, 1), (everything * 30, everything, 0)]


def told_always(num_pairs):
    """Next pairs share their words, others share none."""
    rng = np.random.default_rng(2)
    pairs = []
    for i in range(num_pairs):
        words = rng.permutation(np.arange(5, 25)).tolist()
        pairs.append((words[:6], words[:6] if i % 2 else words[6:12], i % 2))
    return pairs


@pytest.mark.parametrize("make", [rare_and_large, told_always])
@pytest.mark.parametrize("fit", [fit_with_sklearn, fit_with_torch])
def test_fit_to_hard_pairs_is_another_programs(make, fit):
    assert_is_the_optimum(fit, [to_batch(make(3000))], COUNTS, TOKENIZER)


def test_fit_takes_batches_as_one_corpus(real_store):
    counts, tokenizer = real_store.token_counts, real_store.tokenizer
    batches = real_batches(real_store)
    together = to_batch([pair for batch in batches for pair in from_batch(batch)], tokenizer)
    one, many = (OverlapRule.fit(b, counts, tokenizer) for b in ([together], iter(batches)))
    np.testing.assert_allclose(one.weights, many.weights, rtol=1e-6, atol=1e-9)


def test_fit_finds_the_rule_that_made_the_labels(real_store):
    """Labels tossed with known chances: the fit comes near these, and scores no worse."""
    counts, tokenizer = real_store.token_counts, real_store.tokenizer
    true = OverlapRule((-1.0, 0.4, 0.05, -0.1, 2.0, 0.3, -0.3, 0.5))
    rng = np.random.default_rng(3)
    batches = []
    for batch in real_batches(real_store):
        logits = true.weights[0] + overlap_features(batch, counts, tokenizer) @ true.weights[1:]
        tossed = (rng.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
        batches.append(dataclasses.replace(batch, next_sentence_labels=tossed))
    fitted = OverlapRule.fit(batches, counts, tokenizer)
    nats, best = (rule.score(batches, counts, tokenizer)[0] for rule in (fitted, true))
    assert best - 0.01 < nats < best + 1e-3


# --- score ---------------------------------------------------------------------------------------


@given(PAIRS, st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_score_by_hand(pairs, weights):
    nats, right = [], []
    for a, b, label in pairs:
        features = slow_features(a, b, COUNTS, MASK)
        logit = weights[0] + sum(w * x for w, x in zip(weights[1:], features, strict=True))
        # Large logits lose the last digits of a probability: log(1 + e) by the larger term.
        wrong = -logit if label else logit
        nats.append(max(wrong, 0) + math.log1p(math.exp(-abs(wrong))))
        right.append((logit > 0) == (label == 1))
        if abs(logit) < 1e-9:
            return  # an answer that rounding decides
    got = OverlapRule(tuple(weights)).score([to_batch(pairs)], COUNTS, TOKENIZER)
    assert got[0] == pytest.approx(sum(nats) / len(nats), rel=1e-9, abs=1e-12)
    assert got[1] == pytest.approx(sum(right) / len(right))


def test_score_weighs_pairs_not_batches():
    rule = OverlapRule((0.0, 1.0, *[0.0] * 6))
    same, other = ([5], [5], 1), ([5], [6], 0)
    nats, share = rule.score([to_batch([same]), to_batch([other] * 3)], COUNTS, TOKENIZER)
    assert nats == pytest.approx((math.log1p(math.exp(-1)) + 3 * math.log(2)) / 4)
    assert share == 1.0  # a logit of 0 says: does not follow


# --- what must not break it (a warning is an error in these tests) ------------------------------


def assert_finite(pairs):
    batch = to_batch(pairs)
    rule = OverlapRule.fit([batch], COUNTS, TOKENIZER)
    assert np.isfinite(rule.weights).all()
    nats, share = rule.score([batch], COUNTS, TOKENIZER)
    assert 0 <= nats <= math.log(2) + 1e-6  # no worse than saying nothing
    assert 0 <= share <= 1


@given(PAIRS)
def test_any_pairs_give_finite_numbers(pairs):
    assert_finite(pairs)


@pytest.mark.parametrize(
    "pairs",
    [
        [([5, 6], [6, 7], 1)] * 500,
        [([5, 6], [6, 7], 0)] * 500,
        [([5, 6], [6, 7], i % 2) for i in range(500)],
        [([5], [6], i % 2) for i in range(500)],
        [([MASK] * 4, [5 + i % 9], i % 2) for i in range(500)],
        [([MASK], [MASK], 1)],
        told_always(20_000),
        [*[([5], [6], 0)] * 20_000, (list(range(5, 25)) * 40, list(range(5, 25)) * 40, 1)],
        [*[([5], [6], 1)] * 20_000, *[(list(range(5, 25)) * 40, [7], 0)] * 3],
    ],
    ids=[
        "all next",
        "none next",
        "all alike",
        "one token a side",
        "masks alone",
        "one pair",
        "told always",
        "one far off",
        "few far off",
    ],
)
def test_degenerate_pairs_give_finite_numbers(pairs):
    assert_finite(pairs)


def test_a_feature_that_never_varied_tells_nothing():
    """Sides of one length in training, of others later: the answer is that of the shared words."""
    rng = np.random.default_rng(4)
    pairs = [
        (rng.integers(5, 25, 6).tolist(), rng.integers(5, 25, 6).tolist(), int(rng.random() < 0.7))
        for _ in range(999)
    ]
    rule = OverlapRule.fit([to_batch(pairs)], COUNTS, TOKENIZER)
    longer = [(a, b * 2, label) for a, b, label in pairs]
    nats, _ = rule.score([to_batch(longer)], COUNTS, TOKENIZER)
    assert nats == pytest.approx(rule.score([to_batch(pairs)], COUNTS, TOKENIZER)[0], abs=0.1)


# --- real corpora --------------------------------------------------------------------------------


@pytest.mark.slow
def test_published_overlap_rule_of_wikitext_2(tmp_path, shared_data):
    """Another feature set, fitted by another program, had 0.483 nats and 77.0 % on these pairs."""
    recipe = load_recipe("d2l", ["text.held_out_fraction=0.0"])
    train = shared_data / "wikitext-2" / "wiki.train.tokens.gz"
    store = prepare([str(train)], tmp_path / "store", recipe.text, recipe.tokenizer)
    counts, tokenizer = store.token_counts, store.tokenizer
    batches = Batches(store.train, tokenizer, recipe.pairs, recipe.masking, 512, 1, "text")
    fitted = [with_true_tokens(batches.batch_at(step)) for step in range(32)]
    rule = OverlapRule.fit(fitted, counts, tokenizer)

    vocab = tokenizer.backend.get_vocab()
    pairs = []
    with gzip.open(shared_data / "judge" / "wikitext-2-valid.jsonl.gz", "rt") as stream:
        for line in stream:
            record = json.loads(line)
            words, second = record["tokens"], record["second_starts"]
            for at, word in zip(record["masked_at"], record["labels"], strict=True):
                words[at] = word
            ids = [vocab.get(word, tokenizer.unk_id) for word in words]
            pairs.append((ids[1 : second - 1], ids[second:-1], int(record["is_next"])))
    assert len(pairs) == 4609
    nats, share = rule.score([to_batch(pairs, tokenizer)], counts, tokenizer)
    assert nats == pytest.approx(0.478, abs=0.015)
    assert share == pytest.approx(0.77, abs=0.015)
