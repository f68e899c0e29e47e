"""Examples and pairs: which sequences a store holds, and what each becomes in an epoch.

The list of examples is fixed by the store and the recipe's ``[pairs]`` alone. An epoch's draws
decide what an example looks like (next or random second, where the first segment ends, what is cut
off), never which examples there are, so that an epoch visits each of them exactly once.

Letters in shapes: B examples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bertmill.arrays import Bools, Ints, UInts
from bertmill.config import PairsSection
from bertmill.data.layout import truncate
from bertmill.data.order import WINDOW_BLOCKS, Located
from bertmill.data.randomness import below, random_bits, uniform
from bertmill.data.store import TokenStore
from bertmill.errors import CorpusError

# What a draw is for: the first counter after an example's key.
_IS_NEXT, _IS_SHORT, _TARGET, _SPLIT, _DOCUMENT, _SENTENCE, _KEPT_A, _KEPT_B = range(8)

SEGMENTS_RULE = 2
"""The rule by which ``segments`` are cut and drawn; another one makes other batches of a run."""
_REDRAWS = 32

_Offsets = npt.NDArray[np.int32]


class _Index(NamedTuple):
    """What pairs are looked up in, as narrow as a block's own offsets: many blocks are held."""

    sentences: _Offsets
    """Where each begins, and where the last one ends. With ``segments``, pieces of long ones are
    sentences too."""
    documents: _Offsets
    """The first sentence of each, and how many sentences there are."""
    examples: _Offsets
    """The first sentence of each (``none``: token)."""


class Pairs(NamedTuple):
    """Token ranges over the store, in positions of the split, and whether B follows A."""

    a_starts: Ints
    a_stops: Ints
    b_starts: Ints
    b_stops: Ints
    """Shape (B,); empty ranges where there is no second segment."""
    is_next: Bools


