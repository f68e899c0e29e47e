"""The order of an epoch: blocks permuted, then examples permuted inside a window of blocks.

Reads stay local, a random second sentence comes from the window too, and nothing as long as the
corpus is ever stored: a block's place costs a few bytes a block, an example's place is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bertmill.arrays import Ints
from bertmill.data.randomness import Permutation, make_key

WINDOW_BLOCKS = 16
"""Blocks in a window. A window with a single document takes more, so that a random second sentence
of another document can be drawn from it."""


@dataclass(frozen=True)
class Window:
    """Blocks whose examples are mixed with one another."""

    blocks: Ints
    """Block numbers, shape (w,)."""
    example_starts: Ints
    """Prefix sums of the blocks' example counts, shape (w + 1,)."""
    document_starts: Ints
    """Prefix sums of the blocks' document counts, shape (w + 1,)."""


class Located(NamedTuple):
    """Examples that one window holds: where they stand in the batch, and in the store."""

    rows: Ints
    window: Window
    blocks: Ints
    """Index into `window.blocks`."""
    examples: Ints
    """Number of the example inside its block."""

    @property
    def block_numbers(self) -> Ints:
        """The blocks' numbers in the store."""
        return self.window.blocks[self.blocks]


class EpochOrder:
    """Where the example at each place of an epoch stands in the store.

    Parameters
    ----------
    block_examples, block_documents : ndarray of int64, shape (number of blocks,)
    key : int
        Another key, another order.
    """

    def __init__(self, block_examples: Ints, block_documents: Ints, key: int) -> None:
        self._key = key
        order = Permutation(len(block_examples), key)(np.arange(len(block_examples)))
        groups: list[list[int]] = [[]]
        for block in order.tolist():
            if len(groups[-1]) >= WINDOW_BLOCKS and block_documents[groups[-1]].sum() > 1:
                groups.append([])
            groups[-1].append(block)
        if len(groups) > 1 and block_documents[groups[-1]].sum() < 2:
            lonely = groups.pop()
            groups[-1] += lonely
        self.windows = [
            Window(
                np.array(group, np.int64),
                _prefix_sums(block_examples[group]),
                _prefix_sums(block_documents[group]),
            )
            for group in groups
        ]
        self._starts = _prefix_sums(np.array([w.example_starts[-1] for w in self.windows]))
        self.num_examples = int(self._starts[-1])

    def locate(self, places: Ints) -> list[Located]:
        """Find the examples at these places of the epoch, each from 0 to `num_examples` - 1."""
        of_window = np.searchsorted(self._starts, places, "right") - 1
        found = []
        for number in np.unique(of_window).tolist():
            window = self.windows[number]
            rows = np.flatnonzero(of_window == number)
            shuffle = Permutation(
                int(window.example_starts[-1]), make_key(self._key, "window", number)
            )
            inside = shuffle(places[rows] - self._starts[number])
            blocks = np.searchsorted(window.example_starts, inside, "right") - 1
            found.append(Located(rows, window, blocks, inside - window.example_starts[blocks]))
        return found


def _prefix_sums(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
