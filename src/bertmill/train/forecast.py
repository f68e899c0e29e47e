"""What a run would take: arithmetic, memory, time and cost, computed before it is started."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import torch

from bertmill.config import Recipe, did_you_mean, parse_bytes
from bertmill.errors import InputError
from bertmill.model.pretraining import count_step_flops
from bertmill.train.memory import SHARES, Division, StepMemory, divide_step, estimate

_SHORT_STEP = 0.02
"""Seconds below which what is not arithmetic counts too: starting kernels, summing gradients."""


@dataclass(frozen=True)
class Span:
    """From the lowest to the highest."""

    low: float
    high: float

    def times(self, factor: float) -> Span:
        """Scale both ends."""
        return Span(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Device:
    """A kind of device."""

    name: str
    peak_flops: float
    """Operations per second, as its maker states them for dense products of 16-bit factors."""
    memory_bytes: float
    dollars_per_hour: Span | None = None
    """List prices of several providers; None where none is known."""
    mfu: Span = Span(0.20, 0.45)
    """Share of the peak that the matrix products of a step reach; docs/explanation/scale.md."""


DEVICES = {
    device.name: device
    for device in (
        # Prices: mercatus-ai.com/blog/cloud-gpu-pricing, on demand, May 2026.
        Device("A100", 312e12, 80e9, Span(0.80, 3.00)),
        Device("H100", 989e12, 80e9, Span(1.99, 5.00)),
        Device("H200", 989e12, 141e9, Span(2.50, 7.00)),
        Device("L4", 121e12, 24e9),
        Device("L40S", 362e12, 48e9),
        Device("A6000", 154.8e12, 48e9),
        Device("RTX3090", 71e12, 24e9),
        Device("RTX4090", 165e12, 24e9),
        # A core with AVX-512, in 32 bits, as measured (docs/experiments.md), and 8 GB for each.
        Device("CPU", 90e9, 8e9, mfu=Span(0.40, 0.70)),
    )
}
"""By their names in a device plan."""


@dataclass(frozen=True)
class PhaseForecast:
    """What one phase of a run would take."""

    steps: int
    max_length: int
    step_flops: int
    step_seconds: Span


@dataclass(frozen=True)
class Forecast:
    """What a run would take, if every sequence were as long as its phase allows.

    Time is that of the matrix products, at the lowest and highest `mfu`; it leaves out validation,
    checkpoints, and waiting for data or for other devices.
    """

    recipe: str
    steps: int
    batch_size: int
    phases: tuple[PhaseForecast, ...]
    tokens: int
    """Tokens read in all steps, repetitions included."""
    epochs: float | None
    """How often the text is read; None where its size is not given."""
    flops: int
    """Operations of all matrix products."""
    device: str
    num_devices: int
    peak_flops: float
    """Of one device."""
    mfu: Span
    seconds: Span
    dollars_per_hour: Span | None
    """For one device."""
    dollars: Span | None
    memory: StepMemory
    """Of one device, in the phase with the longest sequences; of a CPU, all of it."""
    micro_batch_tokens: int
    """Tokens of a device that are computed at once then; 0: all of its share of the step."""
    recompute: bool
    notes: tuple[str, ...]
    """What makes the real run slower."""


def parse_devices(text: str) -> tuple[int, Device]:
    """Read ``8xH100`` as a count and a device.

    Raises
    ------
    InputError
        No such form, or no such device.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})\s*[x*]\s*([a-z][a-z0-9]*)", text.strip(), re.IGNORECASE)
    if found is None:
        raise InputError(
            f"`devices` {text}",
            "is not a device plan" + did_you_mean(f"1x{text}".upper(), [f"1x{n}" for n in DEVICES]),
            "write how many of which, such as 8xH100",
        )
    name = found[2].upper()
    if name not in DEVICES:
        raise InputError(
            f"`devices` {text}",
            "names a device that is not known" + did_you_mean(name, list(DEVICES)),
            f"known are {', '.join(DEVICES)}",
        )
    return int(found[1]), DEVICES[name]


