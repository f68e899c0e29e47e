"""Held-out text: the same pairs and masks in every validation, run and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from bertmill.config import Recipe
from bertmill.data.batch import Batch, Batches
from bertmill.data.store import TokenStore
from bertmill.data.yardsticks import TrainingStatistics, Yardsticks, measure_yardsticks
from bertmill.model.pretraining import PretrainingModel, Scores
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.device import to_device
from bertmill.train.world import World

# Held-out draws are keyed by this, never by the run's seed.
_SEED = 0
SEQUENCES_AT_ONCE = 64


LOSS_NAMES = {"mlm": "masked language modeling", "nsp": "next sentence prediction"}


class Level(NamedTuple):
    """What is reached without reading the text, on the same answers."""

    name: str
    nats: float
    accuracy: float | None = None


class LossScore(NamedTuple):
    """One of the two losses on held-out text, and what it is compared with."""

    kind: str
    """A key of `LOSS_NAMES`."""
    loss: float
    accuracy: float
    num_answers: int
    unit: str
    """What an answer is about: ``masks`` or ``pairs``."""
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class HeldOutScores:
    """Means over all held-out answers, in nats or shares, and the `Yardsticks` of the same."""

    mlm_loss: float
    mlm_accuracy: float
    nsp_loss: float | None
    """None without pairs."""
    nsp_accuracy: float | None
    num_predictions: int
    num_pairs: int
    unigram_nats: float | None
    no_context_nats: float | None
    nsp_chance_nats: float | None
    nsp_overlap_nats: float | None
    nsp_overlap_accuracy: float | None

    @property
    def losses(self) -> tuple[LossScore, ...]:
        """The losses that there are, in the form in which every page shows them.

        Next sentence prediction is left out where all labels are the same: nothing is known then.
        """
        levels, masks = levels_of(self), (self.num_predictions, "masks")
        found = (LossScore("mlm", self.mlm_loss, self.mlm_accuracy, *masks, levels["mlm"]),)
        if self.nsp_loss is None or self.nsp_accuracy is None or not self.nsp_chance_nats:
            return found
        pairs = self.num_pairs, "pairs"
        return (*found, LossScore("nsp", self.nsp_loss, self.nsp_accuracy, *pairs, levels["nsp"]))


def levels_of(known: HeldOutScores | Yardsticks) -> dict[str, tuple[Level, ...]]:
    """Name what each loss is compared with, by its key in `LOSS_NAMES`."""
    levels: dict[str, list[tuple[str, float | None, float | None]]] = {
        "mlm": [
            ("no context", known.no_context_nats, None),
            ("word frequencies", known.unigram_nats, None),
        ],
        "nsp": [
            ("label frequencies", known.nsp_chance_nats, None),
            ("shared words", known.nsp_overlap_nats, known.nsp_overlap_accuracy),
        ],
    }
    return {
        kind: tuple(Level(name, nats, right) for name, nats, right in each if nats is not None)
        for kind, each in levels.items()
    }


class HeldOut:
    """Held-out text as masked pairs, ready to be scored.

    Parameters
    ----------
    store : TokenStore
    tokenizer : Tokenizer
    recipe : Recipe
        How pairs are drawn and masked.
    statistics : TrainingStatistics or None
        For the yardsticks.
    limit : int or None
        Sequences scored at most.
    name : str
        What to call the text in an error.

    Raises
    ------
    CorpusError
        The text gives no example.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        recipe: Recipe,
        statistics: TrainingStatistics | None,
        limit: int | None,
        name: str,
    ) -> None:
        pairs, masking = recipe.pairs, recipe.masking
        batches = Batches(store, tokenizer, pairs, masking, SEQUENCES_AT_ONCE, _SEED, name)
        size = min(limit or batches.num_examples, batches.num_examples)
        self._batches = [
            batches.batch_of(np.arange(start, min(start + SEQUENCES_AT_ONCE, size)))
            for start in range(0, size, SEQUENCES_AT_ONCE)
        ]
        self.yardsticks = measure_yardsticks(self._batches, statistics, masking, tokenizer)

    def score(self, model: PretrainingModel, world: World) -> HeldOutScores:
        """Score the model with dropout off, each rank a part of the text; its mode is put back."""
        own = self._batches[world.rank :: world.size]
        # All ranks go through the model as often: they may hold parts of it for one another.
        num_more = -(-len(self._batches) // world.size) - len(own)
        scores = score_batches(model, own + self._batches[:num_more], world.device, len(own))
        mlm, mlm_right, nsp, nsp_right, num_predictions, num_pairs = world.totals(
            *(column.sum().item() for column in scores), len(scores.mlm), len(scores.nsp)
        )
        return HeldOutScores(
            mlm_loss=mlm / num_predictions,
            mlm_accuracy=mlm_right / num_predictions,
            nsp_loss=nsp / num_pairs if num_pairs else None,
            nsp_accuracy=nsp_right / num_pairs if num_pairs else None,
            num_predictions=int(num_predictions),
            num_pairs=int(num_pairs),
            **self.yardsticks._asdict(),
        )


def score_batches(
    model: PretrainingModel,
    batches: Sequence[Batch],
    device: torch.device,
    num_kept: int | None = None,
) -> Scores:
    """Score every answer of several batches, dropout off; given as float64 on the CPU.

    With `num_kept` the scores of so many batches are kept, and the others computed for nothing.
    """
    was_training = model.training
    model.eval()
    parts = [model.score(to_device(batch, device)) for batch in batches]
    model.train(was_training)
    if num_kept is not None:
        parts[num_kept:] = [Scores(*(x[:0] for x in part)) for part in parts[num_kept:]]
    return Scores(*(torch.cat(columns).double().cpu() for columns in zip(*parts, strict=True)))
