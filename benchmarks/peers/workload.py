"""What every program is given: the same pairs, and the same weights for the comparison of losses.

No torch is imported where pairs are read, so that a program without it is not charged for it.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rectangles import PaddedBatch, pad_batch
from safetensors.numpy import load_file, save_file

from bertmill.config import Recipe
from bertmill.data.batch import Batch, Batches
from bertmill.data.prepare import open_or_prepare
from bertmill.data.store import Store


@dataclass(frozen=True)
class Workload:
    """Pairs of a recipe over a store, and random weights by our names."""

    recipe: Recipe
    store_folder: Path
    weights_file: Path
    num_batches: int

    @cached_property
    def store(self) -> Store:
        return Store(self.store_folder)

    @cached_property
    def batches(self) -> list[Batch]:
        recipe, store = self.recipe, self.store
        made = Batches(
            store.train,
            store.tokenizer,
            recipe.pairs,
            recipe.masking,
            recipe.train.batch_size,
            recipe.train.seed,
            "the benchmark's text",
        )
        return [made.batch_at(step) for step in range(self.num_batches)]

    @property
    def vocab_size(self) -> int:
        return self.store.tokenizer.size

    def padded(self) -> list[PaddedBatch]:
        """Lay all batches out in rectangles of the recipe's full length."""
        length, share = self.recipe.pairs.max_length, self.recipe.masking.mask_fraction
        pad_id = self.store.tokenizer.pad_id
        return [
            pad_batch(batch, length, max(1, round(share * length)), pad_id)
            for batch in self.batches
        ]

    def weights(self) -> dict[str, np.ndarray]:
        return load_file(self.weights_file)


def prepare_workload(
    recipe: Recipe, corpus: list[str], held_out: list[str], num_batches: int, weights_file: Path
) -> Workload:
    """Open or prepare the store, and draw the weights."""
    store = open_or_prepare(corpus, recipe.text, recipe.tokenizer, held_out)
    save_file(draw_weights(recipe, store.tokenizer.size), weights_file)
    return Workload(recipe, store.folder, weights_file, num_batches)


def draw_weights(recipe: Recipe, vocab_size: int) -> dict[str, np.ndarray]:
    """Weights large enough that both losses depend on every one of them.

    At a recipe's own small draw each loss is nearly that of a uniform guess, whatever the network.
    """
    from bertmill.model.pretraining import PretrainingModel, shapes_alone

    with shapes_alone():
        model = PretrainingModel(recipe.model, vocab_size)
    rng = np.random.default_rng(1)
    weights = {}
    for name, parameter in model.named_parameters():
        std = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        drawn = rng.standard_normal(tuple(parameter.shape), np.float32) * np.float32(std)
        weights[name] = drawn + ("norm" in name and name.endswith("weight"))
    return weights
