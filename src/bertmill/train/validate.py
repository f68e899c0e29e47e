"""Held-out text: the same pairs and masks in every validation, run and seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bertmill.config import Recipe
from bertmill.data.batch import Batches
from bertmill.data.store import Store
from bertmill.data.yardsticks import measure_yardsticks
from bertmill.model.heads import PretrainingModel
from bertmill.model.losses import score_batch
from bertmill.train.device import to_device

# Held-out draws are keyed by this, never by the run's seed.
_SEED = 0
_SEQUENCES_AT_ONCE = 64


@dataclass(frozen=True)
class HeldOutScores:
    """Means over all held-out predictions and pairs, in nats or shares."""

    mlm_loss: float
    mlm_accuracy: float
    nsp_loss: float | None
    """None without pairs."""
    nsp_accuracy: float | None
    num_predictions: int
    num_pairs: int
    unigram_nats: float
    no_context_nats: float
    nsp_chance_nats: float | None
    """Entropy of the held-out labels: the loss of always answering with their frequency."""


class HeldOut:
    """The held-out split of a store, ready to be scored.

    Parameters
    ----------
    store : Store
    recipe : Recipe

    Raises
    ------
    CorpusError
        The split gives no example.
    """

    def __init__(self, store: Store, recipe: Recipe) -> None:
        batches = Batches(
            store.held_out,
            store.tokenizer,
            recipe.pairs,
            recipe.masking,
            _SEQUENCES_AT_ONCE,
            _SEED,
            ", ".join(store.manifest["held_out"]) or "the held-out share of the corpus",
        )
        size = min(recipe.train.validation_pairs, batches.num_examples)
        self._batches = [
            batches.batch_of(np.arange(start, min(start + _SEQUENCES_AT_ONCE, size)))
            for start in range(0, size, _SEQUENCES_AT_ONCE)
        ]
        self.yardsticks = measure_yardsticks(
            store.token_counts,
            np.concatenate([batch.token_ids[batch.masked_at] for batch in self._batches]),
            np.concatenate([batch.masked_labels for batch in self._batches]),
            recipe.masking,
            store.tokenizer,
        )
        labels = np.concatenate([batch.next_sentence_labels for batch in self._batches])
        self.nsp_chance_nats = _entropy(float(labels.mean())) if len(labels) else None

    def score(self, model: PretrainingModel, device: torch.device) -> HeldOutScores:
        """Score the model with dropout off; its mode is put back."""
        was_training = model.training
        model.eval()
        totals = torch.zeros(4, dtype=torch.float64)
        num_predictions = num_pairs = 0
        for batch in self._batches:
            scores = score_batch(model, to_device(batch, device))
            totals += torch.stack([s.double().cpu() for s in scores])
            num_predictions += len(batch.masked_labels)
            num_pairs += len(batch.next_sentence_labels)
        model.train(was_training)
        mlm_sum, mlm_right, nsp_sum, nsp_right = totals.tolist()
        return HeldOutScores(
            mlm_loss=mlm_sum / num_predictions,
            mlm_accuracy=mlm_right / num_predictions,
            nsp_loss=nsp_sum / num_pairs if num_pairs else None,
            nsp_accuracy=nsp_right / num_pairs if num_pairs else None,
            num_predictions=num_predictions,
            num_pairs=num_pairs,
            unigram_nats=self.yardsticks.unigram_nats,
            no_context_nats=self.yardsticks.no_context_nats,
            nsp_chance_nats=self.nsp_chance_nats,
        )


def _entropy(share: float) -> float:
    """Nats of a coin that comes up with this share: 0.5 gives ln 2."""
    return -sum(p * math.log(p) for p in (share, 1.0 - share) if p > 0.0)
