"""Words in context: the same word has another vector next to other neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmill.errors import InputError
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.encode import Encoding
from bertmill.use.sequences import refuse_non_text


class SimilarWord(NamedTuple):
    """A word in a text, and how near its vector is to that of the given word."""

    word: str
    text: str
    cosine: float


def rank_words(
    encode: Callable[[str], Encoding],
    tokenizer: Tokenizer,
    text: str,
    word: str,
    among: Sequence[str],
    top: int,
) -> list[SimilarWord]:
    """Rank the words of other texts by their similarity to one; see `Pretrained.similar_words`."""
    if top < 1:
        raise InputError("`top`", f"is {top}", "give 1 or more")
    encoding = encode(text)
    tokens = find_word(tokenizer, text, word)
    if tokens is None:
        raise InputError("`word`", f"{word!r} is not in the text {text!r}")
    vector = encoding.vectors[0, [1 + token for token in tokens]].mean(0)  # row 0 is [CLS]
    found = []
    for other in [among] if isinstance(among, str) else among:
        encoding = encode(other)
        for number, name in encoding.word_names.items():
            found.append(SimilarWord(name, other, cosine(vector, encoding.word_vector(number))))
    found.sort(key=lambda similar: -similar.cosine)
    return found[:top]


def find_word(tokenizer: Tokenizer, text: str, word: str) -> range | None:
    """Find the tokens of a word's first occurrence in a text, counted without special tokens.

    The tokenizer's own splitting and lower-casing decide what a word is; `word` may be several.

    Raises
    ------
    InputError
        The word is not text, or unknown to the vocabulary, where it would match any unknown word.
    """
    refuse_non_text(word)
    ids, owners = tokenizer.encode_words(text)
    wanted = tokenizer.encode_words(word)[0]
    if tokenizer.unk_id in wanted:
        raise InputError("`word`", f"{word!r} cannot be written with the model's vocabulary")
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
