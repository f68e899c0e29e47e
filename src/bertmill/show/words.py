"""A figure of a word in context: how near the words of other texts are to it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bertmill.errors import InputError
from bertmill.storage import file_that_appears_whole, refuse_as_new_file
from bertmill.use.similar import SimilarWord

_SAME, _OTHER = "#0b3c5d", "#9db4c8"
_INCHES_A_BAR = 0.3
_MOST_BARS = 200
_LONGEST_LABEL = 60
"""Characters; longer labels would leave no room for the bars."""


def refuse_figure(out: Path, num_words: int) -> None:
    """Raise `InputError` unless so many words can be drawn to a new file of this name."""
    refuse_as_new_file(out, (".png", ".svg", ".pdf"))
    if num_words > _MOST_BARS:
        raise InputError(
            "`top`", f"is {num_words:,}, but a figure has room for {_MOST_BARS} words at most"
        )


def draw_similar_words(text: str, word: str, found: Sequence[SimilarWord], out: Path) -> None:
    """Draw one bar per word, the nearest at the top; darker where it is the same word.

    Raises
    ------
    InputError
        `out` cannot be written.
    """
    figure = Figure(figsize=(9, 1.1 + _INCHES_A_BAR * len(found)), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = range(len(found))
    colors = [_SAME if similar.word.lower() == word.lower() else _OTHER for similar in found]
    bars = axes.barh(places, [similar.cosine for similar in found], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    labels = [f"{_shorten(s.word)}  ({_shorten(s.text)})" for s in found]
    axes.set_yticks(places, labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    title = f"nearest to {_shorten(word)!r} in {_shorten(text)!r}"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel("cosine of the two vectors")
    axes.spines[["top", "right"]].set_visible(False)
    with file_that_appears_whole(out, InputError) as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)  # is drawn as a box
        figure.savefig(path)


def _shorten(text: str) -> str:
    """Shorten a text to one line that fits."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_LABEL else f"{line[: _LONGEST_LABEL - 4]} ..."
