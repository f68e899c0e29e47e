"""The four costly operations of a network, each as a plain form and a fast one.

`plain` says in a few lines of public torch what is computed. `fast` computes the same, to
rounding, in less time or memory: it may use operators of torch's own that torch makes no promise
about, which are looked up when they are used. Where one is missing, or where the fast form gains
nothing, it is the plain form that serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bertmill.model.kernels import attention, dropout, linear, vocabulary_loss
from bertmill.model.packed import PackedTokens, Selection


@dataclass(frozen=True)
class Kernels:
    """One form of each operation, chosen once, when a network is made."""

    attend: Callable[[Tensor, Tensor, PackedTokens | Selection, PackedTokens, float], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    drop: Callable[[Tensor, float], Tensor]
    vocabulary_loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


KERNELS = {
    "auto": Kernels(attention.fast, linear.fast, dropout.fast, vocabulary_loss.fast),
    "plain": Kernels(attention.plain, linear.plain, dropout.plain, vocabulary_loss.plain),
}
"""By the name that ``train.kernels`` has for them."""
