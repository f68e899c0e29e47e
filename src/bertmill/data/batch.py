"""Batches: a pure function of the step, packed end to end without padding.

Letters in shapes: B sequences, N tokens, P predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from bertmill.arrays import Ints, UInts
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
    """0 up to the first separator, 1 after it, shape (N,)."""
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

    def split(self, rows: Sequence[int]) -> list[Batch]:
        """Cut the batch into micro-batches, which end to end are the batch.

        Parameters
        ----------
        rows : sequence of int
            Rising numbers of the sequences that begin a micro-batch, 0 included.
        """
        return [self._between(first, stop) for first, stop in pairwise([*rows, len(self.lengths)])]

    def _between(self, first: int, stop: int) -> Batch:
        """Take the sequences from `first` to before `stop`."""
        start, end = self.sequence_starts[[first, stop]]
        i, j = np.searchsorted(self.masked_at, [start, end])
        return Batch(
            token_ids=self.token_ids[start:end],
            segment_ids=self.segment_ids[start:end],
            position_ids=self.position_ids[start:end],
            sequence_starts=self.sequence_starts[first : stop + 1] - start,
            masked_at=self.masked_at[i:j] - start,
            masked_labels=self.masked_labels[i:j],
            next_sentence_labels=self.next_sentence_labels[first:stop],
        )


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
        self._masking, self._seed = masking, seed
        self._has_second = pairs.kind != "none"
        self.batch_size = batch_size
        self._maker = PairMaker(store, pairs, name)
        self.num_examples = int(self._maker.block_examples.sum())
        self._order = lru_cache(maxsize=2)(self._epoch_order)
        self._steps_at_once = max(1, min(_EXAMPLES_AT_ONCE, self.num_examples) // batch_size)
        self._pairs_of = lru_cache(maxsize=2)(self._pairs_of_steps)

    def batch_at(self, step: int) -> Batch:
        """Make the batch of a step, counted from 0."""
        return self._assemble(*self._examples_of(step))

    def micro_batches_at(
        self, step: int, max_tokens: int = 0, rank: int = 0, size: int = 1
    ) -> list[Batch]:
        """Make what one rank computes in a step, and nothing else of the step's batch.

        Parameters
        ----------
        step : int
            Counted from 0.
        max_tokens : int
            Tokens of a micro-batch at most; a longer sequence has one of its own. 0: no limit. With
            one sequence in each, the last may have two where sequences do not go into ranks.
        rank, size : int
            Which rank of how many; every one gets as many micro-batches.

        Notes
        -----
        Sequences are dealt out longest first and to and fro, as children choose teams: of lengths
        9, 8, 7, 6, 5, 4 rank 0 of 2 gets 9, 6, 5 and rank 1 gets 8, 7, 4. All ranks cut before the
        same of their rows, where the longest row that any of them has there would be too much.
        """
        pairs, keys = self._examples_of(step)
        order = np.argsort(-_num_tokens(pairs), kind="stable")
        rows = order[_dealt(len(order), rank, size)]
        longest = _num_tokens(pairs)[order[::size]] + self._maker.num_specials
        cuts = _cuts(longest, max_tokens) if max_tokens else [0]
        if len(cuts) > 1 and cuts[-1] * size + size > len(order):
            # The last row alone, which not every rank has: one more joins it, or it the others.
            cuts[-1] -= 1
            if cuts[-1] == cuts[-2]:
                cuts.pop()
        return self._assemble(Pairs._make(c[rows] for c in pairs), keys[rows]).split(cuts)

    def batch_of(self, places: Ints) -> Batch:
        """Make a batch of the examples at any places, counted across all epochs."""
        pairs, keys = self.pairs_at(places)
        return self._assemble(pairs, keys)

    def seen_fraction(self) -> float:
        """Measure the share of the tokens that the pairs of the first epoch hold.

        Of a store of more than a window of blocks, 64 million tokens, it is that of the window.
        """
        window = self._order(0).windows[0]
        (*ranges, _), _ = self.pairs_at(np.arange(window.example_starts[-1]))
        starts, stops = np.concatenate(ranges[::2]), np.concatenate(ranges[1::2])
        rows = np.argsort(starts)
        reached = np.maximum.accumulate(np.append(0, stops[rows]))
        new = np.maximum(0, reached[1:] - np.maximum(starts[rows], reached[:-1]))
        return float(new.sum() / np.diff(self._store.block_token_starts)[window.blocks].sum())

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
                mask_keys[here] = random_bits(mask_key, located.block_numbers, located.examples)
        return pairs, mask_keys

    def _examples_of(self, step: int) -> tuple[Pairs, UInts]:
        """Return the pairs of a step's batch and the keys of their masks."""
        pairs, keys = self._pairs_of(step // self._steps_at_once)
        start = step % self._steps_at_once * self.batch_size
        rows = slice(start, start + self.batch_size)
        return Pairs._make(column[rows] for column in pairs), keys[rows]

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
        rows = np.argsort(-_num_tokens(pairs), kind="stable")
        pairs, keys = Pairs._make(column[rows] for column in pairs), keys[rows]
        a_lengths, b_lengths = pairs.a_stops - pairs.a_starts, pairs.b_stops - pairs.b_starts
        sources, sizes = pairs.a_starts, a_lengths
        if self._has_second:
            sources = interleave(pairs.a_starts, pairs.b_starts)
            sizes = interleave(a_lengths, b_lengths)
        laid = lay_out(
            self._store.gather(sources, sizes),
            a_lengths,
            b_lengths if self._has_second else None,
            self._tokenizer.cls_id,
            self._tokenizer.sep_id,
        )
        shown, masked_at, labels = mask_tokens(laid, keys, self._masking, self._tokenizer)
        is_next = pairs.is_next if self._has_second else pairs.is_next[:0]
        return Batch(
            token_ids=shown,
            segment_ids=laid.segment_ids,
            position_ids=laid.position_ids,
            sequence_starts=laid.starts,
            masked_at=masked_at,
            masked_labels=labels,
            next_sentence_labels=is_next.astype(np.int64),
        )


def _num_tokens(pairs: Pairs) -> Ints:
    """Count each pair's tokens, special tokens apart."""
    return pairs.a_stops - pairs.a_starts + (pairs.b_stops - pairs.b_starts)


def _dealt(count: int, rank: int, size: int) -> Ints:
    """Return which of `count` rows a rank gets: one of each round of `size`, to and fro."""
    rounds = np.arange(-(-count // size))
    rows = rounds * size + np.where(rounds % 2, size - 1 - rank, rank)
    return rows[rows < count]


def _cuts(lengths: Ints, max_tokens: int) -> list[int]:
    """Return the rows that begin a new part, so that none has more than `max_tokens`."""
    starts, cuts = np.append(0, np.cumsum(lengths)), [0]
    while (stop := int(np.searchsorted(starts, starts[cuts[-1]] + max_tokens, "right")) - 1) < len(
        lengths
    ):
        cuts.append(max(stop, cuts[-1] + 1))
        if cuts[-1] == len(lengths):
            cuts.pop()
            break
    return cuts
