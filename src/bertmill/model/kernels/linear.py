"""Linear maps, by oneDNN for large ones in 32 bits on a CPU, where torch by itself takes MKL.

::

    y = x W^T + b         dx = dy W,    dW = dy^T x,    db = sum of dy over the rows

Letters in shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]

_LARGE_FLOPS = 5e8
"""oneDNN compiles a product for each new shape, in one or two milliseconds, and all blocks share
the shapes: from 3 ms per product on that is won back."""


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map the rows, [..., I] by [O, I] to [..., O]."""
    return F.linear(x, weight, bias)


def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `plain` does; while training, large products are oneDNN's."""
    if torch.compiler.is_compiling():  # for any number of rows
        return plain(x, weight, bias)
    is_large = 2 * x.numel() * len(weight) >= _LARGE_FLOPS
    is_onednns = is_large and x.requires_grad and x.ndim == 2 and has_onednn(x)
    if is_onednns and not torch.is_autocast_enabled("cpu"):
        return _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]
    return plain(x, weight, bias)


def has_onednn(x: Tensor) -> bool:
    """Whether `multiply` takes such numbers, and torch was built with oneDNN."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    is_built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # torch makes no promise about this operator.
    return is_built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` by oneDNN, where `has_onednn`; records no gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # The product over the rows is MKL's: oneDNN is slower at it.
        return multiply(d_out, weight.T), d_out.T @ x, d_out.sum(0)


class Linear(nn.Linear):
    """A linear map that computes in a chosen form.

    Parameters
    ----------
    num_inputs, num_outputs : int
    compute : callable
        `plain` or `fast`.
    """

    def __init__(self, num_inputs: int, num_outputs: int, compute: Compute) -> None:
        super().__init__(num_inputs, num_outputs)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """Map the rows, [..., I] to [..., O]."""
        return self.compute(x, self.weight, self.bias)