def forecast(
    recipe: Recipe,
    num_devices: int,
    device: Device,
    num_tokens: float | None = None,
    price: float | None = None,
) -> Forecast:
    """Compute what a run would take.

    Parameters
    ----------
    recipe : Recipe
        Its vocabulary is taken to be as large as it may be.
    num_devices : int
    device : Device
    num_tokens : float, optional
        Tokens of the text.
    price : float, optional
        Dollars for a device and hour, instead of the device's.

    Raises
    ------
    BertmillError
        The recipe has no network or a time budget, fewer sequences in a step than there are
        devices, or does not fit their memory.
    """
    train, where = recipe.train, f"recipe {recipe.name}"
    if recipe.name == "continue":
        raise InputError(where, "has no network of its own", "give the recipe of its model")
    if train.budget_seconds:
        fix = "give train.steps, and train.budget_seconds=0"
        raise InputError(where, "has a time budget instead of a number of steps", fix)
    # The cores of a machine work on all sequences together.
    num_ranks = 1 if device.name == "CPU" else num_devices
    if num_ranks > train.batch_size:
        raise InputError(
            f"`devices` {num_devices}x{device.name}",
            f"are more than the {train.batch_size} sequences of a step",
            "give fewer, or raise train.batch_size",
        )
    division, memory = _fit(recipe, device, num_devices, num_ranks)
    # Recomputing adds a fourth pass to three: one forward, two backward.
    useful = 0.75 if division.recompute else 1.0
    speed = device.mfu.times(num_devices * device.peak_flops * useful)

    def seconds_of(flops: int) -> Span:
        return Span(flops / speed.high, flops / speed.low)

    phases = []
    for (start, stop), pairs in zip(
        pairwise([*recipe.phase_starts(), train.steps]), recipe.phase_pairs(), strict=True
    ):
        flops = _count_flops(recipe, pairs.max_length)
        phases.append(PhaseForecast(stop - start, pairs.max_length, flops, seconds_of(flops)))
    tokens = train.batch_size * sum(phase.steps * phase.max_length for phase in phases)
    all_flops = sum(phase.steps * phase.step_flops for phase in phases)
    seconds = seconds_of(all_flops)
    dollars_per_hour = device.dollars_per_hour if price is None else Span(price, price)
    hours = seconds.times(num_devices / 3600)
    dollars = dollars_per_hour and Span(
        hours.low * dollars_per_hour.low, hours.high * dollars_per_hour.high
    )
    return Forecast(
        recipe=recipe.name,
        steps=train.steps,
        batch_size=train.batch_size,
        phases=tuple(phases),
        tokens=tokens,
        epochs=None if num_tokens is None else tokens / num_tokens,
        flops=all_flops,
        device=device.name,
        num_devices=num_devices,
        peak_flops=device.peak_flops,
        mfu=device.mfu,
        seconds=seconds,
        dollars_per_hour=dollars_per_hour,
        dollars=dollars,
        memory=memory,
        micro_batch_tokens=division.micro_batch_tokens,
        recompute=division.recompute,
        notes=tuple(_notes(phases)),
    )


def _fit(
    recipe: Recipe, device: Device, num_devices: int, num_ranks: int
) -> tuple[Division, StepMemory]:
    """Divide a step as a run there would, and tell what it takes."""
    kind, train = "cpu" if device.name == "CPU" else "cuda", recipe.train
    share = SHARES[kind] * device.memory_bytes * (num_devices / num_ranks)
    allowed = int(parse_bytes(train.memory) or share)
    is_bf16 = train.precision == "auto" and kind == "cuda"
    knobs = {"precision": "bf16"} if is_bf16 else {}
    there = recipe.model_copy(update={"train": train.model_copy(update=knobs)})
    vocab_size, at = recipe.tokenizer.vocab_size, torch.device(kind)
    division = divide_step(there, vocab_size, at, lambda line: None, allowed, num_ranks)
    share_tokens = -(-train.batch_size // num_ranks) * recipe.longest
    at_once = division.micro_batch_tokens or share_tokens
    memory = estimate(there, vocab_size, at_once, kind, division.recompute, num_ranks)
    return division, memory


def _count_flops(recipe: Recipe, length: int) -> int:
    """Count the operations of a step whose sequences all have this length."""
    batch_size, has_pairs = recipe.train.batch_size, recipe.pairs.kind != "none"
    num_predictions = max(1, round(recipe.masking.mask_fraction * length))
    return count_step_flops(
        recipe.model,
        recipe.tokenizer.vocab_size,
        [length] * batch_size,
        [num_predictions + has_pairs] * batch_size,
        num_predictions * batch_size,
        batch_size * has_pairs,
    )


def _notes(phases: list[PhaseForecast]) -> list[str]:
    fastest = min(phase.step_seconds.low for phase in phases if phase.steps)
    if fastest >= _SHORT_STEP:
        return []
    return [
        f"a step may take only {1000 * fastest:.1f} ms, in which starting kernels and summing "
        "gradients count too: expect less speed, or give fewer devices or a larger train.batch_size"
    ]
