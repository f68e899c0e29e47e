"""Documents to sentences."""

from __future__ import annotations

from itertools import chain

import sentencex

from bertmill.config import TextSection

_LONGEST_SENTENCE = 2**20
"""Characters. Longer text is cut, because a tokenizer holds it in memory many times over."""


def split_sentences(text: str, section: TextSection) -> list[str]:
    """Split a document's text into its sentences, none of them blank.

    Line feeds end paragraphs. With ``spaced-period`` a paragraph in which `` . `` does not occur is
    dropped whole: WikiText's captions and list items, which the reference program drops too.

    Examples
    --------
    >>> split_sentences("Dr. Smith went. He left!", TextSection())
    ['Dr. Smith went.', 'He left!']
    >>> split_sentences(" a b . c d . ", TextSection(sentences="spaced-period"))
    ['a b', 'c d .']
    """
    paragraphs = text.split("\n")
    if section.sentences == "sentencex":
        each = (sentencex.segment(section.language, paragraph) for paragraph in paragraphs)
    else:
        each = (p.strip().split(" . ") for p in paragraphs if " . " in p)
    return [
        stripped
        for part in chain.from_iterable(each)
        for i in range(0, len(part), _LONGEST_SENTENCE)
        if (stripped := part[i : i + _LONGEST_SENTENCE].strip())
    ]
