"""Texts to ids with each distinct stretch between two blanks encoded once.

A blank ends a word, and nothing that normalizes or splits looks past one: BERT's normalizer drops,
spaces out, decomposes and lower-cases characters one by one, and moves a combining mark only among
combining marks. So what the library makes of a stretch alone is what it makes of it in its text.
For the same reason blanks may be put around a character that is always a word by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Encoded = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Ids of several texts end to end, and the number of ids of each."""

_CHARACTERS_AT_ONCE = 1_000_000
_BETWEEN_TEXTS = " \n "
"""A line feed is a blank like any other, so that one between blanks can part the texts."""
_CACHE_BYTES = 16_000_000
"""What is remembered between two calls at most; beyond it all is forgotten."""
_ID = np.dtype(np.int32)
_END = -1
"""Stands among the ids where a text ends and another starts."""


class StretchCache:
    """Encode texts, remembering what each stretch became.

    Parameters
    ----------
    encode : callable
        Turns stretches into ids.
    encode_words : callable
        The same for stretches of ASCII letters and digits, which are one word each.
    marks : str
        ASCII characters that are always words by themselves and often stand next to others: with
        blanks around them, "lake," and "(lake" need no entries of their own.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Encoded],
        encode_words: Callable[[Sequence[str]], Encoded],
        marks: str,
    ) -> None:
        self._encode, self._encode_words = encode, encode_words
        self._marks = [mark.encode() for mark in marks]
        self._forget()

    @property
    def num_bytes(self) -> int:
        """Memory that the remembered stretches and their ids take."""
        return self._entry_bytes + sys.getsizeof(self._pieces)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into ids end to end, and the number of ids of each text."""
        return end_to_end(map(self._encode_group, groups(texts, len(_BETWEEN_TEXTS))))

    def _encode_group(self, texts: Sequence[str]) -> Encoded:
        # Two texts, "A lake, a lake" and "a": joined, with blanks around the comma,
        #     \n A lake , a lake \n a \n
        # cut at blanks and numbered by what is distinct (besides empty stretches, of no ids),
        #     0  1 2    3 4 2    0  4 0        \n A lake , a
        # each distinct stretch is encoded, unless it is remembered, and \n is the id -1:
        #     -1 a lake , a lake -1 a -1
        # Between two ends lie the ids of a text: lengths 5 and 1.
        joined = _BETWEEN_TEXTS.join(["", *(text.replace("\n", " ") for text in texts), ""])
        data = joined.encode()  # a byte a mark, where the string may have four
        for mark in self._marks:
            data = data.replace(mark, b" " + mark + b" ")
        offsets = np.array([0, len(data)], np.int32)
        whole = pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data))
        stretches = pc.split_pattern(whole, " ").values.dictionary_encode()
        distinct = stretches.dictionary.to_pylist()
        pieces = self._pieces  # stays whole here when another thread forgets it
        new = [stretch for stretch in distinct if stretch not in pieces]
        words = [stretch for stretch in new if stretch.isascii() and stretch.isalnum()]
        others = [stretch for stretch in new if not (stretch.isascii() and stretch.isalnum())]
        for some, encode in ((words, self._encode_words), (others, self._encode)):
            ids, lengths = encode(some)
            ends = np.cumsum(lengths) * _ID.itemsize
            flat = ids.astype(_ID).tobytes()
            parts = [flat[i:j] for i, j in pairwise([0, *ends.tolist()])]
            pieces.update(zip(some, parts, strict=True))
            self._entry_bytes += sum(map(sys.getsizeof, chain(some, parts)))
        found = pa.array(list(map(pieces.__getitem__, distinct)), pa.binary())
        everything = np.frombuffer(found.take(stretches.indices).buffers()[2], _ID)
        if self.num_bytes > _CACHE_BYTES:
            self._forget()
        is_end = everything == _END
        return everything[~is_end].astype(np.int64), np.diff(np.flatnonzero(is_end)) - 1

    def _forget(self) -> None:
        self._pieces = {"": b"", "\n": np.array(_END, _ID).tobytes()}
        self._entry_bytes = 0


def flatten(lists: Sequence[Sequence[int]]) -> Encoded:
    """Lay lists of ids end to end."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.int64, int(lengths.sum())), lengths


def end_to_end(parts: Iterable[Encoded]) -> Encoded:
    """Join what groups of texts became."""
    ids, lengths = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(lengths)


def groups(texts: Sequence[str], characters_a_text: int) -> Iterator[Sequence[str]]:
    """Cut a list into one list or more, each of which is encoded in bounded memory.

    A text counts for so many characters besides its own.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + characters_a_text
    group = np.cumsum(sizes) // _CHARACTERS_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(texts)]
    for i, j in pairwise(starts):
        yield texts[i:j]
