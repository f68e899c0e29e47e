"""The numbers that a run computes in.

Parameters, moments, norms, losses and their sums are fp32 always. With bf16 the matrix products
take both factors in 16 bits, which is faster where the device has units for it and the products are
large. (Copying a factor to 16 bits costs the same however little is multiplied with it.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from bertmill.config import Recipe
from bertmill.model.kernels import KERNELS
from bertmill.model.pretraining import PretrainingModel, count_step_flops
from bertmill.train.device import to_device
from bertmill.train.run_data import RunData

Precision = Literal["fp32", "bf16"]

# bf16 must be this many times as fast: less is not worth its digits, and may be chance.
_CLEARLY_FASTER = 1.2
# Sequences are measured up to so much arithmetic (a fraction of a second), for so long at least.
_MEASURED_FLOPS, _MEASURED_ROUNDS, _MEASURED_SECONDS = 3e10, 3, 1.0


def choose_precision(recipe: Recipe, data: RunData, say: Callable[[str], None]) -> Precision:
    """Choose for ``train.precision``: ``auto`` is bf16 where the device has units for it.

    A CPU with units must also be faster with them, by a clear margin, in forward and backward
    passes of a network of the recipe's shape on the run's first sequences.

    Parameters
    ----------
    recipe : Recipe
    data : RunData
    say : callable
        Takes a line about what was measured and chosen.
    """
    asked, device = recipe.train.precision, data.device
    if asked == "bf16" and not has_bf16_units(device):
        say("precision: bf16, as the recipe says; slow, because this device has no units for it")
    if asked != "auto":
        return asked
    if not has_bf16_units(device):
        return "fp32"
    if device.type == "cuda":
        return "bf16"
    seconds = _measure(recipe, data)
    times = seconds["fp32"] / seconds["bf16"]
    chosen: Precision = "bf16" if times >= _CLEARLY_FASTER else "fp32"
    say(
        f"precision: {chosen}; on this CPU a pass takes {1e3 * seconds['fp32']:,.0f} ms in fp32 "
        f"and {1e3 * seconds['bf16']:,.0f} ms in bf16, {times:.2f} times as fast "
        f"(bf16 needs {_CLEARLY_FASTER})"
    )
    return chosen


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 by itself, as torch knows it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which losses are computed; gradients follow by themselves."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _measure(recipe: Recipe, data: RunData) -> dict[Precision, float]:
    """Seconds of a pass in either precision: the best of several, in turns."""
    vocab_size, length = data.store.tokenizer.size, recipe.pairs.max_length
    num_masks = round(recipe.masking.mask_fraction * length)
    of_a_sequence = count_step_flops(
        recipe.model, vocab_size, [length], [num_masks + 1], num_masks, 1
    )
    count = min(recipe.train.batch_size, max(1, int(_MEASURED_FLOPS / of_a_sequence)))
    batch = to_device(data.train.batch_of(np.arange(count)), data.device)
    kernels = KERNELS[recipe.train.kernels]
    model = PretrainingModel(recipe.model, vocab_size, kernels).to(data.device).train()
    best: dict[Precision, float] = {"fp32": math.inf, "bf16": math.inf}
    ends, rounds = time.monotonic() + _MEASURED_SECONDS, 0
    while rounds < _MEASURED_ROUNDS or time.monotonic() < ends:
        for precision in best:
            started = time.perf_counter()
            with autocast(data.device, precision):
                sums = model(batch)
            (sums.mlm + sums.nsp).backward()
            best[precision] = min(best[precision], time.perf_counter() - started)
            model.zero_grad()
        rounds += 1
    return best
