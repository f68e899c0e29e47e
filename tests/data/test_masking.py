import itertools

import numpy as np
import pytest

from bertmill.config import MaskingSection, TokenizerSection
from bertmill.data.masking import mask_tokens
from bertmill.data.randomness import make_key, random_bits
from bertmill.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = " ".join(f"word{n} thing{n}ly" for n in range(300))
    return train_tokenizer([words, words], TokenizerSection(vocab_size=300))


def make_sequences(tokenizer: Tokenizer, lengths, seed=0):
    """Random ordinary tokens, framed by [CLS] and [SEP]."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.random.default_rng(seed).integers(5, tokenizer.size, starts[-1])
    ids[starts[:-1]], ids[starts[1:] - 1] = tokenizer.cls_id, tokenizer.sep_id
    maskable = np.ones(len(ids), bool)
    maskable[starts[:-1]] = maskable[starts[1:] - 1] = False
    return ids, starts, maskable


def mask(tokenizer, lengths, seed=0, **knobs):
    ids, starts, maskable = make_sequences(tokenizer, lengths)
    keys = random_bits(make_key(seed, "test"), np.arange(len(lengths)))
    return ids, starts, mask_tokens(ids, starts, maskable, keys, MaskingSection(**knobs), tokenizer)


def test_shares_are_the_recipes(tokenizer):
    _, _, masked = mask(tokenizer, [128] * 800)
    labels, shown = masked.masked_labels, masked.shown[masked.masked_at]
    is_mask = shown == tokenizer.mask_id
    kept = shown == labels
    n = len(labels)
    assert n == 800 * round(0.15 * 128)
    assert abs(is_mask.mean() - 0.8) < 4 * (0.16 / n) ** 0.5
    # A random token is the true one once in V: it counts as kept.
    assert abs(kept.mean() - 0.1) < 4 * (0.09 / n) ** 0.5 + 1e-3
    random = shown[~is_mask & ~kept]
    assert abs(len(random) / n - 0.1) < 4 * (0.09 / n) ** 0.5 + 1e-3
    counts = np.bincount(random, minlength=tokenizer.size)
    assert not counts[:5].any()  # never a special token
    assert counts[5:].std() / counts[5:].mean() < 0.5  # evenly over the vocabulary


def test_special_tokens_are_never_predicted_and_everything_else_stays(tokenizer):
    ids, starts, masked = mask(tokenizer, [3, 5, 40, 64, 17])
    assert not np.isin(masked.masked_at, np.concatenate([starts[:-1], starts[1:] - 1])).any()
    untouched = np.ones(len(ids), bool)
    untouched[masked.masked_at] = False
    assert (masked.shown[untouched] == ids[untouched]).all()
    assert (ids[masked.masked_at] == masked.masked_labels).all()
    assert (np.diff(masked.masked_at) > 0).all()


@pytest.mark.parametrize("length", [3, 4, 10, 23, 64, 128])
def test_each_sequence_predicts_its_rounded_share_and_at_least_one(tokenizer, length):
    _, starts, masked = mask(tokenizer, [length] * 20)
    per_sequence = np.histogram(masked.masked_at, starts)[0]
    assert set(per_sequence.tolist()) == {max(1, round(0.15 * length))}


def test_every_position_is_predicted_alike(tokenizer):
    _, _starts, masked = mask(tokenizer, [22] * 20_000)
    inside = masked.masked_at % 22
    counts = np.bincount(inside, minlength=22)[1:-1]
    assert abs(counts / counts.mean() - 1).max() < 0.1


def test_masks_depend_on_the_key_not_on_the_neighbours(tokenizer):
    ids, starts, maskable = make_sequences(tokenizer, [30, 40, 50])
    keys = random_bits(1, np.arange(3))
    together = mask_tokens(ids, starts, maskable, keys, MaskingSection(), tokenizer)
    alone = mask_tokens(
        ids[30:70], np.array([0, 40]), maskable[30:70], keys[1:2], MaskingSection(), tokenizer
    )
    assert (together.shown[30:70] == alone.shown).all()


def test_other_keys_give_other_masks(tokenizer):
    one, two = (mask(tokenizer, [128] * 10, seed)[2].masked_at for seed in (1, 2))
    assert len(np.intersect1d(one, two)) < 0.5 * len(one)


def slow_whole_word_groups(ids, start, stop, tokenizer):
    words = []
    for at in range(start + 1, stop - 1):
        if tokenizer.continues_word[ids[at]] and words:
            words[-1].append(at)
        else:
            words.append([at])
    return words


def test_whole_words_are_predicted_whole_and_treated_alike(tokenizer):
    ids, starts, masked = mask(tokenizer, [90] * 400, whole_word=True)
    chosen = set(masked.masked_at.tolist())
    total_wanted = 0
    for start, stop in itertools.pairwise(starts):
        words = slow_whole_word_groups(ids, start, stop, tokenizer)
        for word in words:
            assert len(chosen.intersection(word)) in (0, len(word))
            if word[0] in chosen and len(word) > 1:
                shown_mask = {bool(masked.shown[at] == tokenizer.mask_id) for at in word}
                assert len(shown_mask) == 1
        total_wanted += round(0.15 * 90)
    assert abs(len(chosen) / total_wanted - 1) < 0.03
    shares = (masked.shown[masked.masked_at] == tokenizer.mask_id).mean()
    assert abs(shares - 0.8) < 0.03


def test_whole_word_of_a_word_longer_than_the_share_still_predicts_it(tokenizer):
    piece = int(np.flatnonzero(tokenizer.continues_word)[0])
    ids = np.array([tokenizer.cls_id, 7, *[piece] * 8, tokenizer.sep_id])
    maskable = np.array([False, *[True] * 9, False])
    masked = mask_tokens(
        ids,
        np.array([0, 11]),
        maskable,
        random_bits(1, 0),
        MaskingSection(whole_word=True),
        tokenizer,
    )
    assert masked.masked_at.tolist() == list(range(1, 10))
