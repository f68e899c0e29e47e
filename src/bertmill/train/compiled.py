"""What ``train.compile`` compiles: the part of each block that works on each token alone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bertmill.errors import RecipeError
from bertmill.model.bert import Block
from bertmill.model.pretraining import PretrainingModel
from bertmill.train.precision import Precision, autocast

# Prime, as no width is: torch takes equal sizes for the same unknown. On a CPU sums over more than
# 4,096 rows get code of their own.
_NUM_TOKENS = 2_039, 8_191


def compile_blocks(model: PretrainingModel, device: torch.device, precision: Precision) -> None:
    """Have ``torch.compile`` fuse what follows each block's attention, for any number of tokens.

    Attention is left out, because its arguments hold the lengths of a batch; so are the embeddings,
    whose gradient compiled code sums in no fixed order on a CPU, and the vocabulary loss.
    Validation runs as without the compiler.

    The compiler fits its code to the sizes that it is first shown, down to the order of sums. They
    are always the same here, and nothing is compiled later, so that a resumed run has the same
    bits.

    Parameters
    ----------
    model : PretrainingModel
        In training mode, on the device, not wrapped yet.
    device : torch.device
    precision : {"fp32", "bf16"}

    Raises
    ------
    RecipeError
        torch cannot compile here.
    """
    torch.compiler.reset()  # of a process that made other runs before
    eager = Block.after_attention
    compiled = torch.compile(eager, fullgraph=True, dynamic=True)

    def after_attention(x: Tensor, mixed: Tensor, dropout: Any, *parts: Any) -> Tensor:
        return (compiled if dropout.training else eager)(x, mixed, dropout, *parts)

    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.after_attention = after_attention  # type: ignore[assignment]
    norms = blocks[0].attention_norm, blocks[0].feed_forward_norm
    parts = blocks[0].dropout, norms, blocks[0].feed_forward, blocks[0].norm_first
    try:
        with warnings.catch_warnings(action="ignore"):  # of what torch does itself
            for num_tokens in _NUM_TOKENS:
                shape = num_tokens, model.section.hidden_size
                x = torch.zeros(shape, device=device, requires_grad=True)
                with autocast(device, precision):
                    out = after_attention(x, blocks[0].attention.output(x), *parts)
                out.sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise RecipeError(
            "train.compile",
            f"torch cannot compile here ({str(error).splitlines()[0]})",
            "install a C++ compiler (for a GPU also Triton), or set train.compile=false",
        ) from None
    model.zero_grad()
