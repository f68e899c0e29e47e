"""One training step: both losses, their gradients, the update."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bertmill.config import Recipe
from bertmill.data.batch import Counts
from bertmill.data.randomness import make_key
from bertmill.model.pretraining import LossSums, PretrainingInput, PretrainingModel
from bertmill.train.optimizer import update
from bertmill.train.precision import autocast
from bertmill.train.world import World


class StepInput(NamedTuple):
    """What a step computes on: this rank's part of its batch, on the device."""

    micro_batches: list[PretrainingInput]
    counts: Counts
    """Of the whole batch, over all ranks."""


def take_step(
    model: PretrainingModel,
    optimizer: torch.optim.AdamW,
    batch: StepInput,
    recipe: Recipe,
    step: int,
    world: World,
) -> tuple[LossSums, Tensor]:
    """Update the weights once, from the gradients of a batch that is computed in parts.

    Each part's loss is its sum over the counts of the whole batch, so that gradients add up to
    those of the whole. Take 3 predictions whose losses sum to 6, and 1 whose loss is 3: both sums
    are divided by 4, and 6 / 4 + 3 / 4 = 2.25 is the mean of all four. The mean of the parts' own
    means would be (2 + 3) / 2 = 2.5.

    Parameters
    ----------
    model : PretrainingModel
    optimizer : AdamW
    batch : StepInput
    recipe : Recipe
        Its precision is chosen.
    step : int
        Updates made before this one.
    world : World

    Returns
    -------
    LossSums
        Of the whole batch, over all ranks.
    Tensor
        Whether the update was skipped, [], bool, on the device.
    """
    knobs = recipe.train
    assert knobs.precision != "auto"
    all_sums = []
    for number, part in enumerate(batch.micro_batches):
        torch.manual_seed(_dropout_key(knobs.seed, step, world.rank, number))
        with autocast(world.device, knobs.precision):
            sums = model(part)
        _mean_loss(sums, batch.counts, knobs.nsp_weight).backward()  # type: ignore[no-untyped-call]
        all_sums.append(LossSums(sums.mlm.detach(), sums.nsp.detach()))
    total = LossSums(*(torch.stack(column).sum() for column in zip(*all_sums, strict=True)))
    world.sum(*total)
    loss = _mean_loss(total, batch.counts, knobs.nsp_weight)
    return total, update(optimizer, loss, recipe.optimizer.clip_norm)


def _mean_loss(sums: LossSums, counts: Counts, nsp_weight: float) -> Tensor:
    return sums.mlm / counts.num_predictions + nsp_weight * sums.nsp / max(1, counts.num_pairs)


def _dropout_key(seed: int, step: int, rank: int, number: int) -> int:
    """Key the draws of a micro-batch; those of the first one are those of an undivided batch."""
    return make_key(seed, "dropout", step, *((rank, number) if rank or number else ()))
