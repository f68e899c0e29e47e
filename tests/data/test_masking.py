import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmill.config import MaskingSection, PairsSection, TokenizerSection
from bertmill.data.batch import Batches
from bertmill.data.layout import Layout
from bertmill.data.masking import _CHOICE, _KIND, _REPLACEMENT, mask_tokens
from bertmill.data.randomness import below, make_key, random_bits, uniform
from bertmill.text.tokenizer import Tokenizer
from bertmill.text.vocabulary import train_tokenizer


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


def mask_ids(ids, starts, maskable, *rest):
    """Mask sequences whose segments and places do not matter."""
    return mask_tokens(Layout(ids, ids, ids, starts, maskable), *rest)


def mask(tokenizer, lengths, seed=0, **knobs):
    ids, starts, maskable = make_sequences(tokenizer, lengths)
    keys = random_bits(make_key(seed, "test"), np.arange(len(lengths)))
    return ids, starts, mask_ids(ids, starts, maskable, keys, MaskingSection(**knobs), tokenizer)


def assert_kinds_are_80_10_10(shown, labels, tokenizer):
    """Binomial within 4 sigma; a random token is the true one once in all ordinary ones."""
    n, ordinary = len(labels), np.flatnonzero(~tokenizer.is_special)
    chance = np.where(tokenizer.is_special[labels], 0.0, 1 / len(ordinary)).mean()
    is_mask, is_own = shown == tokenizer.mask_id, shown == labels
    for share, wanted in [
        (is_mask.mean(), 0.8),
        (is_own.mean(), 0.1 + 0.1 * chance),
        ((~is_mask & ~is_own).mean(), 0.1 - 0.1 * chance),
    ]:
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5, (share, wanted)


def assert_replacements_are_uniform(shown, labels, tokenizer):
    """Chi-square over all ordinary tokens; where the true one is drawn it counts as kept."""
    ordinary = np.flatnonzero(~tokenizer.is_special)
    replaced = shown[(shown != labels) & (shown != tokenizer.mask_id)]
    assert not tokenizer.is_special[replaced].any()
    found = np.bincount(replaced, minlength=tokenizer.size)[ordinary]
    could_be = len(labels) - np.bincount(labels, minlength=tokenizer.size)[ordinary]
    expected = 0.1 * could_be / len(ordinary)
    assert (found[expected > 25] > 0).all()
    chi_square = ((found - expected) ** 2 / expected).sum()
    # Cells with few counts spread more than 2 a degree of freedom.
    spread = (2 * len(ordinary) + (1 / expected).sum()) ** 0.5
    assert abs(chi_square - len(ordinary)) < 4 * spread, (chi_square, len(ordinary), spread)


def test_shares_are_the_recipes(tokenizer):
    _, _, masked = mask(tokenizer, [128] * 6000)
    labels, shown = masked.masked_labels, masked.shown[masked.masked_at]
    assert len(labels) == 6000 * round(0.15 * 128) > 100_000
    assert_kinds_are_80_10_10(shown, labels, tokenizer)
    assert_replacements_are_uniform(shown, labels, tokenizer)


def test_other_shares_are_kept_too(tokenizer):
    _, _, masked = mask(
        tokenizer, [64] * 500, mask_token_fraction=0.3, random_token_fraction=0.0, mask_fraction=0.4
    )
    labels, shown = masked.masked_labels, masked.shown[masked.masked_at]
    is_mask = shown == tokenizer.mask_id
    assert len(labels) == 500 * round(0.4 * 64)
    assert (shown[~is_mask] == labels[~is_mask]).all()
    assert abs(is_mask.mean() - 0.3) < 4 * (0.21 / len(labels)) ** 0.5


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


def test_masks_depend_on_the_key_not_on_the_neighbors(tokenizer):
    ids, starts, maskable = make_sequences(tokenizer, [30, 40, 50])
    keys = random_bits(1, np.arange(3))
    together = mask_ids(ids, starts, maskable, keys, MaskingSection(), tokenizer)
    alone = mask_ids(
        ids[30:70], np.array([0, 40]), maskable[30:70], keys[1:2], MaskingSection(), tokenizer
    )
    assert (together.shown[30:70] == alone.shown).all()


def test_other_keys_give_other_masks(tokenizer):
    one, two = (mask(tokenizer, [128] * 10, seed)[2].masked_at for seed in (1, 2))
    assert len(np.intersect1d(one, two)) < 0.5 * len(one)


