"""Keyed randomness: every draw is a function of what it is for, never of when it is made.

A key is a 64-bit hash of (seed, purpose, epoch, ...). A draw mixes a key with counters such as an
example's number or a token's position. Keys are mixed, never added: with ``seed + epoch``, epoch 2
of seed 1 would repeat epoch 1 of seed 2.

The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood 2014); the permutation is
a Feistel network with cycle walking (Black and Rogaway 2002).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bertmill.arrays import Floats, Ints, UInts

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6


def make_key(seed: int, purpose: str, *parts: int) -> int:
    """Hash a seed, a purpose and any whole numbers to a 64-bit key."""
    text = ":".join([str(int(seed)), purpose, *(str(int(part)) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def random_bits(key: npt.ArrayLike, *counters: npt.ArrayLike) -> UInts:
    """Draw 64 random bits for each combination of key and counters, broadcast together."""
    h = np.atleast_1d(np.asarray(key, np.uint64))
    for counter in counters:
        h = _mix(h ^ (_mixed_number(counter) if isinstance(counter, int) else _mixed(counter)))
    return h


def uniform(key: npt.ArrayLike, *counters: npt.ArrayLike) -> Floats:
    """Draw from [0, 1) with 53 random bits."""
    return (random_bits(key, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(limit: npt.ArrayLike, key: npt.ArrayLike, *counters: npt.ArrayLike) -> Ints:
    """Draw a whole number from 0 to `limit` - 1; `limit` is 1 to 2**32 (bias below 2**-20)."""
    # A draw below 1 has 53 bits, so that its product with the limit stays below the limit.
    return (uniform(key, *counters) * np.asarray(limit, np.int64)).astype(np.int64)


class Permutation:
    """A random permutation of 0 to n - 1, computed index by index and never stored.

    Parameters
    ----------
    n : int
    key : int

    Examples
    --------
    >>> sorted(Permutation(5, make_key(1, "example"))(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self._round_keys = [random_bits(key, i) for i in range(_FEISTEL_ROUNDS)]
        self._half_bits = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half_bits) - np.uint64(1)

    def __call__(self, indices: Ints) -> Ints:
        """Map indices, each in 0 to n - 1."""
        out = self._encrypt(indices.astype(np.uint64))
        # The network permutes a power of four that is at most four times n: walk on until inside.
        while (outside := np.flatnonzero(out >= np.uint64(self.n))).size:
            out[outside] = self._encrypt(out[outside])
        return out.astype(np.int64)

    def _encrypt(self, x: UInts) -> UInts:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (random_bits(key, right) & self._mask)
        return (left << self._half_bits) | right


def _mixed(counter: npt.ArrayLike) -> UInts:
    return _mix(np.atleast_1d(np.asarray(counter)).astype(np.uint64) + _GOLDEN)


# What a draw is for and the number of an attempt come again in every batch.
_mixed_number = lru_cache(maxsize=256)(_mixed)


def _mix(x: UInts) -> UInts:
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
