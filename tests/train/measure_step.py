"""Take three training steps of full sequences, and print the most memory that the process held.

python measure_step.py RECIPE VOCAB_SIZE ROWS PARTS RECOMPUTE [SETTING ...]
"""

import resource
import sys

import numpy as np
import torch

from bertmill.config import load_recipe
from bertmill.data.batch import Batch
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.device import to_device
from bertmill.train.malloc import freed_memory_kept
from bertmill.train.optimizer import make_optimizer
from bertmill.train.step import StepInput, take_step
from bertmill.train.world import World

CPU = torch.device("cpu")


def make_batch(num_rows: int, length: int, vocab_size: int) -> Batch:
    draws, starts = np.random.default_rng(3), np.arange(num_rows + 1) * length
    masked_at = np.flatnonzero(np.arange(num_rows * length) % length % 7 == 1)
    return Batch(
        token_ids=draws.integers(5, vocab_size, starts[-1]),
        segment_ids=np.tile((np.arange(length) >= length // 2).astype(np.int64), num_rows),
        position_ids=np.tile(np.arange(length), num_rows),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=draws.integers(5, vocab_size, len(masked_at)),
        next_sentence_labels=draws.integers(0, 2, num_rows),
    )


def main(name: str, vocab_size: int, num_rows: int, parts: int, recompute: int, *settings: str):
    recipe = load_recipe(name, settings)
    model = PretrainingModel(recipe.model, vocab_size).train()
    initialize(model, recipe.model, torch.Generator().manual_seed(1))
    model.set_recompute(recompute=bool(recompute))
    optimizer = make_optimizer(model, recipe.optimizer)
    length = recipe.pairs.max_length
    batch = make_batch(parts * num_rows, length, vocab_size)
    inputs = [to_device(part, CPU) for part in batch.split(num_rows * length)]
    with freed_memory_kept():
        for step in range(3):
            take_step(model, optimizer, StepInput(inputs, batch.counts), recipe, step, World(CPU))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    name, *numbers = sys.argv[1:6]
    main(name, *map(int, numbers), *sys.argv[6:])
