"""The processes that train together. Everything that they must share goes through `World`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """One process, rank 0 of 1: the only kind that is built so far.

    Whatever a run decides from outside the recipe (a clock, a signal, a measurement, a free folder)
    goes through `agree`, and whatever it adds up over the examples of a step through `sum`, so that
    more ranks need no other code than another `World`.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def speaks(self) -> bool:
        """Whether this rank writes to the run's folder and to the screen."""
        return self.rank == 0

    def wrap(self, model: Value) -> Value:
        """Return the model whose `forward` computes the gradients of all ranks together."""
        return model

    def sum(self, *tensors: Tensor) -> None:
        """Add tensors up over all ranks, in place and on the device."""

    def agree(self, value: Value) -> Value:
        """Return rank 0's value on every rank."""
        return value
