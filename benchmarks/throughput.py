"""Sentence pairs a second of a whole training step, beside what people would use instead.

    python benchmarks/throughput.py [--corpus FILE --held-out FILE] [--shapes d2l mini base]
                                    [--programs NAME ...] [--rounds N] [--threads N]

All programs train on the same pairs, with the same loss and precision. Before anything is timed,
those of the same loss are given the same weights and must agree on the first batch. Each runs in a
process of its own; in a round each has its turn, on the same batch, while the others wait. The
first round, where networks are compiled, is not counted; of another program whose step takes over
ten seconds one round is. Prints a table for each shape and writes ``results/throughput.json``. Run
it on an otherwise idle machine.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from measure import (
    Spread,
    markdown_table,
    peak_memory_bytes,
    round_ratios,
    timed,
    write_results,
)
from peers.floor import PEAK_STEP_FLOPS
from peers.ours import CPU
from peers.workload import Workload, prepare_workload

from bertmill.config import load_recipe
from bertmill.model.pretraining import count_step_flops
from bertmill.train.device import to_device

OURS, OURS_WITHOUT_DROPOUT = "bertmill", "bertmill, no dropout"
FLOOR, PEAK = "floor: the matrix products alone", "wide matrix products"
OURS_AND_FLOOR = (OURS, OURS_WITHOUT_DROPOUT, FLOOR, PEAK)
# Module, class and options of each row; one more program is one more line here.
PROGRAMS = {
    OURS: ("peers.ours", "Bertmill", {}),
    OURS_WITHOUT_DROPOUT: (
        "peers.ours",
        "Bertmill",
        {"settings": ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]},
    ),
    FLOOR: ("peers.floor", "Floor", {}),
    PEAK: ("peers.floor", "Peak", {}),
    "reference program, eager": ("peers.reference", "ReferenceProgram", {}),
    "reference program, tf.function": ("peers.reference", "ReferenceProgram", {"as_graph": True}),
    "plain PyTorch, padded": ("peers.padded", "PaddedTorch", {}),
    "transformers BertForPreTraining": ("peers.huggingface", "ForPreTraining", {}),
    "transformers BertForMaskedLM (no NSP)": ("peers.huggingface", "ForMaskedLM", {}),
}
# So much of the larger loss may two programs differ by.
TOLERANCE = 1e-4
# A turn is one step, or as many as take this long.
TURN_SECONDS = 2.0
SLOW_SECONDS = 10.0
PACKAGES = ["bertmill", "numpy", "torch", "transformers"]

DATA = Path(__file__).parents[2] / "shared" / "data"
WIKITEXT = [DATA / "wikitext-2" / f"wiki.{split}.tokens.gz" for split in ("train", "valid")]
VOCABULARY = DATA / "vocab" / "bert-base-uncased.txt"


@dataclass(frozen=True)
class Shape:
    recipe: str
    num_rounds: int
    settings: tuple[str, ...] = ()


SHAPES = {
    "d2l": Shape("d2l", 3),
    "mini": Shape("mini", 2, ("train.batch_size=32",)),
    "base": Shape("base", 2, ("train.batch_size=4", "pairs.max_length=128")),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", help="Default: WikiText-2 where it is, else sample:sotu.")
    parser.add_argument("--held-out")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    programs = list(dict.fromkeys([OURS, FLOOR, PEAK, *arguments.programs]))
    if not find_spec("tensorflow"):
        say("no TensorFlow here, so no reference program: pip install 'bertmill[bench]'")
        programs = [name for name in programs if PROGRAMS[name][0] != "peers.reference"]
    # What the workers' libraries take their number of threads from.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = str(arguments.threads)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    results = {}
    for name in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            shape = SHAPES[name]
            num_rounds = arguments.rounds or shape.num_rounds
            workload = make_workload(arguments, shape, num_rounds + 1, Path(folder) / "weights")
            results[name] = measure(workload, programs, num_rounds)
        print(f"\n{describe(name, workload)}\n\n{table(results[name]['programs'])}")
        print(f"\n{describe_floor(results[name])}")
    packages = [*PACKAGES, "tensorflow-cpu", "keras"] if find_spec("tensorflow") else PACKAGES
    is_whole = len(results) == len(SHAPES)
    name = "-".join(["throughput", *([] if is_whole else results)])
    write_results(name, {"shapes": results}, packages, arguments.threads)


def make_workload(arguments, shape, num_batches, weights_file):
    corpus, held_out = arguments.corpus, arguments.held_out
    if not corpus and WIKITEXT[0].exists():
        corpus, held_out = map(str, WIKITEXT)
    corpus = corpus or "sample:sotu"
    settings = list(shape.settings)
    recipe = load_recipe(shape.recipe, settings)
    if recipe.tokenizer.kind == "wordpiece" and VOCABULARY.exists():
        settings.append(f"tokenizer.path={VOCABULARY}")
    if ".tokens" not in corpus:  # not split into sentences as WikiText is
        settings += ["text.document=block", "text.sentences=sentencex"]
    recipe = load_recipe(shape.recipe, settings)
    say(f"{shape.recipe}: preparing {corpus}")
    return prepare_workload(
        recipe, [corpus], [held_out] if held_out else [], num_batches, weights_file
    )


def measure(workload, programs, num_rounds):
    """Compare the losses, take the rounds, and return all figures of a shape."""
    context = multiprocessing.get_context("spawn")
    batches = workload.batches[1:]
    fresh = replace(workload)  # without what it has opened, which cannot be sent
    with ExitStack() as stack:
        pipes = {}
        for name in programs:
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, name, fresh), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.enter_context(closing(pipes[name]))  # first, so that a worker ends
        losses = {name: pipe.recv() for name, pipe in pipes.items()}
        check_losses(losses)
        for pipe in pipes.values():  # one by one, because the floor chooses by measuring
            pipe.send(None)
            pipe.recv()
        seconds = {name: [] for name in programs}
        for number in range(num_rounds + 1):
            for name, pipe in pipes.items():
                if number > 1 and name not in OURS_AND_FLOOR and seconds[name][1] > SLOW_SECONDS:
                    continue
                pipe.send(number)
                seconds[name].append(pipe.recv())
                say(f"round {number} of {num_rounds}: {name}: {seconds[name][-1]:.2f} s a step")
        for pipe in pipes.values():
            pipe.send(None)
        memory = {name: pipe.recv() for name, pipe in pipes.items()}
    seconds = {name: each[1:] for name, each in seconds.items()}
    num_pairs = workload.recipe.train.batch_size
    flops = [count_flops(workload, batch) for batch in batches]
    peak_seconds = seconds.pop(PEAK)
    return {
        "corpus": [Path(source).name for source in workload.store.manifest["corpus"]],
        "batch_size": num_pairs,
        "max_length": workload.recipe.pairs.max_length,
        "vocab_size": workload.vocab_size,
        "tokens_of_each_batch": [len(batch.token_ids) for batch in batches],
        "predictions_of_each_batch": [len(batch.masked_labels) for batch in batches],
        "losses": losses,
        "step_flops_of_each_batch": flops,
        "floor_flops_per_second": Spread.of(
            f / s for f, s in zip(flops, seconds[FLOOR], strict=True)
        ),
        "peak_flops_per_second": Spread.of(PEAK_STEP_FLOPS / s for s in peak_seconds),
        "share_of_floor": {
            name: round_ratios(seconds[FLOOR], seconds[name])
            for name in (OURS, OURS_WITHOUT_DROPOUT)
            if name in seconds
        },
        "programs": {
            name: {
                "pairs_per_second": Spread.of(num_pairs / s for s in each),
                "tokens_per_second": Spread.of(
                    len(batch.token_ids) / s
                    for batch, s in zip(batches[: len(each)], each, strict=True)
                ),
                "times_ours": round_ratios(each, seconds[OURS][: len(each)]),
                "peak_memory_bytes": memory[name],
                "seconds_of_each_round": each,
            }
            for name, each in seconds.items()
        },
    }


def work(pipe, name, workload: Workload):
    """Be the process of one program: losses, then a turn for every number that comes."""
    module, kind, options = PROGRAMS[name]
    program = getattr(import_module(module), kind)(workload, **options)
    pipe.send(program.losses())
    pipe.recv()
    program.start()
    forget_peak_memory()
    pipe.send(None)
    turn_seconds = 0.0  # the first round: one step
    while (number := pipe.recv()) is not None:
        seconds = []
        while not seconds or sum(seconds) < turn_seconds:
            seconds.append(timed(lambda: program.step(number)))
        pipe.send(statistics.mean(seconds))
        turn_seconds = TURN_SECONDS
    pipe.send(peak_memory_bytes())


def count_flops(workload, batch):
    return count_step_flops(
        workload.recipe.model,
        workload.vocab_size,
        batch.lengths,
        to_device(batch, CPU).selection.lengths,
        len(batch.masked_labels),
        len(batch.next_sentence_labels),
    )


def forget_peak_memory():
    """Let the peak count from now on; the comparison of losses is no part of training."""
    Path("/proc/self/clear_refs").write_text("5")


def check_losses(losses):
    """Say all losses, and fail where one is not ours."""
    ours = losses[OURS]
    for name, theirs in losses.items():
        if theirs is None:
            say(f"{name}: another loss")
            continue
        say(f"{name}: MLM {theirs[0]:.6f} NSP {theirs[1]:.6f} total {sum(theirs):.6f}")
        for one, two in zip((*ours, sum(ours)), (*theirs, sum(theirs)), strict=True):
            assert abs(one - two) <= TOLERANCE * max(one, two), (name, theirs, ours)


def describe(name, workload):
    batch, recipe = workload.batches[1], workload.recipe
    share = len(batch.token_ids) / (recipe.train.batch_size * recipe.pairs.max_length)
    return (
        f"{name}: {recipe.train.batch_size} pairs of at most {recipe.pairs.max_length} tokens "
        f"({share:.0%} of the rectangle is tokens), {len(batch.masked_labels):,} predictions, "
        f"{workload.vocab_size:,} entries"
    )


def describe_floor(figures):
    floor, peak = figures["floor_flops_per_second"], figures["peak_flops_per_second"]
    shares = ", ".join(f"{name} {s.show()}" for name, s in figures["share_of_floor"].items())
    return (
        f"Of the floor's speed: {shares}. The floor makes {floor.median / 1e9:,.0f} GFLOP/s, "
        f"{floor.median / peak.median:.0%} of the {peak.median / 1e9:,.0f} of {PEAK}."
    )


def table(programs):
    rows = [
        [
            name,
            f"{figures['pairs_per_second'].median:,.1f}",
            f"{figures['tokens_per_second'].median:,.0f}",
            figures["times_ours"].show(),
            f"{figures['peak_memory_bytes'] / 2**30:.2f}",
        ]
        for name, figures in programs.items()
    ]
    return markdown_table(
        ["program", "pairs/s", "tokens/s", "times our step's time", "peak memory, GiB"], rows
    )


def say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
