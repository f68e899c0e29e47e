"""Two processes with one thread each against one process with two, and how evenly rows are dealt.

    python benchmarks/ranks.py [--recipe mini] [--steps 30] [--rounds 3] [--corpus sample:sotu]

``bertmill pretrain`` runs alone, and under torchrun with ``train.shard=none`` and ``full``; in a
round each has one turn. Shares are of the pairs per second that one process reaches in the same
round, after its first steps. The spread of a step is how many more tokens its fullest rank has than
its emptiest, as a share of what a rank has on average. Prints two tables and writes
``results/ranks.json``. Run it on an otherwise idle machine with two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Spread, markdown_table, round_ratios, write_results

from bertmill.config import load_recipe
from bertmill.data.batch import Batches
from bertmill.data.prepare import open_or_prepare
from bertmill.train.run_folder import RunFolder

GOAL = 0.95
LOG_EVERY = 5
SETTINGS = [
    *("text.document=block", "text.sentences=sentencex", "text.held_out_fraction=0.0"),
    *(f"train.log_every_steps={LOG_EVERY}", "train.precision=fp32", "train.device=cpu"),
]
WAYS = {
    "1 process, 2 threads": (1, []),
    "2 ranks, 1 thread each": (2, []),
    "2 ranks, sharded": (2, ["train.shard=full"]),
}
DEALT = [2, 4, 8]
DEALT_STEPS = 50


def pretrain(out: Path, way: str, options: argparse.Namespace) -> float:
    """Train in processes of its own and return the pairs per second after the first steps."""
    size, own = WAYS[way]
    program = ["-m", "bertmill"]
    if size > 1:
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        program += ["-m", "bertmill"]
    settings = [part for setting in [*SETTINGS, *own] for part in ("--set", setting)]
    subprocess.run(
        [sys.executable, *program, "pretrain", "--corpus", options.corpus, "--recipe",
         options.recipe, "--steps", str(options.steps), "--out", str(out), *settings],
        env=os.environ | {"OMP_NUM_THREADS": str(2 // size)}, check=True, capture_output=True,
    )  # fmt: skip
    records = RunFolder(out).metrics().train[1:]
    return Spread.of(record.pairs_per_second for record in records).median


def spreads(options: argparse.Namespace) -> dict[int, Spread]:
    """Deal the rows of some steps to so many ranks, and see how their numbers of tokens differ."""
    recipe = load_recipe(options.recipe, SETTINGS)
    store = open_or_prepare([options.corpus], recipe.text, recipe.tokenizer)
    size, seed = recipe.train.batch_size, recipe.train.seed
    parts = (recipe.pairs, recipe.masking, size, seed, options.corpus)
    batches = Batches(store.train, store.tokenizer, *parts)
    found = {}
    for size in DEALT:
        each = []
        for step in range(DEALT_STEPS):
            ranks = [batches.micro_batches_at(step, 0, rank, size) for rank in range(size)]
            tokens = [sum(len(part.token_ids) for part in rank) for rank in ranks]
            each.append((max(tokens) - min(tokens)) / (sum(tokens) / size))
        found[size] = Spread.of(each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--corpus", default="sample:sotu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.steps < 2 * LOG_EVERY:
        parser.error(f"--steps is less than {2 * LOG_EVERY}")
    dealt = spreads(options)
    rows = [
        [str(size), f"{100 * s.median:.1f} %", f"{100 * s.max:.1f} %"] for size, s in dealt.items()
    ]
    print(markdown_table(["ranks", "spread of tokens", "at most"], rows), flush=True)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for way, each in speeds.items():
                each.append(pretrain(Path(folder) / f"{number}-{way}", way, options))
                print(f"round {number + 1}: {way}: {each[-1]:.1f} pairs/s", flush=True)
    alone, *_ = speeds.values()
    shares = {way: round_ratios(each, alone) for way, each in speeds.items()}
    rows = [[way, Spread.of(speeds[way]).show(1), share.show()] for way, share in shares.items()]
    print(markdown_table(["", "pairs/s", f"share (goal {GOAL})"], rows))
    figures = {"options": vars(options), "pairs_per_second": speeds, "shares": shares}
    print(write_results("ranks", {**figures, "spread_of_tokens": dealt}, ["torch"]))


if __name__ == "__main__":
    main()
