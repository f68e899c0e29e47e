"""How well next sentence prediction is answered by counting shared words, without any network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bertmill.arrays import Floats, Ints
from bertmill.data.batch import Batch
from bertmill.text.tokenizer import Tokenizer

NUM_WEIGHTS = 8
"""Of an `OverlapRule`: the constant and the seven features."""
_NEWTON_STEPS = 25
# Keeps the weights finite where a feature always gives the answer, or there is only one answer.
_RIDGE = 1.0


@dataclass(frozen=True)
class OverlapRule:
    """A logistic regression on the words that two segments share and on their lengths.

    A word that both segments hold counts as much as it is rare in the training text. Tokens are
    taken as the encoder sees them, masks in place, so that a network has no less to go by.
    """

    weights: tuple[float, ...]
    """Of the constant and of each of `overlap_features`."""

    @classmethod
    def fit(cls, batches: Iterable[Batch], token_counts: Ints, tokenizer: Tokenizer) -> OverlapRule:
        """Fit the rule to pairs by Newton's method."""
        features, labels = _stack(batches, token_counts, tokenizer)
        mean, spread = features.mean(0), features.std(0)
        # A feature that never varied gives no information, nor does it on other pairs.
        spread[spread < 1e-9 * (1.0 + np.abs(mean))] = np.inf
        design = np.column_stack([np.ones(len(features)), (features - mean) / spread])
        penalty = _RIDGE * np.eye(design.shape[1])
        weights = np.zeros(design.shape[1])
        for _ in range(_NEWTON_STEPS):
            p = 1.0 / (1.0 + np.exp(-design @ weights))
            gradient = design.T @ (p - labels) + penalty @ weights
            curvature = (design.T * (p * (1.0 - p))) @ design + penalty
            weights -= np.linalg.solve(curvature, gradient)
        slopes = weights[1:] / spread
        return cls((float(weights[0] - slopes @ mean), *slopes.tolist()))

    def score(
        self, batches: Iterable[Batch], token_counts: Ints, tokenizer: Tokenizer
    ) -> tuple[float, float]:
        """Mean cross entropy in nats, and share of right answers."""
        features, labels = _stack(batches, token_counts, tokenizer)
        logits = self.weights[0] + features @ np.array(self.weights[1:])
        nats = np.logaddexp(0.0, -logits * (2.0 * labels - 1.0))
        return float(nats.mean()), float(((logits > 0) == labels).mean())


def overlap_features(batch: Batch, token_counts: Ints, tokenizer: Tokenizer) -> Floats:
    """Describe each pair by seven numbers, shape (B, 7).

    Of the distinct words that both segments hold: how many, their information in nats together,
    that of the rarest, and the whole as a share of what both segments hold; then the logarithms of
    both lengths and how far these are apart. The mask token is not counted as a word.
    """
    num_pairs, size = len(batch.sequence_starts) - 1, len(token_counts)
    owner = np.repeat(np.arange(num_pairs), np.diff(batch.sequence_starts))
    is_word = ~np.isin(batch.token_ids, [tokenizer.cls_id, tokenizer.sep_id])
    lengths = [
        np.bincount(owner[is_word & (batch.segment_ids == segment)], minlength=num_pairs)
        for segment in (0, 1)
    ]
    is_word &= batch.token_ids != tokenizer.mask_id
    first, second = (
        np.unique((owner * size + batch.token_ids)[is_word & (batch.segment_ids == segment)])
        for segment in (0, 1)
    )
    shared = np.intersect1d(first, second, assume_unique=True)

    counts = token_counts + 1.0
    nats = -np.log(counts / counts.sum())

    def total(keys: Ints) -> Floats:
        return np.bincount(keys // size, nats[keys % size], num_pairs).astype(np.float64)

    rarest = np.zeros(num_pairs)
    np.maximum.at(rarest, shared // size, nats[shared % size])
    logs = [np.log1p(length) for length in lengths]
    return np.column_stack(
        [
            np.bincount(shared // size, minlength=num_pairs),
            total(shared),
            rarest,
            total(shared) / (1.0 + np.sqrt(total(first) * total(second))),
            *logs,
            np.abs(logs[0] - logs[1]),
        ]
    )


def _stack(
    batches: Iterable[Batch], token_counts: Ints, tokenizer: Tokenizer
) -> tuple[Floats, Floats]:
    pairs = [
        (overlap_features(batch, token_counts, tokenizer), batch.next_sentence_labels)
        for batch in batches
    ]
    features, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return features, labels.astype(np.float64)
