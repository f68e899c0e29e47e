"""Minimal pairs: how often the model prefers the grammatical one of two sentences.

Warstadt et al. 2020 (BLiMP) and Huebner et al. 2021 (Zorro), scored by pseudo-log-likelihood
(Salazar et al. 2020). `Deviation:` a tie is reported and counts as half a right answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bertmill.errors import InputError
from bertmill.evaluation.held_out import refuse_without_masked_token_head
from bertmill.model.folder import LoadedModel
from bertmill.text.rows import read_rows, text_of
from bertmill.use.score import pseudo_log_likelihoods

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
    loaded: LoadedModel, path: str, mask_rest_of_word: bool, device: torch.device
) -> MinimalPairScores:
    """Score a model on a file of minimal pairs.

    Parameters
    ----------
    loaded : LoadedModel
    path : str
        Rows with ``sentence_good``, ``sentence_bad`` and, where there are several paradigms,
        ``paradigm`` or ``UID``.
    mask_rest_of_word : bool
        See `Pretrained.score`.
    device : torch.device

    Raises
    ------
    ModelError
        The folder lacks the masked-token head.
    CorpusError
        The file cannot be read or holds something else.
    InputError
        No pairs, or a sentence that is too long.
    """
    refuse_without_masked_token_head(loaded)
    good, bad, names = [], [], []
    for row in read_rows(path):
        good.append(text_of(row, "sentence_good"))
        bad.append(text_of(row, "sentence_bad"))
        column = next((name for name in _PARADIGM_COLUMNS if name in row[1]), None)
        names.append("all" if column is None else text_of(row, column))
    if not good:
        raise InputError(path, "has no pairs", "give a file with one pair per line")
    scores = pseudo_log_likelihoods(
        loaded.model.to(device), loaded.tokenizer, [*good, *bad], mask_rest_of_word, device
    )
    better, worse = np.split(scores, 2)
    ties = better == worse
    points = np.where(ties, 0.5, better > worse)
    # Numbers, not names: a NumPy array of texts drops trailing NULs and is as wide as the longest.
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    owners = np.array([numbers[name] for name in names])
    paradigms = {
        name: _count(points[owners == i], ties[owners == i]) for name, i in numbers.items()
    }
    unknown = _has_unknown(loaded, good) | _has_unknown(loaded, bad)
    return MinimalPairScores(
        **vars(_count(points, ties)),
        num_pairs_with_unknown=int(unknown.sum()),
        mean_paradigm_accuracy=float(np.mean([p.accuracy for p in paradigms.values()])),
        mask_rest_of_word=mask_rest_of_word,
        paradigms=paradigms,
    )


def _count(points: npt.NDArray[np.float64], ties: npt.NDArray[np.bool_]) -> ParadigmScores:
    return ParadigmScores(float(points.mean()), len(points), int(ties.sum()))


def _has_unknown(loaded: LoadedModel, texts: list[str]) -> npt.NDArray[np.bool_]:
    ids, lengths = loaded.tokenizer.encode_batch(texts)
    owners = np.repeat(np.arange(len(texts)), lengths)
    return np.bincount(owners, ids == loaded.tokenizer.unk_id, len(texts)) > 0
