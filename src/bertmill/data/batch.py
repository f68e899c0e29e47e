"""Batches: a pure function of the step, packed end to end without padding.

Letters in shapes: B sequences, N tokens, P predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmill.arrays import Bools, Ints, UInts
from bertmill.config import MaskingSection, PairsSection
from bertmill.data.layout import interleave, lay_out
from bertmill.data.masking import mask_tokens
from bertmill.data.order import EpochOrder
from bertmill.data.pairs import PairMaker, Pairs
from bertmill.data.randomness import make_key, random_bits
from bertmill.data.store import TokenStore
from bertmill.text.tokenizer import Tokenizer

# Pairs are drawn for several batches at once: a draw takes some hundred calls of numpy, more where
# there are many blocks, and those cost the same for 32 examples as for a thousand.
_EXAMPLES_AT_ONCE = 4096


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, longest first, so that those of equal length stand together."""

    token_ids: Ints
    """As shown to the encoder, masks in place, shape (N,)."""
    segment_ids: Ints
    """0 up to the first separator, 1 behind it, shape (N,)."""
    position_ids: Ints
    """Place inside the sequence, shape (N,)."""
    sequence_starts: Ints
    """Where each sequence begins, and N, shape (B + 1,)."""
    masked_at: Ints
    """Rising positions of the predicted tokens, shape (P,)."""
    masked_labels: Ints
    """Their true ids, shape (P,)."""
    next_sentence_labels: Ints
    """1 where the second segment follows the first, else 0, shape (B,); with ``pairs.kind=none``
    shape (0,). Hugging Face's ``next_sentence_label`` is the other way round."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in each sequence."""
        return [int(n) for n in np.diff(self.sequence_starts)]

    @property
    def selected_at(self) -> Ints:
        """Rising positions that the losses read: predictions and, with pairs, first tokens."""
        if not len(self.next_sentence_labels):
            return self.masked_at
        return np.union1d(self.masked_at, self.sequence_starts[:-1])

    @property
    def counts(self) -> Counts:
        """Answers that the losses are summed over."""
        return Counts(len(self.masked_labels), len(self.next_sentence_labels))

    def padded(self, max_length: int, max_predictions: int, pad_id: int) -> PaddedBatch:
        """Lay the batch out in rectangles, as programs that pad take it.

        Parameters
        ----------
        max_length : int
            Width of the token rectangles; no sequence may be longer.
        max_predictions : int
            Width of the prediction rectangles; no sequence may have more.
        pad_id : int

        Raises
        ------
        ValueError
            A sequence does not fit.
        """
        lengths = np.diff(self.sequence_starts)
        owner = np.searchsorted(self.sequence_starts, self.masked_at, "right") - 1
        predictions = np.bincount(owner, minlength=len(lengths))
        if lengths.max() > max_length or predictions.max() > max_predictions:
            raise ValueError(
                f"a sequence has {lengths.max()} tokens and {predictions.max()} predictions at most"
            )
        has_token = np.arange(max_length) < lengths[:, None]
        has_prediction = np.arange(max_predictions) < predictions[:, None]

        def lay_out(values: Ints, where: Bools, fill: int) -> Ints:
            out = np.full(where.shape, fill, np.int64)
            out[where] = values
            return out

        return PaddedBatch(
            tokens=lay_out(self.token_ids, has_token, pad_id),
            segments=lay_out(self.segment_ids, has_token, 0),
            valid_lengths=lengths,
            masked_positions=lay_out(
                self.masked_at - self.sequence_starts[owner], has_prediction, 0
            ),
            mask_weights=has_prediction.astype(np.float32),
            masked_labels=lay_out(self.masked_labels, has_prediction, 0),
            next_sentence_labels=self.next_sentence_labels,
        )


class Counts(NamedTuple):
    """What the losses of a step are divided by."""

    num_predictions: int
    num_pairs: int


class PaddedBatch(NamedTuple):
    """The reference program's seven tensors: rectangles, L tokens wide and K predictions wide."""

    tokens: Ints
    """[B, L]."""
    segments: Ints
    """[B, L]."""
    valid_lengths: Ints
    """[B]."""
    masked_positions: Ints
    """Places inside the sequence, [B, K]."""
    mask_weights: npt.NDArray[np.float32]
    """1 at a prediction, 0 at a filler, [B, K]."""
    masked_labels: Ints
    """[B, K]."""
    next_sentence_labels: Ints
    """1 = the second segment follows the first, [B]. Hugging Face's label is the other way."""


