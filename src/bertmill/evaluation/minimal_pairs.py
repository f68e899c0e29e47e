"""Minimal pairs: how often the model prefers the grammatical one of two sentences.

Warstadt et al. 2020 (BLiMP) and Huebner et al. 2021 (Zorro), scored by pseudo-log-likelihood
(Salazar et al. 2020). `Deviation:` a tie is reported and counts as half a right answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bertmill.errors import InputError
from bertmill.text.rows import read_rows, text_of
from bertmill.use.pretrained import Pretrained

_PARADIGM_COLUMNS = ("paradigm", "UID")


@dataclass(frozen=True)
class ParadigmScores:
    """Scores on the pairs of one paradigm."""

    accuracy: float
    """Share of pairs whose good sentence is more probable; a tie counts as half."""
    num_pairs: int
    num_ties: int


@dataclass(frozen=True)
class MinimalPairScores(ParadigmScores):
    """Scores on all pairs."""

    num_pairs_with_unknown: int
    """Pairs with a word that the vocabulary lacks."""
    mean_paradigm_accuracy: float
    mask_rest_of_word: bool
    paradigms: dict[str, ParadigmScores]


def evaluate_minimal_pairs(
    model: Pretrained, path: str, mask_rest_of_word: bool
) -> MinimalPairScores:
    """Score a model on a file of minimal pairs.

    Parameters
    ----------
    model : Pretrained
    path : str
        Rows with ``sentence_good``, ``sentence_bad`` and, where there are several paradigms,
        ``paradigm`` or ``UID``.
    mask_rest_of_word : bool
        See `Pretrained.score`.

    Raises
    ------
    ModelError
        The folder lacks the masked-token head.
    CorpusError
        The file cannot be read or holds something else.
    InputError
        No pairs, or a sentence that is too long.
    """
    good, bad, names = [], [], []
    for row in read_rows(path):
        good.append(text_of(row, "sentence_good"))
        bad.append(text_of(row, "sentence_bad"))
        column = next((name for name in _PARADIGM_COLUMNS if name in row[1]), None)
        names.append("all" if column is None else text_of(row, column))
    if not good:
        raise InputError(path, "has no pairs", "give a file with one pair per line")
    texts = [*good, *bad]
    better, worse = np.split(model.score(texts, mask_rest_of_word=mask_rest_of_word), 2)
    ties = better == worse
    points = np.where(ties, 0.5, better > worse)
    # Numbers, not names: a NumPy array of texts drops trailing NULs and is as wide as the longest.
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    owners = np.array([numbers[name] for name in names])
    paradigms = {
        name: _count(points[owners == i], ties[owners == i]) for name, i in numbers.items()
    }
    ids, lengths = model.tokenizer.encode_batch(texts)
    pair_of_token = np.repeat(np.arange(len(texts)) % len(good), lengths)
    with_unknown = np.unique(pair_of_token[ids == model.tokenizer.unk_id])
    return MinimalPairScores(
        **vars(_count(points, ties)),
        num_pairs_with_unknown=len(with_unknown),
        mean_paradigm_accuracy=float(np.mean([p.accuracy for p in paradigms.values()])),
        mask_rest_of_word=mask_rest_of_word,
        paradigms=paradigms,
    )


def _count(points: npt.NDArray[np.float64], ties: npt.NDArray[np.bool_]) -> ParadigmScores:
    return ParadigmScores(float(points.mean()), len(points), int(ties.sum()))
