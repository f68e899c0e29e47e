"""Dropout whose random bits cost little on a CPU (Srivastava et al. 2014).

::

    y = x * M,    each M is 0 with probability p, else 1 / (1 - p)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A draw of 64 random bits decides on four elements.
_BITS = 16


def plain(x: Tensor, p: float) -> Tensor:
    """Set elements of `x` to zero with probability `p`, and scale the others up, any shape."""
    return F.dropout(x, p)


def fast(x: Tensor, p: float) -> Tensor:
    """Do what `plain` does, with the draws of `draw_scales` on a CPU; a compiler draws itself."""
    if not p:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return plain(x, p)
    return x * draw_scales(x.shape, p, x.dtype)


def draw_scales(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Draw M on the CPU.

    `p` is rounded to a multiple of 2**-16, by which the scale goes too: whole words of torch's
    generator, cut into 16 bits each, take a tenth of the time of its Bernoulli draws.
    """
    num_dropped = min(round(p * 2**_BITS), 2**_BITS - 1)
    num_elements = math.prod(shape)
    words = torch.empty(math.ceil(num_elements * _BITS / 64), dtype=torch.int64)
    words.random_(-(2**63), None)
    bits = words.view(torch.int16)[:num_elements].view(shape)
    scales = torch.empty(shape, dtype=dtype)
    torch.ge(bits, num_dropped - 2 ** (_BITS - 1), out=scales)
    return scales.mul_(2**_BITS / (2**_BITS - num_dropped))


class Dropout(nn.Module):
    """Set elements to zero with probability `p` while training, and scale the others up.

    Parameters
    ----------
    p : float
        From 0 to below 1.
    drop : callable
        `plain` or `fast`.
    """

    def __init__(self, p: float, drop: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.p, self.drop = p, drop

    def forward(self, x: Tensor) -> Tensor:
        """Drop, any shape."""
        return self.drop(x, self.p) if self.training else x