class Batches:
    """All batches of a run over one split.

    Parameters
    ----------
    store : TokenStore
    tokenizer : Tokenizer
    pairs, masking : PairsSection, MaskingSection
    batch_size : int
    seed : int
    name : str
        What to call the text in an error.

    Raises
    ------
    CorpusError
        The store gives no example, or random seconds need a second document.

    Notes
    -----
    `batch_at` needs the store, the recipe and the step, nothing else. An epoch visits every example
    once; batches run on across its end.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        pairs: PairsSection,
        masking: MaskingSection,
        batch_size: int,
        seed: int,
        name: str,
    ) -> None:
        self._store, self._tokenizer = store, tokenizer
        self._pairs, self._masking, self._seed = pairs, masking, seed
        self.batch_size = batch_size
        self._maker = PairMaker(store, pairs, name)
        self.num_examples = int(self._maker.block_examples.sum())
        self._order = lru_cache(maxsize=2)(self._epoch_order)
        self._steps_at_once = max(1, min(_EXAMPLES_AT_ONCE, self.num_examples) // batch_size)
        self._pairs_of = lru_cache(maxsize=2)(self._pairs_of_steps)

    def batch_at(self, step: int) -> Batch:
        """Make the batch of a step, counted from 0."""
        pairs, keys = self._pairs_of(step // self._steps_at_once)
        start = step % self._steps_at_once * self.batch_size
        rows = slice(start, start + self.batch_size)
        return self._assemble(Pairs._make(column[rows] for column in pairs), keys[rows])

    def batch_of(self, places: Ints) -> Batch:
        """Make a batch of the examples at any places, counted across all epochs."""
        pairs, keys = self.pairs_at(places)
        return self._assemble(pairs, keys)

    def pairs_at(self, places: Ints) -> tuple[Pairs, UInts]:
        """Draw the pairs at these places, and the key of each for its masks."""
        ranges = np.empty((4, len(places)), np.int64)
        pairs = Pairs(ranges[0], ranges[1], ranges[2], ranges[3], np.empty(len(places), bool))
        mask_keys = np.empty(len(places), np.uint64)
        epochs = places // self.num_examples
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            pair_key = make_key(self._seed, "pairs", epoch)
            mask_key = make_key(self._seed, "masks", epoch)
            for located in self._order(epoch).locate(places[rows] - epoch * self.num_examples):
                drawn = self._maker.draw(located, pair_key)
                here = rows[located.rows]
                for column, values in zip(pairs, drawn, strict=True):
                    column[here] = values
                blocks = located.window.blocks[located.blocks]
                mask_keys[here] = random_bits(mask_key, blocks, located.examples)
        return pairs, mask_keys

    def _pairs_of_steps(self, number: int) -> tuple[Pairs, UInts]:
        num_examples = self._steps_at_once * self.batch_size
        return self.pairs_at(np.arange(number * num_examples, (number + 1) * num_examples))

    def _epoch_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self._maker.block_examples,
            self._store.block_documents,
            make_key(self._seed, "order", epoch),
        )

    def _assemble(self, pairs: Pairs, keys: UInts) -> Batch:
        has_second = self._pairs.kind != "none"
        a_lengths = pairs.a_stops - pairs.a_starts
        b_lengths = pairs.b_stops - pairs.b_starts
        by_length = np.argsort(-(a_lengths + b_lengths), kind="stable")
        a_starts, b_starts = pairs.a_starts[by_length], pairs.b_starts[by_length]
        a_lengths, b_lengths, keys = a_lengths[by_length], b_lengths[by_length], keys[by_length]
        sources, sizes = a_starts, a_lengths
        if has_second:
            sources, sizes = interleave(a_starts, b_starts), interleave(a_lengths, b_lengths)
        laid = lay_out(
            self._store.gather(sources, sizes),
            a_lengths,
            b_lengths if has_second else None,
            self._tokenizer.cls_id,
            self._tokenizer.sep_id,
        )
        shown, masked_at, masked_labels = mask_tokens(
            laid.token_ids, laid.starts, laid.is_text, keys, self._masking, self._tokenizer
        )
        return Batch(
            token_ids=shown,
            segment_ids=laid.segment_ids,
            position_ids=laid.position_ids,
            sequence_starts=laid.starts,
            masked_at=masked_at,
            masked_labels=masked_labels,
            next_sentence_labels=pairs.is_next[by_length].astype(np.int64)
            if has_second
            else np.empty(0, np.int64),
        )
