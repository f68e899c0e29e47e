"""What an encoder reads: ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, sequences end to end.

Letters in shapes: B sequences, N tokens of all of them, special tokens included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmill.arrays import Bools, Ints


class Layout(NamedTuple):
    """Sequences end to end, special tokens in place."""

    token_ids: Ints
    """Shape (N,)."""
    segment_ids: Ints
    """0 up to the first separator, 1 after it, shape (N,)."""
    position_ids: Ints
    """Place inside the sequence, shape (N,)."""
    starts: Ints
    """Where each sequence begins, and N, shape (B + 1,)."""
    is_text: Bools
    """False at the special tokens around the texts, shape (N,)."""


def lay_out(
    text_ids: npt.NDArray[np.integer],
    a_lengths: Ints,
    b_lengths: Ints | None,
    cls_id: int,
    sep_id: int,
) -> Layout:
    """Put the special tokens around texts or pairs of texts.

    Parameters
    ----------
    text_ids : ndarray of integers
        The texts' ids end to end: a0 a1 a2 ..., or a0 b0 a1 b1 ... with second texts.
    a_lengths, b_lengths : ndarray of int64, shape (B,)
        Tokens of each text. `b_lengths` is None where there are no second texts: an empty second
        text still has its separator.

    Examples
    --------
    >>> made = lay_out(np.array([7, 8, 9]), np.array([2]), np.array([1]), cls_id=1, sep_id=2)
    >>> made.token_ids.tolist()
    [1, 7, 8, 2, 9, 2]
    >>> made.segment_ids.tolist()
    [0, 0, 0, 0, 1, 1]
    """
    first = a_lengths + 2
    second = np.zeros_like(first) if b_lengths is None else b_lengths + 1
    lengths = first + second
    starts = np.concatenate([[0], np.cumsum(lengths)])
    is_text = np.ones(starts[-1], np.bool_)
    is_text[starts[:-1]] = is_text[starts[:-1] + first - 1] = is_text[starts[1:] - 1] = False
    token_ids = np.full(starts[-1], sep_id, np.int64)
    token_ids[starts[:-1]] = cls_id
    token_ids[is_text] = text_ids
    return Layout(
        token_ids,
        np.repeat(np.tile([0, 1], len(lengths)), interleave(first, second)),
        np.arange(starts[-1]) - np.repeat(starts[:-1], lengths),
        starts,
        is_text,
    )


def truncate(
    a_lengths: Ints, b_lengths: Ints, room: int, odd_to_a: npt.ArrayLike = True
) -> tuple[Ints, Ints]:
    """Count the tokens that each text of a pair keeps, where both together may have `room`.

    The longer one loses tokens until they are as long as each other, then both do: lengths 7 and 2
    in a room of 5 become 3 and 2, 7 and 4 too.

    Parameters
    ----------
    a_lengths, b_lengths : ndarray of int64, shape (B,)
    room : int
    odd_to_a : bool or ndarray of bool, shape (B,)
        Which of two texts that are cut to the same length keeps the odd token. The published
        routine for pretraining leaves it to the first, ``longest_first`` of ``transformers`` to the
        one that was longer.
    """
    a_half = (room + np.asarray(odd_to_a, np.int64)) // 2
    a_kept = np.minimum(a_lengths, np.maximum(room - b_lengths, a_half))
    return a_kept, np.minimum(b_lengths, room - a_kept)


def interleave(a: Ints, b: Ints) -> Ints:
    """Take from two arrays in turn: a0 b0 a1 b1 ..."""
    return np.stack([a, b], 1).ravel()


def spans(starts: Ints, lengths: Ints) -> Ints:
    """List the places of ranges: starts 5 and 0, lengths 2 and 3 give 5, 6, 0, 1, 2."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    places: Ints = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return places
