"""The numbers that a run computes in.

Parameters, moments, norms, losses and their sums are fp32 always. With bf16 the matrix products
take both factors in 16 bits, which is faster where the device has units for it and the products are
large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from bertmill.config import Recipe

Precision = Literal["fp32", "bf16"]

# Copying a factor to 16 bits costs the same however little is multiplied with it: on a CPU with
# units, benchmarks/precision.py gains 1.2 to 1.3 at width 128, 1.4 at 256 and 1.6 at 768.
_LEAST_WIDTH_ON_A_CPU = 256


def choose_precision(recipe: Recipe, device: torch.device, say: Callable[[str], None]) -> Precision:
    """Choose for ``train.precision``: ``auto`` is bf16 where the device has units for it.

    On a CPU the network must also be 256 wide or more. Nothing is measured: the same command on the
    same machine computes the same bits, however busy the machine is.

    Parameters
    ----------
    recipe : Recipe
    device : torch.device
    say : callable
        Takes a line where the choice will be slow.
    """
    precision = recipe.train.precision
    has_units = has_bf16_units(device)
    if precision == "bf16" and not has_units:
        say("precision: bf16, as the recipe says; slow, because this device has no units for it")
    if precision != "auto":
        return precision
    is_wide = device.type == "cuda" or recipe.model.hidden_size >= _LEAST_WIDTH_ON_A_CPU
    return "bf16" if has_units and is_wide else "fp32"


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 by itself, as torch knows it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which losses are computed; gradients follow by themselves."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
