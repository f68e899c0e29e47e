"""Documents to sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

import sentencex

from bertmill.config import TextSection
from bertmill.errors import CorpusError, is_library_failure

_LONGEST_SENTENCE = 2**20
"""Characters. Longer text is cut, because a tokenizer holds it in memory many times over."""
_LONGEST_STRETCH = 2**15
"""Characters that are segmented at once. Quotes that are opened and never closed take sentencex
time by the square of the length: 12 ms for so many, 40 s for 800,000."""
# Behind a lone capital, sentencex 1.0 panics at white space of more than a byte.
_WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


def split_sentences(text: str, section: TextSection) -> list[str]:
    """Split a document's text into its sentences, none of them blank.

    Line feeds end paragraphs. With ``spaced-period`` a paragraph in which `` . `` does not occur is
    dropped whole: WikiText's captions and list items, which the reference program drops too.

    Raises
    ------
    CorpusError
        The segmenter failed.

    Examples
    --------
    >>> split_sentences("Dr. Smith went. He left!", TextSection())
    ['Dr. Smith went.', 'He left!']
    >>> split_sentences(" a b . c d . ", TextSection(sentences="spaced-period"))
    ['a b', 'c d .']
    """
    paragraphs = text.split("\n")
    if section.sentences == "sentencex":
        each = (_segment(paragraph, section.language) for paragraph in paragraphs)
    else:
        each = (iter(p.strip().split(" . ")) for p in paragraphs if " . " in p)
    return [
        stripped
        for part in chain.from_iterable(each)
        for i in range(0, len(part), _LONGEST_SENTENCE)
        if (stripped := part[i : i + _LONGEST_SENTENCE].strip())
    ]


def _segment(text: str, language: str) -> Iterator[str]:
    """Split a paragraph, a stretch at a time; the last sentence of one begins the next."""
    plain = _WIDE_SPACE.sub(" ", text)
    start = 0
    while start < len(text):
        stop = start + _LONGEST_STRETCH
        if stop < len(text):
            stop = plain.rfind(" ", start, stop) + 1 or stop
        try:
            parts = sentencex.segment(language, plain[start:stop])
        except BaseException as error:
            if not is_library_failure(error):
                raise
            raise CorpusError("text", f"cannot be split into sentences ({error})") from None
        if stop < len(text) and len(parts) > 1:
            parts.pop()
        for part in parts:
            yield text[start : start + len(part)]
            start += len(part)
