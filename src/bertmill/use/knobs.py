"""The settings of fine-tuning, which import nothing heavy: the command line shows the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertmill.errors import InputError

if TYPE_CHECKING:
    from bertmill.model.folder import LoadedModel

_BASE_WIDTH, _BASE_LR = 768, 5e-5
_SHORTEST_EXAMPLE = 8
"""Fewest tokens that an example may be cut to, special tokens included."""


@dataclass(frozen=True)
class FinetuneKnobs:
    """How a task is learned."""

    epochs: int = 10
    """Most passes over the examples; the learning rate falls linearly to zero over them."""
    patience: int = 2
    """Epochs without a better score on the dev examples before training ends."""
    batch_size: int = 32
    lr: float | None = None
    """Peak learning rate. None: 5e-5 for BERT Base, in proportion higher for narrower encoders."""
    max_length: int | None = None
    """Most tokens of an example. None: as many as the encoder was trained on."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "lr", "max_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}`", f"is {value}", "give a number above 0")

    def lr_for(self, loaded: LoadedModel) -> float:
        """Return the peak learning rate for this model."""
        return self.lr or _BASE_LR * _BASE_WIDTH / loaded.model.section.hidden_size

    def length_for(self, loaded: LoadedModel) -> int:
        """Return the most tokens of an example for this model.

        Raises
        ------
        InputError
            The model does not take so many.
        """
        from bertmill.model.pooling import longest_text

        length = self.max_length or longest_text(loaded)
        longest = loaded.model.section.max_position_embeddings
        if not _SHORTEST_EXAMPLE <= length <= longest:
            fix = f"this model takes {_SHORTEST_EXAMPLE} to {longest} tokens"
            raise InputError("`max_length`", f"is {length}", fix)
        return length
