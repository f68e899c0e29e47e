"""Products by oneDNN, for large ones in 32 bits on a CPU, where torch by itself takes MKL.

Letters in shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# An operator that torch makes no promise about; its version is pinned to one minor release.
_linear = torch.ops.mkldnn._linear_pointwise

_LARGE_FLOPS = 5e8
"""oneDNN compiles a product for each new shape, in one or two milliseconds, and all blocks share
the shapes: from 3 ms a product on that is won back."""


def is_usable(x: Tensor) -> bool:
    """Whether `multiply` takes such numbers."""
    is_fp32_cpu = x.dtype == torch.float32 and x.device.type == "cpu"
    return is_fp32_cpu and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``: [N, I] and [O, I] to [N, O]; gradients are not recorded."""
    return _linear(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class Linear(nn.Linear):
    """A linear map whose large products are oneDNN's while training."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the rows, [..., I] to [..., O]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map the rows, [..., I] by [O, I] to [..., O]; large products are oneDNN's while training."""
    is_large = 2 * x.numel() * len(weight) >= _LARGE_FLOPS
    is_autocast = torch.is_autocast_enabled(x.device.type)
    if is_large and x.requires_grad and x.ndim == 2 and is_usable(x) and not is_autocast:
        return _LargeLinear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]
    return F.linear(x, weight, bias)


class _LargeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # The product over the rows is MKL's: oneDNN is slower at it.
        return multiply(d_out, weight.T), d_out.T @ x, d_out.sum(0)
