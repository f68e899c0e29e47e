"""Masking: which tokens are predicted, and what is shown in their place (Devlin et al. 2019, A.1).

Letters in shapes: B sequences, N tokens, P predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bertmill.arrays import Ints, UInts
from bertmill.config import MaskingSection
from bertmill.data.layout import Layout
from bertmill.data.randomness import below, random_bits, uniform
from bertmill.text.tokenizer import Tokenizer

# What a draw is for: the first counter after a sequence's key, apart from those of pairs.
_CHOICE, _KIND, _REPLACEMENT = 64, 65, 66

_RANDOM_BITS = np.uint64(40)


class Masked(NamedTuple):
    """What masking did to a batch."""

    shown: Ints
    """Ids with the masks in place, shape (N,)."""
    masked_at: Ints
    """Rising positions of the predicted tokens, shape (P,)."""
    masked_labels: Ints
    """Their true ids, shape (P,)."""


def mask_tokens(laid: Layout, keys: UInts, section: MaskingSection, tokenizer: Tokenizer) -> Masked:
    """Choose the predicted tokens of each sequence and put masks in their place.

    Each sequence predicts ``max(1, round(mask_fraction * length))`` tokens, its special tokens
    counted in the length but never predicted. `Deviation:` random replacements are never special
    tokens.

    With ``whole_word``, words are taken in random order; the word across which the number of
    predictions is reached is taken when at least half of it lies inside, which keeps the share to
    within a hundredth of itself, and all pieces of a word are treated alike.

    Parameters
    ----------
    laid : Layout
    keys : ndarray of uint64, shape (B,)
        One for each sequence and epoch.
    """
    token_ids, lengths = laid.token_ids, np.diff(laid.starts)
    at = np.flatnonzero(laid.is_text)
    sequence = np.repeat(np.arange(len(lengths)), lengths)[at]
    inside = at - laid.starts[sequence]
    wanted = np.rint(section.mask_fraction * lengths).astype(np.int64).clip(1)

    # A group is what is chosen and treated together: a token, or a word of several pieces.
    if section.whole_word:
        joins = tokenizer.continues_word[token_ids[at]]
        joins[1:] &= np.diff(at) == 1
        joins[:1] = False
        first = np.flatnonzero(~joins)
        group = np.cumsum(~joins) - 1
    else:
        first = group = np.arange(len(at))
    group_sequence, group_inside = sequence[first], inside[first]
    sizes = np.diff(np.append(first, len(at)))

    # Sequences stay in their order, and the groups of each are shuffled: a sort key holds the
    # number of the sequence above and random bits below. Five tokens of one sequence, one group
    # each, of which two are wanted:
    #     group     0  1  2  3  4        order     3  0  4  1  2     by rising bits
    #     bits     .2 .7 .9 .1 .4        before    0  1  2  3  4     tokens taken before
    #                                    taken     y  y  n  n  n     0, then 2 * 1 + 1 <= 2 * 2
    # Groups 0 and 3 are predicted. Of a word of 3 pieces that comes second, 2 * 1 + 3 <= 4 fails:
    # less than half of it lies inside what is wanted.
    random = random_bits(keys[group_sequence], _CHOICE, group_inside)
    order = np.argsort(
        (group_sequence.astype(np.uint64) << _RANDOM_BITS)
        | (random >> (np.uint64(64) - _RANDOM_BITS))
    )
    sizes = sizes[order]
    before = np.cumsum(sizes) - sizes
    before -= before[np.searchsorted(group_sequence, np.arange(len(lengths)))[group_sequence]]
    taken = np.zeros(len(first), bool)
    taken[order] = (before == 0) | (2 * before + sizes <= 2 * wanted[group_sequence])

    chosen = np.flatnonzero(taken[group])
    masked_at, own_keys = at[chosen], keys[sequence[chosen]]
    kind = uniform(own_keys, _KIND, inside[first[group[chosen]]])
    labels, ordinary = token_ids[masked_at], np.flatnonzero(~tokenizer.is_special)
    shown = token_ids.copy()
    shown[masked_at] = np.where(
        kind < section.mask_token_fraction,
        tokenizer.mask_id,
        np.where(
            kind < section.mask_token_fraction + section.random_token_fraction,
            ordinary[below(len(ordinary), own_keys, _REPLACEMENT, inside[chosen])],
            labels,
        ),
    )
    return Masked(shown, masked_at, labels)