class PairMaker:
    """Make the pairs of a store in one of the three ways of `PairsSection.kind`.

    Parameters
    ----------
    store : TokenStore
    section : PairsSection
    name : str
        What to call the text in an error.

    Raises
    ------
    CorpusError
        Random seconds are needed and all text is one document, or no example fits.
    """

    def __init__(self, store: TokenStore, section: PairsSection, name: str) -> None:
        self.store, self.section = store, section
        self.num_specials = 2 if section.kind == "none" else 3
        self._room = section.max_length - self.num_specials
        self._index = lru_cache(2 * WINDOW_BLOCKS)(self._make_index)
        needs_random = section.kind == "segments" or (
            section.kind == "sentences" and section.next_fraction < 1.0
        )
        if needs_random and store.num_documents == 1:
            raise CorpusError(
                name,
                "is a single document, and a random second sentence comes from another one",
                "separate documents with blank lines, set text.document=line or pairs.kind=none",
            )
        # Counts are kept by this name: where the rule of `_make_index` changes, so must the name.
        rule = f" {SEGMENTS_RULE}" if section.kind == "segments" else ""
        self.block_examples = store.count_by_block(
            f"examples {section.kind}{rule} {section.max_length}",
            lambda i: len(self._index(i).examples),
        )
        if not self.block_examples.sum():
            raise CorpusError(
                name,
                f"gives no sequence of at most {section.max_length} tokens "
                f"(pairs.kind={section.kind})",
                "raise pairs.max_length, or give documents with several sentences",
            )

    def draw(self, located: Located, key: int) -> Pairs:
        """Draw the pairs of examples in one window; `key` stands for seed and epoch."""
        keys = random_bits(key, located.block_numbers, located.examples)
        if self.section.kind == "none":
            edges, blocks = self.store.block_token_starts, located.block_numbers
            starts = edges[blocks] + located.examples * self._room
            stops = np.minimum(starts + self._room, edges[blocks + 1])
            nothing = np.zeros_like(starts)
            return Pairs(starts, stops, nothing, nothing, nothing.astype(bool))
        sentences = self._lookup(located, "examples", located.examples)
        if self.section.kind == "sentences":
            return self._draw_sentences(located, sentences, keys)
        return self._draw_segments(located, sentences, keys)

    # --- examples --------------------------------------------------------------------------------

    def _make_index(self, number: int) -> _Index:
        block = self.store.block(number)
        sentences, documents = block.sentence_starts, block.document_starts
        if self.section.kind == "none":
            examples = np.arange(0, len(block.tokens), self._room, dtype=np.int32)
        elif self.section.kind == "sentences":
            examples = _fitting_neighbors(sentences, documents, self._room)
        else:
            sentences, documents = _cut_long_sentences(sentences, documents, self._room)
            examples = _cut_into_units(sentences, documents, self._room)
        return _Index(sentences, documents, examples)

    # --- the reference's way ---------------------------------------------------------------------

    def _draw_sentences(self, located: Located, sentences: Ints, keys: UInts) -> Pairs:
        """Draw two sentences: neighbors, or the second from another document of the window.

        `Deviation:` a random second that is too long is drawn again, where the reference drops the
        pair; after 32 draws the last one is cut to fit.
        """
        a_starts, a_stops, b_stops = (self._positions(located, sentences + i) for i in range(3))
        b_starts = a_stops.copy()
        is_next = uniform(keys, _IS_NEXT) < self.section.next_fraction
        room = self._room - (a_stops - a_starts)
        own = self._document_of(located, sentences)
        todo = np.flatnonzero(~is_next)
        for attempt in range(_REDRAWS):
            if not len(todo):
                break
            there, first, last = self._other_document(located, own, keys, todo, attempt)
            sentence = first + below(last - first, keys[todo], _SENTENCE, attempt)
            b_starts[todo] = self._positions(there, sentence)
            b_stops[todo] = self._positions(there, sentence + 1)
            todo = todo[b_stops[todo] - b_starts[todo] > room[todo]]
        b_stops[todo] = b_starts[todo] + room[todo]
        return Pairs(a_starts, a_stops, b_starts, b_stops, is_next)

    # --- BERT's way ------------------------------------------------------------------------------

    def _draw_segments(self, located: Located, starts: Ints, keys: UInts) -> Pairs:
        """Split a unit of whole sentences in two, or fill up its first part from elsewhere.

        A unit of one sentence has nothing that follows and gets a random second, as in the
        published routine.
        """
        is_short = uniform(keys, _IS_SHORT) < self.section.short_fraction
        shorter = 2 + below(max(1, self._room - 1), keys, _TARGET)
        target = np.where(is_short, np.minimum(shorter, self._room), self._room)
        own = self._document_of(located, starts)
        inside = own - located.window.document_starts[located.blocks]
        ends = self._lookup(located, "documents", inside + 1)
        stops = self._reach(located, starts, target, ends)
        num_sentences = stops - starts
        middles = starts + 1 + below(np.maximum(num_sentences - 1, 1), keys, _SPLIT)
        is_next = (num_sentences > 1) & (uniform(keys, _IS_NEXT) < self.section.next_fraction)
        a_starts, a_stops, b_stops = (
            self._positions(located, each) for each in (starts, middles, stops)
        )
        b_starts = a_stops.copy()
        todo = np.flatnonzero(~is_next)
        if len(todo):
            there, first, last = self._other_document(located, own, keys, todo, 0)
            begin = first + below(last - first, keys[todo], _SENTENCE, 0)
            wanted = np.maximum(1, (target - (a_stops - a_starts))[todo])
            end = self._reach(there, begin, wanted, last)
            b_starts[todo], b_stops[todo] = (self._positions(there, each) for each in (begin, end))
        return Pairs(*_truncate(a_starts, a_stops, b_starts, b_stops, self._room, keys), is_next)

    def _reach(self, located: Located, starts: Ints, num_tokens: Ints, limits: Ints) -> Ints:
        """Find where sentences from `starts` on hold `num_tokens`; never past `limits`."""
        first = self._lookup(located, "sentences", starts)
        found = self._lookup(located, "sentences", first + num_tokens, "left")
        return np.clip(found, starts + 1, limits)

    # --- looking things up in the window's blocks ------------------------------------------------

    def _lookup(
        self,
        located: Located,
        what: Literal["sentences", "documents", "examples"],
        values: Ints,
        side: Literal["left", "right"] | None = None,
    ) -> Ints:
        """Read each block's offsets at `values`; with a side, search them for `values` instead."""
        out = np.empty(len(values), np.int64)
        for i in np.unique(located.blocks).tolist():
            rows = located.blocks == i
            offsets: _Offsets = getattr(self._index(int(located.window.blocks[i])), what)
            if side is None:
                out[rows] = offsets[values[rows]]
            else:  # in the offsets' own type: numpy would copy them all to int64 for every call
                out[rows] = np.searchsorted(offsets, values[rows].astype(np.int32), side)
        return out

    def _positions(self, located: Located, sentences: Ints) -> Ints:
        """Find where sentences begin in the split; one past the last of a block: where it ends."""
        first = self.store.block_token_starts[located.block_numbers]
        return first + self._lookup(located, "sentences", sentences)

    def _document_of(self, located: Located, sentences: Ints) -> Ints:
        """Find each sentence's document: its number inside the window."""
        inside = self._lookup(located, "documents", sentences, "right") - 1
        return located.window.document_starts[located.blocks] + inside

    def _other_document(
        self, located: Located, own: Ints, keys: UInts, rows: Ints, attempt: int
    ) -> tuple[Located, Ints, Ints]:
        """Draw another document of the window, all alike: where, its first and last sentence."""
        window = located.window
        drawn = below(int(window.document_starts[-1]) - 1, keys[rows], _DOCUMENT, attempt)
        drawn += drawn >= own[rows]
        block = np.searchsorted(window.document_starts, drawn, "right") - 1
        there = located._replace(blocks=block)
        inside = drawn - window.document_starts[block]
        first = self._lookup(there, "documents", inside)
        last = self._lookup(there, "documents", inside + 1)
        return there, first, last


