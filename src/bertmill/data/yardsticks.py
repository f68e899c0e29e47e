"""What both losses must be compared with before they mean anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bertmill.arrays import Ints
from bertmill.config import MaskingSection
from bertmill.data.batch import Batch
from bertmill.data.overlap import OverlapRule
from bertmill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainingStatistics:
    """What predictors that are no network know of the training text."""

    token_counts: Ints
    """Occurrences of each id, shape (V,)."""
    overlap: OverlapRule | None
    """Fitted to training pairs; None without pairs."""


class Yardsticks(NamedTuple):
    """Mean cross entropies, in nats an answer, of predictors that learned no context.

    None without training statistics (but `nsp_chance_nats`), and without pairs.
    """

    unigram_nats: float | None
    """Training frequencies alone, whatever stands at the position."""
    no_context_nats: float | None
    """The best predictor that sees only the token shown at the position itself. A model that sits
    here has learned no context, however far below the word frequencies it is."""
    nsp_chance_nats: float | None
    """Entropy of the labels: the loss of always answering with their frequency."""
    nsp_overlap_nats: float | None
    """Shared words and lengths alone, `OverlapRule`."""
    nsp_overlap_accuracy: float | None
    """Share of pairs that shared words and lengths get right."""


def measure_yardsticks(
    batches: Sequence[Batch],
    statistics: TrainingStatistics | None,
    masking: MaskingSection,
    tokenizer: Tokenizer,
) -> Yardsticks:
    """Score the predictors on the very masks and pairs that a network is scored on."""
    labels = np.concatenate([batch.next_sentence_labels for batch in batches])
    chance = _entropy(float(labels.mean())) if len(labels) else None
    if statistics is None:
        return Yardsticks(None, None, chance, None, None)
    counts, overlap = statistics.token_counts, statistics.overlap
    unigram, no_context = measure_no_context(
        counts,
        np.concatenate([batch.token_ids[batch.masked_at] for batch in batches]),
        np.concatenate([batch.masked_labels for batch in batches]),
        masking,
        tokenizer,
    )
    if overlap is None or not len(labels):
        return Yardsticks(unigram, no_context, chance, None, None)
    return Yardsticks(unigram, no_context, chance, *overlap.score(batches, counts, tokenizer))


def measure_no_context(
    token_counts: Ints, shown: Ints, labels: Ints, masking: MaskingSection, tokenizer: Tokenizer
) -> tuple[float, float]:
    """Score the two context-free predictors: by frequencies, and by the token shown as well.

    With training frequencies p (one added to each count) and the shares m shown as the mask token,
    r as a random one of R ordinary tokens, k = 1 - m - r as itself, the posterior of label y is
    p(y) at a mask token and, at any other shown token w,

        P(y | w) = (k p(w) [y = w] + r p(y) / R) / (k p(w) + r / R),

    where r is 0 if w is special, because replacements are ordinary tokens.

    Parameters
    ----------
    token_counts : ndarray of int64, shape (V,)
        Of the training split.
    shown, labels : ndarray of int64, shape (P,)
        The token at each predicted position, and the true one.
    """
    smoothed = token_counts + 1.0
    p = smoothed / smoothed.sum()
    unigram = -np.log(p[labels])
    # Rounding may leave it a hair below 0.
    kept = max(0.0, 1.0 - masking.mask_token_fraction - masking.random_token_fraction)
    num_ordinary = np.count_nonzero(~tokenizer.is_special)
    random = np.where(
        tokenizer.is_special[shown], 0.0, masking.random_token_fraction / num_ordinary
    )
    numerator = kept * p[shown] * (shown == labels) + random * p[labels]
    denominator = kept * p[shown] + random
    # Pairs masked by another program may show tokens that our masking cannot produce: those are
    # treated as uninformative.
    visible = (shown != tokenizer.mask_id) & (numerator > 0.0)
    no_context = unigram.copy()
    no_context[visible] = -np.log(numerator[visible] / denominator[visible])
    return float(unigram.mean()), float(no_context.mean())


def _entropy(share: float) -> float:
    """Nats of a coin that comes up with this share: 0.5 gives ln 2."""
    return sum(-p * math.log(p) for p in (share, 1.0 - share) if p > 0.0)
