"""Texts to ids with each distinct stretch between two blanks encoded once.

A blank ends a word, and nothing that normalizes or splits looks past one: BERT's normalizer drops,
spaces out, decomposes and lower-cases characters one by one, and moves a combining mark only among
combining marks. So what the library makes of a stretch alone is what it makes of it in its text.
For the same reason blanks may be put around a character that is always a word by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from types import NoneType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from bertmill.errors import CorpusError, TokenizerError, is_library_failure

Encoded = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Ids of several texts end to end, and the number of ids of each."""

_FREQUENT_MARKS = b", . ( ) \" ' - : ; ! ? /"
_CHARACTERS_AT_ONCE = 1_000_000
_CHARACTERS_A_RESULT = 100
"""Memory of the library's result for a text besides its characters, counted in characters."""
_BETWEEN_TEXTS = " \n "
"""A line feed is a blank like any other, so that one between blanks can part the texts."""
_CACHE_BYTES = 16_000_000
"""What is remembered between two calls at most; beyond it all is forgotten."""
_ID = np.dtype(np.int32)
_END = -1
"""Stands among the ids where a text ends and another starts."""


class TextEncoder:
    """Encode texts with the library's tokenizer, remembering what each stretch became.

    A tokenizer that is not known to treat each stretch by itself encodes every text whole.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    plain_ids : ndarray of int64, shape (V,)
        The id that takes the place of each of the library's.
    """

    def __init__(self, backend: tokenizers.Tokenizer, plain_ids: npt.NDArray[np.int64]) -> None:
        self._backend, self._plain_ids = backend, plain_ids
        self._marks = _isolated_punctuation(backend)
        self._forget()

    @property
    def num_bytes(self) -> int:
        """Memory that the remembered stretches and their ids take."""
        return self._entry_bytes + sys.getsizeof(self._pieces)

    def encode_words(self, text: str) -> tuple[list[int], list[int]]:
        """Turn a text into ids, and say for each id which word of the text it belongs to."""
        with _library_errors():
            encoding = self._backend.encode(text, add_special_tokens=False)
        words = [0 if word is None else word for word in encoding.word_ids]
        return self._plain_ids[encoding.ids].tolist(), words

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into ids end to end, and the number of ids of each text."""
        if self._marks is None:
            return _in_groups(self._encode_whole, texts, _CHARACTERS_A_RESULT)
        return _in_groups(self._encode_by_stretch, texts, len(_BETWEEN_TEXTS))

    def _encode_whole(self, texts: Sequence[str]) -> Encoded:
        with _library_errors():
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return self._flatten([encoding.ids for encoding in encodings])

    def _encode_ascii_words(self, words: Sequence[str]) -> Encoded:
        """Encode words that nothing but lower-casing changes: the model alone is much faster."""
        model, normalizer = self._backend.model, self._backend.normalizer
        lowercase = isinstance(normalizer, normalizers.Lowercase) or (
            isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase
        )
        with _library_errors():
            lists = [
                [token.id for token in model.tokenize(word.lower() if lowercase else word)]
                for word in words
            ]
        return self._flatten(lists)

    def _flatten(self, lists: Sequence[Sequence[int]]) -> Encoded:
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(chain.from_iterable(lists), np.int64, int(lengths.sum()))
        return self._plain_ids[ids], lengths

    def _encode_by_stretch(self, texts: Sequence[str]) -> Encoded:
        # Two texts, "A lake, a lake" and "a": joined, with blanks around the comma,
        #     \n A lake , a lake \n a \n
        # cut at blanks and numbered by what is distinct (besides empty stretches, of no ids),
        #     0  1 2    3 4 2    0  4 0        \n A lake , a
        # each distinct stretch is encoded, unless it is remembered, and \n is the id -1:
        #     -1 a lake , a lake -1 a -1
        # Between two ends lie the ids of a text: lengths 5 and 1.
        joined = _BETWEEN_TEXTS.join(["", *(text.replace("\n", " ") for text in texts), ""])
        data = joined.encode()  # a byte a mark, where the string may have four
        for mark in self._marks or []:
            data = data.replace(mark, b" " + mark + b" ")
        offsets = np.array([0, len(data)], np.int32)
        whole = pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data))
        stretches = pc.split_pattern(whole, " ").values.dictionary_encode()
        distinct = stretches.dictionary.to_pylist()
        pieces = self._pieces  # stays whole here when another thread forgets it
        new = [stretch for stretch in distinct if stretch not in pieces]
        words = [stretch for stretch in new if stretch.isascii() and stretch.isalnum()]
        others = [stretch for stretch in new if not (stretch.isascii() and stretch.isalnum())]
        encoded_words = self._encode_ascii_words(words)
        encoded_others = _in_groups(self._encode_whole, others, _CHARACTERS_A_RESULT)
        for some, (ids, lengths) in ((words, encoded_words), (others, encoded_others)):
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


def _in_groups(
    encode: Callable[[Sequence[str]], Encoded], texts: Sequence[str], characters_a_text: int
) -> Encoded:
    """Encode a group of texts after another, each in bounded memory.

    A text counts for so many characters besides its own.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + characters_a_text
    group = np.cumsum(sizes) // _CHARACTERS_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(texts)]
    ids, lengths = zip(*(encode(texts[i:j]) for i, j in pairwise(starts)), strict=True)
    return np.concatenate(ids), np.concatenate(lengths)


def split_at_blanks() -> pre_tokenizers.Split:
    """Return what splits a text into words for a word-level vocabulary."""
    return pre_tokenizers.Split(tokenizers.Regex("[ \t\r\n]+"), "removed")


def _isolated_punctuation(backend: tokenizers.Tokenizer) -> list[bytes] | None:
    """List frequent ASCII punctuation that this tokenizer always splits off as a word.

    None: it is not known to treat each stretch between two blanks by itself (see `TextEncoder`).
    """
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    if (
        not isinstance(normalizer, (NoneType, normalizers.BertNormalizer, normalizers.Lowercase))
        or not isinstance(backend.model, (models.WordPiece, models.WordLevel))
        # Special ones are plain text here; another may hold a blank, or be part of a word.
        or not all(token.special for token in backend.get_added_tokens_decoder().values())
    ):
        return None
    if isinstance(splitter, pre_tokenizers.BertPreTokenizer):
        return _FREQUENT_MARKS.split()
    at_blanks = split_at_blanks().__getstate__()
    return [] if splitter is not None and splitter.__getstate__() == at_blanks else None


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise our error where the library fails: a tokenizer that loads but cannot encode."""
    try:
        yield
    except Exception as error:  # it raises bare Exception
        raise TokenizerError("tokenizer", f"cannot encode ({error})") from None
    except BaseException as error:
        if not is_library_failure(error):
            raise
        raise CorpusError("text", f"makes the tokenizer panic ({error})") from None
