"""Texts as packed batches.

Letters in shapes: B sequences, N tokens of all of them end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bertmill.arrays import Ints
from bertmill.config import NetworkSection
from bertmill.data.layout import interleave, lay_out, spans, truncate
from bertmill.errors import InputError
from bertmill.model.packed import PackedTokens
from bertmill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sequences:
    """Texts or pairs of texts as tokens end to end, special tokens included."""

    token_ids: Ints
    """Shape (N,)."""
    segment_ids: Ints
    """0 up to the first separator, 1 after it, shape (N,)."""
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
        """Pack these rows for the encoder, in their order; sorted by length is fastest."""
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
        Most tokens of a sequence, 3 or more. The longer text of a pair loses its end first, as with
        ``longest_first`` in ``transformers``.

    Raises
    ------
    InputError
        Something is not text.
    """
    for texts in (first, () if second is None else second):
        if not isinstance(texts, Sequence | np.ndarray):
            refuse_non_text(texts)  # a single value that is not a list
        for text in texts:
            refuse_non_text(text)
    seconds = None if second is None else tokenizer.encode_batch(second)
    return assemble(tokenizer, tokenizer.encode_batch(first), seconds, max_length)


def assemble(
    tokenizer: Tokenizer,
    first: tuple[Ints, Ints],
    second: tuple[Ints, Ints] | None,
    max_length: int,
) -> Sequences:
    """Put the special tokens around tokenized texts, given as ids end to end and lengths."""
    ids, a_lengths = first
    b_ids, b_lengths = second or (ids[:0], np.zeros_like(a_lengths))
    room = max_length - (2 if second is None else 3)
    a_kept, b_kept = truncate(a_lengths, b_lengths, room, a_lengths > b_lengths)
    a_starts = np.cumsum(a_lengths) - a_lengths
    b_starts = len(ids) + np.cumsum(b_lengths) - b_lengths
    places = spans(interleave(a_starts, b_starts), interleave(a_kept, b_kept))
    laid = lay_out(
        np.concatenate([ids, b_ids])[places],
        a_kept,
        None if second is None else b_kept,
        tokenizer.cls_id,
        tokenizer.sep_id,
    )
    num_cut = int(np.sum((a_kept < a_lengths) | (b_kept < b_lengths)))
    return Sequences(laid.token_ids, laid.segment_ids, laid.starts, num_cut)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model is, and its input must be."""
    return next(model.parameters()).device


def refuse_non_text(text: object) -> None:
    """Raise `InputError` unless this is text that can be written as UTF-8."""
    if not isinstance(text, str):
        raise InputError("text", f"{text!r} is not text", "give a string or a list of strings")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("text", "has a lone surrogate (half a character)", "delete it") from None


def refuse_too_long(num_tokens: int, section: NetworkSection) -> None:
    """Raise `InputError` where a sequence has more tokens than the model has positions."""
    longest = section.max_position_embeddings
    if num_tokens > longest:
        raise InputError("text", f"has {num_tokens} tokens, but the model takes {longest}")
