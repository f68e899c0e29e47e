"""One training step: both losses, their gradients, the update."""

from __future__ import annotations

import torch
from torch import Tensor

from bertmill.config import Recipe
from bertmill.data.randomness import make_key
from bertmill.model.pretraining import LossSums, PretrainingInput, PretrainingModel
from bertmill.train.optimizer import update
from bertmill.train.precision import autocast


def take_step(
    model: PretrainingModel,
    optimizer: torch.optim.AdamW,
    batch: PretrainingInput,
    recipe: Recipe,
    step: int,
) -> tuple[LossSums, Tensor]:
    """Train on a batch; dropout's draws are a function of the seed and the step.

    Parameters
    ----------
    model : PretrainingModel
    optimizer : AdamW
    batch : PretrainingInput
    recipe : Recipe
        Its precision is chosen.
    step : int
        Updates made before this one.

    Returns
    -------
    LossSums
    Tensor
        Whether the update was skipped, [], bool, on the device.
    """
    knobs = recipe.train
    assert knobs.precision != "auto"
    num_predictions, num_pairs = len(batch.masked_labels), len(batch.next_sentence_labels)
    torch.manual_seed(make_key(knobs.seed, "dropout", step))
    with autocast(batch.masked_labels.device, knobs.precision):
        sums = model(batch)
    loss = sums.mlm / num_predictions + knobs.nsp_weight * sums.nsp / max(1, num_pairs)
    loss.backward()
    return sums, update(optimizer, loss, recipe.optimizer.clip_norm)
