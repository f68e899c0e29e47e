"""What ``train.compile`` compiles: the part of each block that works on each token alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bertmill.errors import RecipeError
from bertmill.model.encoder import Block
from bertmill.model.heads import PretrainingModel
from bertmill.train.precision import Precision, autocast

# Prime, as no width is: torch takes equal sizes for the same unknown. On a CPU sums over more than
# 4,096 rows get code of their own.
_NUM_TOKENS = 2_039, 8_191


@contextmanager
def compiled_blocks(
    model: PretrainingModel, device: torch.device, precision: Precision
) -> Iterator[None]:
    """Have `torch.compile` fuse what follows each block's attention, for any number of tokens.

    Attention is left out, because it loops over the lengths of a batch; so are the embeddings,
    whose gradient compiled code sums in no fixed order on a CPU, and the vocabulary loss.

    The compiler fits its code to the sizes that it is first shown: which loops are parallel, how
    sums are made. They are always the same here, and nothing is compiled later, so that the bits of
    a resumed run cannot depend on them. What was not shown, such as validation, runs as it does
    without the compiler.

    Parameters
    ----------
    model : PretrainingModel
        Training, on the device.
    device : torch.device
    precision : {"fp32", "bf16"}

    Raises
    ------
    RecipeError
        torch cannot compile here.
    """
    torch.compiler.reset()  # of a process that made other runs before
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.after_attention = torch.compile(  # type: ignore[method-assign]
            block.after_attention, fullgraph=True, dynamic=True
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what torch does itself
            for num_tokens in _NUM_TOKENS:
                shape = num_tokens, model.section.hidden_size
                x = torch.zeros(shape, device=device, requires_grad=True)
                with autocast(device, precision):
                    out = blocks[0].after_attention(x, blocks[0].attention.output(x))
                out.sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise RecipeError(
            "train.compile",
            f"torch cannot compile here ({str(error).splitlines()[0]})",
            "install a C++ compiler, or begin a new run with train.compile=false",
        ) from None
    model.zero_grad()
    try:
        with torch.compiler.set_stance("eager_on_recompile"):
            yield
    finally:
        for block in blocks:
            del block.after_attention
