"""Cross entropy over the vocabulary, without all logits at once.

::

    Z = H W^T + b,    p = softmax(Z),    loss = -sum of log p[label] over the predictions
    dZ = p - onehot(label),    dH = dZ W,    dW = dZ^T H,    db = sum of dZ

Letters in shapes: P predictions, R of them at once, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmill.model.kernels import linear

_ROWS_AT_ONCE = 256
"""Logits of so many predictions exist at once: with 30,522 entries 31 MB."""

_ROWS_AT_ONCE_ELSEWHERE = 2048
"""The same off the CPU, where a product must be larger to be worth its start: 250 MB."""

_SMALL = 1e-30
"""The logarithm of a smaller probability is not exact."""


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross entropies of ``hidden @ weight.T + bias``, in nats, [].

    Under autocast the product is made in its 16 bits, everything else in 32.

    Parameters
    ----------
    hidden : Tensor
        [P, D].
    weight : Tensor
        [V, D].
    bias : Tensor
        [V].
    labels : Tensor
        [P], int64.
    """
    logits = (hidden @ weight.T).to(bias.dtype) + bias
    return F.cross_entropy(logits, labels, reduction="sum")


def fast(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Do what `plain` does, R predictions at a time.

    The gradient is made in the forward pass, while a chunk of logits is at hand, so that none is
    kept.
    """
    kind = hidden.device.type if hidden.device.type != "meta" else "cpu"  # autocast knows no meta
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        return _VocabularyLoss.apply(hidden, weight, bias, labels, dtype)  # type: ignore[no-any-return,no-untyped-call]


class _VocabularyLoss(torch.autograd.Function):
    """`fast`, with products in a type of their own."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        loss, is_read_free = bias.new_zeros(()), _can_read_without_waiting(bias.device)
        d_hidden, d_weight, d_bias = map(torch.zeros_like, (hidden, weight, bias))
        w, num_rows = weight.to(dtype), rows_at_once(bias.device)
        for start in range(0, len(hidden), num_rows):
            rows = slice(start, start + num_rows)
            x, y = hidden[rows].to(dtype), labels[rows]
            logits = _scores(x, w, bias)
            if not is_read_free:
                loss += F.cross_entropy(logits, y, reduction="sum")
            p = torch.softmax(logits, 1, out=logits)
            p_right = p.gather(1, y[:, None])
            if is_read_free and p_right.min() > _SMALL:  # two passes over the logits less
                loss -= p_right.log().sum()
            elif is_read_free:
                loss += F.cross_entropy(_scores(x, w, bias), y, reduction="sum")
            d_logits = p.scatter_(1, y[:, None], p_right - 1)
            d_bias += d_logits.sum(0)
            d_logits = d_logits.to(dtype)
            d_hidden[rows] = _gradient_of_rows(d_logits, w)
            if dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.T, x)
            else:
                d_weight += d_logits.T @ x
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * d_loss, d_weight * d_loss, d_bias * d_loss, None, None


def rows_at_once(device: torch.device) -> int:
    """For how many predictions `fast` has logits at once, R."""
    return _ROWS_AT_ONCE if device.type == "cpu" else _ROWS_AT_ONCE_ELSEWHERE


def _can_read_without_waiting(device: torch.device) -> bool:
    return device.type == "cpu"


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Score every entry, [R, D] to [R, V], in the bias's type."""
    if _is_for_onednn(x):
        return linear.multiply(x, weight, bias)
    return (x @ weight.T).to(bias.dtype).add_(bias)


def _gradient_of_rows(d_logits: Tensor, weight: Tensor) -> Tensor:
    """Go back from scores to hidden vectors, [R, V] to [R, D]."""
    if _is_for_onednn(d_logits):
        return linear.multiply(d_logits, weight.T)
    return d_logits @ weight


def _is_for_onednn(rows: Tensor) -> bool:
    """Whether this is a whole chunk: only shapes that come again are worth compiling."""
    return len(rows) == _ROWS_AT_ONCE and linear.has_onednn(rows)