def slow_words(ids, places, whole_word, tokenizer):
    """What is chosen together: lists of neighboring places."""
    words = []
    for at in places:
        joins = whole_word and words and words[-1][-1] == at - 1
        if joins and tokenizer.continues_word[ids[at]]:
            words[-1].append(at)
        else:
            words.append([at])
    return words


def test_whole_words_are_predicted_whole_and_treated_alike(tokenizer):
    ids, starts, masked = mask(tokenizer, [90] * 400, whole_word=True)
    chosen = set(masked.masked_at.tolist())
    total_wanted = 0
    for start, stop in itertools.pairwise(starts):
        words = slow_words(ids, range(start + 1, stop - 1), True, tokenizer)
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
    masked = mask_ids(
        ids,
        np.array([0, 11]),
        maskable,
        random_bits(1, 0),
        MaskingSection(whole_word=True),
        tokenizer,
    )
    assert masked.masked_at.tolist() == list(range(1, 10))


# --- a slow oracle of our own rule ---------------------------------------------------------------


def slow_mask(ids, starts, maskable, keys, section, tokenizer):
    """Word by word in random order until the number is reached, as the docstring says."""
    ordinary = np.flatnonzero(~tokenizer.is_special).tolist()
    shown, chosen = ids.tolist(), []
    for (start, stop), key in zip(itertools.pairwise(starts.tolist()), keys, strict=True):
        wanted = max(1, round(section.mask_fraction * (stop - start)))
        inside = np.arange(stop - start)
        choice = random_bits(key, _CHOICE, inside)
        kind = uniform(key, _KIND, inside)
        replacement = below(len(ordinary), key, _REPLACEMENT, inside)
        places = [at for at in range(start, stop) if maskable[at]]
        words = slow_words(ids, places, section.whole_word, tokenizer)
        num_passed = 0
        for word in sorted(words, key=lambda word: choice[word[0] - start]):
            num_inside = wanted - num_passed
            if num_passed == 0 or 2 * num_inside >= len(word):
                chosen += word
                for at in word:
                    if kind[word[0] - start] < section.mask_token_fraction:
                        shown[at] = tokenizer.mask_id
                    elif kind[word[0] - start] < (
                        section.mask_token_fraction + section.random_token_fraction
                    ):
                        shown[at] = ordinary[replacement[at - start]]
            num_passed += len(word)
    return shown, sorted(chosen)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 299), st.booleans()), min_size=1, max_size=40),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.01, 0.99),
    st.sampled_from([(0.8, 0.1), (0.0, 1.0), (0.2, 0.5), (1.0, 0.0)]),
    st.booleans(),
    st.integers(0, 2**62),
)
def test_masks_equal_the_slow_oracle(tokenizer, sequences, fraction, shares, whole_word, seed):
    """Any ids, special ones too, and gaps that are not maskable anywhere inside the frame."""
    sequences = [[(2, False), (7, True), *sequence, (3, False)] for sequence in sequences]
    starts = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    ids, maskable = (
        np.array(column)
        for column in zip(*(token for sequence in sequences for token in sequence), strict=True)
    )
    section = MaskingSection(
        mask_fraction=fraction,
        mask_token_fraction=shares[0],
        random_token_fraction=shares[1],
        whole_word=whole_word,
    )
    keys = random_bits(seed, np.arange(len(sequences)))
    masked = mask_ids(ids, starts, maskable, keys, section, tokenizer)
    shown, chosen = slow_mask(ids, starts, maskable, keys, section, tokenizer)
    assert masked.masked_at.tolist() == chosen
    assert masked.shown.tolist() == shown
    assert masked.masked_labels.tolist() == ids[chosen].tolist()


# --- real text -----------------------------------------------------------------------------------


def real_batch(store, whole_word, kind="segments", epoch=0):
    """An epoch as one batch: its true ids, what is maskable, the keys of its masks."""
    section = PairsSection(kind=kind, max_length=128)
    masking = MaskingSection(whole_word=whole_word)
    batches = Batches(store.train, store.tokenizer, section, masking, 1, 3, "text")
    places = np.arange(epoch * batches.num_examples, (epoch + 1) * batches.num_examples)
    batch = batches.batch_of(places)
    pairs, keys = batches.pairs_at(places)
    lengths = pairs.a_stops - pairs.a_starts + pairs.b_stops - pairs.b_starts
    ids = batch.token_ids.copy()
    ids[batch.masked_at] = batch.masked_labels
    maskable = (ids != store.tokenizer.cls_id) & (ids != store.tokenizer.sep_id)
    return batch, ids, maskable, keys[np.argsort(-lengths, kind="stable")]