def _fitting_neighbors(sentences: _Offsets, documents: _Offsets, room: int) -> _Offsets:
    """List sentences that, with the next one of the same document, have at most `room` tokens."""
    offsets = sentences.astype(np.int64)
    has_next = np.ones(len(offsets) - 1, bool)
    has_next[documents[1:] - 1] = False
    fits = np.append(offsets[2:] - offsets[:-2] <= room, False)
    return np.flatnonzero(has_next & fits).astype(np.int32)


def _cut_long_sentences(
    sentences: _Offsets, documents: _Offsets, room: int
) -> tuple[_Offsets, _Offsets]:
    """Cut each sentence of more than `room` tokens into pieces that are sentences from then on.

    A piece has at most half of the room, so that another one can follow it in a pair: in a room of
    10, a sentence of 23 tokens becomes pieces of 4, 5, 4, 5 and 5.
    """
    lengths = np.diff(sentences.astype(np.int64))
    num_pieces = np.where(lengths > room, -(-lengths // ((room + 1) // 2)), 1)
    before = np.concatenate([[0], np.cumsum(num_pieces)])
    owner = np.repeat(np.arange(len(lengths)), num_pieces)
    piece = np.arange(before[-1]) - before[owner]
    starts = sentences[owner] + lengths[owner] * piece // num_pieces[owner]
    return np.append(starts, sentences[-1]).astype(np.int32), before[documents].astype(np.int32)


def _cut_into_units(sentences: _Offsets, documents: _Offsets, room: int) -> _Offsets:
    """Cut each document into runs of whole sentences that just reach `room` tokens: their starts.

    For every sentence we know where a unit that begins there would end; from each document's
    first sentence on, all documents hop along these ends together.
    """
    offsets = sentences.astype(np.int64)
    document_stops = np.repeat(documents[1:], np.diff(documents))
    stops = np.searchsorted(offsets, offsets[:-1] + room)
    stops = np.clip(stops, np.arange(1, len(offsets)), document_stops)
    at = documents[:-1].astype(np.int64)
    found = []
    while len(at):
        found.append(at)
        at, own_stop = stops[at], document_stops[at]
        at = at[at < own_stop]
    return np.sort(np.concatenate(found)).astype(np.int32)


def _truncate(
    a_starts: Ints, a_stops: Ints, b_starts: Ints, b_stops: Ints, room: int, keys: UInts
) -> tuple[Ints, Ints, Ints, Ints]:
    """Cut pairs to `room` tokens: the longer side loses tokens until both are as long, then both.

    `Deviation:` the published routine tosses a coin for each token that is dropped, front or back,
    which comes down to keeping the middle: the ends would hardly ever be trained on.
    """
    a_length, b_length = a_stops - a_starts, b_stops - b_starts
    a_kept, b_kept = truncate(a_length, b_length, room)
    a_starts = a_starts + _choose_part(a_length, a_kept, keys, _KEPT_A)
    b_starts = b_starts + _choose_part(b_length, b_kept, keys, _KEPT_B)
    return a_starts, a_starts + a_kept, b_starts, b_starts + b_kept


def _choose_part(lengths: Ints, kept: Ints, keys: UInts, purpose: int) -> Ints:
    """Draw where the kept part begins: one of the fewest parts that together are the whole.

    Of 7 tokens 3 are kept: parts begin at 0, 3 and 4.
    """
    starts: Ints = below(-(-lengths // kept), keys, purpose) * kept
    return starts.clip(max=lengths - kept)
