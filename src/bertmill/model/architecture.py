"""What a network is: all that the rest of bertmill needs to know of it.

A second network is a module like `bert`, an entry in `ARCHITECTURES`, and a section of knobs in
`config.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bertmill.config import NetworkSection
from bertmill.model import bert
from bertmill.model.kernels import Kernels
from bertmill.model.packed import ActivationBytes, Encoder


class Architecture(Protocol):
    """A kind of network: a module that has these names."""

    SECTION: type[Any]
    """Its knobs, a `NetworkSection`."""
    MODEL_TYPES: tuple[str, ...]
    """What ``config.json`` calls it; the first is Hugging Face's."""
    NAMES: dict[str, str | tuple[str, ...]]
    """Our tensors, without ``.weight`` and ``.bias``, and Hugging Face's; `*` stands for the number
    of a block. A tensor with several names is theirs end to end."""

    def build(self, section: Any, vocab_size: int, kernels: Kernels) -> Encoder:
        """Make an encoder for so many vocabulary entries."""

    def initialize(self, module: nn.Module, section: Any, generator: torch.Generator) -> None:
        """Draw all weights of a module that holds such an encoder."""

    def step_flops(self, section: Any, lengths: Sequence[int], num_selected: Sequence[int]) -> int:
        """Count the operations of the encoder's matrix products in a training step.

        `lengths` has the tokens of each sequence, `num_selected` how many of them the losses read.
        """

    def activation_bytes(
        self,
        section: Any,
        num_tokens: int,
        num_selected: int,
        length: int,
        is_bf16: bool,
        on_cpu: bool,
    ) -> ActivationBytes:
        """Count what a training step keeps of sequences of one length for the backward pass.

        `num_tokens` are in all of them, `num_selected` of these are read by the losses. With
        `is_bf16` products take factors of 16 bits, `on_cpu` the kernels are those of the CPU.
        """

    def to_config(self, section: Any, kind: str) -> dict[str, Any]:
        """Write the network's part of ``config.json``, of the class that ends with `kind`."""

    def from_config(self, config: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Read the section's values back; ModelError where a setting is not computed here."""

    def not_in_transformers(self, section: Any) -> str:
        """Say why transformers has no class for such a network; nothing where it has one."""

    def with_copies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add tensors that transformers looks for under a second name."""

    def with_todays_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of older folders."""

    @property
    def pad(self) -> Callable[[Encoder], nn.Module] | None:
        """Turn an encoder into one over padded rectangles; None: it cannot be exported to ONNX.

        It takes ``input_ids``, ``attention_mask`` and ``token_type_ids``, [B, L], to [B, L, D].
        """


ARCHITECTURES: dict[str, Architecture] = {"bert": bert}
"""By the name that ``model.architecture`` has for them."""


def architecture_of(section: NetworkSection) -> Architecture:
    """Return the architecture whose knobs these are."""
    return next(each for each in ARCHITECTURES.values() if isinstance(section, each.SECTION))
