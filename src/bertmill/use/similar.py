"""Words in context: the same word has another vector beside other neighbors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmill.errors import InputError
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.sequences import refuse_no_text


class SimilarWord(NamedTuple):
    """A word in a text, and how near its vector is to that of the word asked for."""

    word: str
    text: str
    cosine: float


def find_word(tokenizer: Tokenizer, text: str, word: str) -> range | None:
    """Tell which tokens of a text, counted without special tokens, are a word's first occurrence.

    The tokenizer's own splitting and lower-casing decide what a word is; `word` may be several.

    Raises
    ------
    InputError
        The word is no text, or unknown to the vocabulary, where it is like any other such word.
    """
    refuse_no_text(word)
    ids, owners = tokenizer.encode_words(text)
    wanted = tokenizer.encode_words(word)[0]
    if tokenizer.unk_id in wanted:
        raise InputError(
            "--word", f"{word!r} is unknown to the vocabulary", "give a word that it can write"
        )
    bounds = [-1, *owners, -1]
    for start in range(len(ids) - len(wanted) + 1):
        stop = start + len(wanted)
        is_whole = bounds[start] != bounds[start + 1] and bounds[stop] != bounds[stop + 1]
        if wanted and is_whole and ids[start:stop] == wanted:
            return range(start, stop)
    return None


def cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Cosine of the angle between two vectors; 0 where one of them is zero."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0
