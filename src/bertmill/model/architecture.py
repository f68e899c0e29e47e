"""What a network is, in one record: all that the rest of bertmill needs to know of it.

A second network is a file beside `bert.py`, a record in `ARCHITECTURES`, and a section of knobs in
`config.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bertmill.config import ModelSection, NetworkSection
from bertmill.model import bert
from bertmill.model.kernels import Kernels
from bertmill.model.packed import Encoder

S = TypeVar("S", bound=NetworkSection)


@dataclass(frozen=True)
class Architecture(Generic[S]):
    """A kind of network."""

    name: str
    """What ``model.architecture`` calls it."""
    section: type[S]
    """Its knobs."""
    build: Callable[[S, int, Kernels], Encoder]
    """Make an encoder for so many vocabulary entries."""
    initialize: Callable[[nn.Module, S, torch.Generator], None]
    """Draw all weights of a module that holds such an encoder."""
    step_flops: Callable[[S, Sequence[int], Sequence[int]], int]
    """Operations of the encoder's matrix products in a training step, for the tokens in each
    sequence, and how many of these the losses read."""

    model_types: tuple[str, ...]
    """What ``config.json`` calls it; the first is Hugging Face's."""
    names: Mapping[str, str | tuple[str, ...]]
    """Our tensors, without ``.weight`` and ``.bias``, and Hugging Face's; `*` stands for the number
    of a block. A tensor with several names is theirs end to end."""
    to_config: Callable[[S, str], dict[str, Any]]
    """Write the network's part of ``config.json``, of the class that ends with ``ForMaskedLM``."""
    from_config: Callable[[Mapping[str, Any], object], dict[str, Any]]
    """Read the section's values back; ModelError where a setting is not computed here."""
    not_in_transformers: Callable[[S], str]
    """Why transformers has no class for such a network; empty where it has one."""

    with_copies: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Add tensors that transformers looks for under a second name."""
    with_todays_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Rename the tensors of older folders."""
    pad: Callable[[Encoder], nn.Module] | None = None
    """The same encoder over padded rectangles: ``input_ids``, ``attention_mask`` and
    ``token_type_ids``, [B, L], to [B, L, D]. None: it cannot be exported to ONNX."""


ARCHITECTURES: dict[str, Architecture[Any]] = {
    "bert": Architecture(
        name="bert",
        section=ModelSection,
        build=bert.BertEncoder,
        initialize=bert.initialize,
        step_flops=bert.step_flops,
        model_types=("bert", bert.OUR_MODEL_TYPE),
        names=bert.NAMES,
        to_config=bert.to_config,
        from_config=bert.from_config,
        not_in_transformers=bert.not_in_transformers,
        with_copies=bert.with_copies,
        with_todays_names=bert.with_todays_names,
        pad=bert.PaddedBert,
    )
}


def architecture_of(section: NetworkSection) -> Architecture[Any]:
    """Return the architecture whose knobs these are."""
    return next(each for each in ARCHITECTURES.values() if isinstance(section, each.section))
