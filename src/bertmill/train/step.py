"""One training step: both losses, their gradients, the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bertmill.config import Recipe
from bertmill.data.batch import Batch
from bertmill.data.randomness import make_key
from bertmill.model.packed import copy_to
from bertmill.model.pretraining import LossSums, PretrainingInput, PretrainingModel
from bertmill.train.device import to_device
from bertmill.train.optimizer import update
from bertmill.train.precision import autocast
from bertmill.train.world import World


class StepInput(NamedTuple):
    """What a rank computes in a step, on its device."""

    micro_batches: list[PretrainingInput]
    counts: Tensor
    """Predictions and pairs in them, [2], int64."""

    @classmethod
    def of(cls, micro_batches: Sequence[Batch], device: torch.device) -> StepInput:
        """Count what is to be predicted, and copy all to the device, without waiting."""
        each = [(len(b.masked_labels), len(b.next_sentence_labels)) for b in micro_batches]
        counts = copy_to(device, torch.tensor(each).sum(0))
        return cls([to_device(batch, device) for batch in micro_batches], counts)


class StepSums(NamedTuple):
    """What came out of a step, over all of its batch on all ranks."""

    losses: LossSums
    counts: Tensor
    """Predictions and pairs, [2], int64."""
    is_skipped: Tensor
    """Whether there was no update, because something was not finite, [], bool."""


def take_step(
    model: PretrainingModel,
    optimizer: torch.optim.AdamW,
    batch: StepInput,
    recipe: Recipe,
    step: int,
    world: World,
) -> StepSums:
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
    StepSums
        On the device: nothing here waits for it.
    """
    knobs = recipe.train
    assert knobs.precision != "auto"
    counts = world.sum(batch.counts.clone())
    all_sums = []
    for number, part in enumerate(batch.micro_batches):
        torch.manual_seed(_dropout_key(knobs.seed, step, world.rank, number))
        world.will_reduce(model, number == len(batch.micro_batches) - 1)
        with autocast(world.device, knobs.precision):
            sums = model(part)
        _mean_loss(sums, counts, knobs.nsp_weight).backward()  # type: ignore[no-untyped-call]
        all_sums.append(torch.stack([x.detach() for x in sums]))
    total = LossSums(*world.sum(torch.stack(all_sums).sum(0)).unbind())
    loss = _mean_loss(total, counts, knobs.nsp_weight)
    return StepSums(total, counts, update(optimizer, loss, recipe.optimizer.clip_norm))


def _mean_loss(sums: LossSums, counts: Tensor, nsp_weight: float) -> Tensor:
    num_predictions, num_pairs = counts.unbind()
    return sums.mlm / num_predictions + nsp_weight * sums.nsp / num_pairs.clamp(min=1)


def _dropout_key(seed: int, step: int, rank: int, number: int) -> int:
    """Key the draws of a micro-batch; those of the first one are those of an undivided batch."""
    return make_key(seed, "dropout", step, *((rank, number) if rank or number else ()))