@pytest.mark.parametrize("kind", ["segments", "none"])
@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_of_real_text_equal_the_slow_oracle(real_store, whole_word, kind):
    batch, ids, maskable, keys = real_batch(real_store, whole_word, kind)
    starts, masking = batch.sequence_starts[:400], MaskingSection(whole_word=whole_word)
    shown, chosen = slow_mask(ids, starts, maskable, keys[:399], masking, real_store.tokenizer)
    assert batch.masked_at[batch.masked_at < starts[-1]].tolist() == chosen
    assert batch.token_ids[: starts[-1]].tolist() == shown[: starts[-1]]


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_tokens_of_real_text_are_never_predicted(real_store, whole_word):
    batch, ids, maskable, _ = real_batch(real_store, whole_word)
    tokenizer = real_store.tokenizer
    frame = [batch.sequence_starts[:-1], batch.sequence_starts[1:] - 1]
    frame += [np.flatnonzero(np.diff(batch.segment_ids) == 1)]
    assert np.flatnonzero(~maskable).tolist() == np.sort(np.concatenate(frame)).tolist()
    assert maskable[batch.masked_at].all()
    special = {int(i) for i in np.unique(batch.masked_labels) if tokenizer.is_special[i]}
    assert special <= {tokenizer.unk_id}  # an ordinary target
    same = np.setdiff1d(np.arange(len(ids)), batch.masked_at)
    assert (batch.token_ids[same] == ids[same]).all()


def predictions(store, whole_word, at_least=100_000):
    """Shown and true tokens of several epochs, whether each continues a word, and the share."""
    parts, num_wanted, epoch = [], 0, 0
    while sum(len(part[0]) for part in parts) < at_least:
        batch, ids, maskable, _ = real_batch(store, whole_word, epoch=epoch)
        at = batch.masked_at
        continues = store.tokenizer.continues_word[ids] & np.append(False, maskable[:-1])
        parts.append((batch.token_ids[at], batch.masked_labels, continues[at]))
        num_wanted += int(np.rint(0.15 * np.diff(batch.sequence_starts)).clip(1).sum())
        epoch += 1
    return *(np.concatenate(column) for column in zip(*parts, strict=True)), num_wanted


def test_shares_of_real_text(real_store):
    shown, labels, _, num_wanted = predictions(real_store, whole_word=False)
    assert len(labels) == num_wanted
    assert_kinds_are_80_10_10(shown, labels, real_store.tokenizer)
    assert_replacements_are_uniform(shown, labels, real_store.tokenizer)


def test_whole_word_shares_of_real_text(real_store):
    """A word is one toss: its first piece tells the kinds, its other pieces follow."""
    tokenizer = real_store.tokenizer
    shown, labels, continues, num_wanted = predictions(real_store, whole_word=True)
    # Half a word inside is enough: words of two pieces make the share a little high.
    assert abs(len(labels) / num_wanted - 1) < 0.01
    assert_kinds_are_80_10_10(shown[~continues], labels[~continues], tokenizer)
    assert_replacements_are_uniform(shown[~continues], labels[~continues], tokenizer)
    first = np.flatnonzero(~continues)[np.cumsum(~continues) - 1]
    is_mask, is_own = shown == tokenizer.mask_id, shown == labels
    assert (is_mask == is_mask[first]).all()
    # A random piece is the true one now and then.
    assert (is_own != is_own[first]).sum() <= 0.002 * len(labels)


@pytest.mark.parametrize("kind", ["sentences", "segments", "none"])
def test_masks_of_two_epochs_meet_as_often_as_chance(real_store, kind):
    """Only `none` shows the same sequences in both; there the places can be compared."""
    one, two = (real_batch(real_store, False, kind, epoch) for epoch in (0, 1))
    assert one[0].masked_at.tolist() != two[0].masked_at.tolist()
    if kind == "none":
        by_text = []
        for batch, ids, _, _ in (one, two):
            chosen = np.zeros(len(ids), bool)
            chosen[batch.masked_at] = True
            sequences = itertools.pairwise(batch.sequence_starts)
            by_text.append({ids[a:b].tobytes(): chosen[a:b] for a, b in sequences})
        both = [(by_text[0][key], by_text[1][key]) for key in by_text[0]]
        n = sum(a.sum() for a, _ in both)
        share = sum((a & b).sum() for a, b in both) / n
        assert abs(share - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5 + 0.005
