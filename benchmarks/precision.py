"""Whole training steps in fp32 and in bf16, in turns, at the shapes of the recipes.

    python benchmarks/precision.py [--rounds 8]

All on pairs of the sample corpus with the demo's tokenizer; the networks have the vocabulary sizes
that their recipes lead to, so that the products have their true shapes.
"""

import argparse

import torch
from measure import Spread, interleave, markdown_table, round_ratios, write_results

from bertmill.config import load_recipe
from bertmill.data.batch import Batches
from bertmill.data.prepare import open_or_prepare
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.device import measure_peak_flops
from bertmill.train.optimizer import make_optimizer
from bertmill.train.step import StepInput, take_step
from bertmill.train.world import World

# Recipe, vocabulary and sequences in a step.
SHAPES = [
    ("quick", 5_000, 32),
    ("d2l", 20_256, 512),
    ("tiny", 30_522, 32),
    ("mini", 30_522, 16),
    ("base", 30_522, 4),
]
CPU = torch.device("cpu")


def make_step(recipe, vocab_size, batch):
    model = PretrainingModel(recipe.model, vocab_size).train()
    initialize(model, recipe.model, torch.Generator().manual_seed(1))
    optimizer = make_optimizer(model, recipe.optimizer)
    made = StepInput.of([batch], CPU)
    return lambda: take_step(model, optimizer, made, recipe, 0, World(CPU))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    quick = load_recipe("quick")
    store = open_or_prepare(["sample:sotu"], quick.text, quick.tokenizer)
    peaks = {name: measure_peak_flops(CPU, name) for name in ("fp32", "bf16")}
    print(", ".join(f"{peak / 1e9:.0f} GFLOP/s in {name}" for name, peak in peaks.items()), "\n")
    found = {}
    for name, vocab_size, size in SHAPES:
        recipe = load_recipe(name)
        batches = Batches(
            store.train, store.tokenizer, recipe.pairs, recipe.masking, size, 1, "sample:sotu"
        )
        batch = batches.batch_at(0)
        steps = {
            p: make_step(load_recipe(name, [f"train.precision={p}"]), vocab_size, batch)
            for p in ("fp32", "bf16")
        }
        interleave(steps, 1)
        seconds = interleave(steps, rounds)
        found[name] = {p: Spread.of(values) for p, values in seconds.items()}
        found[name]["times as fast"] = round_ratios(seconds["fp32"], seconds["bf16"])
    rows = [
        [
            f"`{name}`, {size} sequences",
            *(f"{1e3 * found[name][p].median:,.0f}" for p in ("fp32", "bf16")),
            found[name]["times as fast"].show(),
        ]
        for name, _, size in SHAPES
    ]
    header = ["step", "fp32, ms", "bf16, ms", "times as fast (rounds' lowest to highest)"]
    print(markdown_table(header, rows))
    figures = {"peak_flops": peaks, "rounds": rounds, "seconds": found}
    print(f"\n{write_results('precision', figures, ['bertmill', 'torch', 'numpy'])}")


if __name__ == "__main__":
    main()
