"""Texts as packed batches.

Letters in shapes: B sequences, N tokens of all of them end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from bertmill.arrays import Ints
from bertmill.config import NetworkSection
from bertmill.data.layout import spans
from bertmill.errors import InputError
from bertmill.model.packed import PackedTokens
from bertmill.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")

_TOKENS_AT_ONCE = 2048
"""As many as keep a core's matrix products busy and their results in its cache."""
_one_caller = Lock()


@dataclass(frozen=True)
class Sequences:
    """Texts or pairs of texts as tokens end to end, special tokens included."""

    token_ids: Ints
    """Shape (N,)."""
    segment_ids: Ints
    """0 up to the first separator, 1 behind it, shape (N,)."""
    starts: Ints
    """Where each sequence begins, and N, shape (B + 1,)."""
    num_cut: int
    """Sequences that were longer than allowed; their ends are missing."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens in each sequence, shape (B,)."""
        return np.diff(self.starts)

    def pack(self, rows: Ints, device: torch.device) -> PackedTokens:
        """Pack these rows for the encoder, in their order; by length is fastest."""
        lengths = self.lengths[rows]
        where = spans(self.starts[rows], lengths)
        packed = PackedTokens.pack(
            torch.from_numpy(self.token_ids[where]),
            torch.from_numpy(self.segment_ids[where]),
            torch.from_numpy(where - np.repeat(self.starts[rows], lengths)),
            lengths.tolist(),
        )
        return packed.to(device)


def make_sequences(
    tokenizer: Tokenizer,
    first: Sequence[str],
    second: Sequence[str] | None,
    max_length: int,
) -> Sequences:
    """Tokenize texts, or pairs of texts, and put the special tokens around them.

    Parameters
    ----------
    tokenizer : Tokenizer
    first : sequence of str
    second : sequence of str or None
        As many.
    max_length : int
        Tokens of a sequence at most, 3 or more. The longer text of a pair loses its end first, as
        with ``longest_first`` in ``transformers``.

    Raises
    ------
    InputError
        Something is not text.
    """
    for texts in (first, () if second is None else second):
        if not isinstance(texts, Sequence | np.ndarray):
            refuse_no_text(texts)  # one thing that is no list
        for text in texts:
            refuse_no_text(text)
    return assemble(
        tokenizer,
        tokenizer.encode_batch(first),
        None if second is None else tokenizer.encode_batch(second),
        max_length,
    )


def assemble(
    tokenizer: Tokenizer,
    first: tuple[Ints, Ints],
    second: tuple[Ints, Ints] | None,
    max_length: int,
) -> Sequences:
    """Put the special tokens around texts that are tokens already: ids end to end, and lengths."""
    a_ids, a_lengths = first
    b_ids, b_lengths = second or (np.empty(0, np.int64), np.zeros_like(a_lengths))
    num_specials = 2 if second is None else 3
    a_kept, b_kept = _cut(a_lengths, b_lengths, max_length - num_specials)
    a_starts, b_starts = np.cumsum(a_lengths) - a_lengths, np.cumsum(b_lengths) - b_lengths

    # [CLS] a a a [SEP] b b [SEP]: lengths 3 and 2 make 8 tokens.
    lengths = a_kept + b_kept + num_specials
    starts = np.concatenate([[0], np.cumsum(lengths)])
    token_ids = np.full(starts[-1], tokenizer.sep_id, np.int64)
    token_ids[starts[:-1]] = tokenizer.cls_id
    token_ids[spans(starts[:-1] + 1, a_kept)] = a_ids[spans(a_starts, a_kept)]
    segment_ids = np.zeros(starts[-1], np.int64)
    if second is not None:
        b_at = starts[:-1] + 2 + a_kept
        token_ids[spans(b_at, b_kept)] = b_ids[spans(b_starts, b_kept)]
        segment_ids[spans(b_at, b_kept + 1)] = 1
    num_cut = int(((a_kept < a_lengths) | (b_kept < b_lengths)).sum())
    return Sequences(token_ids, segment_ids, starts, num_cut)


def by_length(lengths: Ints, tokens_at_once: int = _TOKENS_AT_ONCE) -> list[Ints]:
    """Group rows, longest first, so that a group has about so many tokens; a row at least."""
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    group = (np.cumsum(lengths[order]) - 1) // tokens_at_once
    return np.split(order, np.flatnonzero(np.diff(group)) + 1)


def pack_lists(token_ids: Sequence[Sequence[int]], device: torch.device) -> PackedTokens:
    """Pack sequences of one segment, special tokens included."""
    flat = torch.tensor([i for ids in token_ids for i in ids])
    places = torch.tensor([place for ids in token_ids for place in range(len(ids))])
    packed = PackedTokens.pack(flat, torch.zeros_like(flat), places, list(map(len, token_ids)))
    return packed.to(device)


def map_batches(
    compute: Callable[[Ints], _Result], batches: Sequence[Ints], device: torch.device
) -> list[_Result]:
    """Compute something of each batch, a batch a core: no core waits for another in every layer.

    Threads of the caller take turns: how many threads torch uses is a setting of the process.
    """
    with _one_caller:
        num_threads = torch.get_num_threads()
        if device.type != "cpu" or num_threads == 1 or len(batches) == 1:
            return [compute(batch) for batch in batches]
        try:
            with ThreadPoolExecutor(num_threads, "", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(compute, batches))
        finally:
            torch.set_num_threads(num_threads)  # the workers' setting holds for later threads too


def refuse_no_text(text: object) -> None:
    """Raise `InputError` unless this is text that can be written as UTF-8."""
    if not isinstance(text, str):
        raise InputError("text", f"{text!r} is not text", "give a string or a list of strings")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("text", "holds half a character (a lone surrogate)", "delete it") from None


def refuse_too_long(token_ids: Sequence[int], section: NetworkSection) -> None:
    """Raise `InputError` where a sequence has more tokens than the model has positions."""
    longest = section.max_position_embeddings
    if len(token_ids) > longest:
        raise InputError(
            "text", f"has {len(token_ids)} tokens, the model takes {longest}", "give a shorter text"
        )


def _cut(a_lengths: Ints, b_lengths: Ints, room: int) -> tuple[Ints, Ints]:
    """Shorten pairs to `room` tokens: the longer text first, then both to a half."""
    shorter = np.minimum(a_lengths, b_lengths)
    fits = a_lengths + b_lengths <= room
    # The odd token goes to the second text, unless the first is longer.
    small = np.minimum(shorter, room // 2)
    large = room - small
    swapped = a_lengths > b_lengths
    a_cut, b_cut = np.where(swapped, large, small), np.where(swapped, small, large)
    return np.where(fits, a_lengths, a_cut), np.where(fits, b_lengths, b_cut)
