"""The encoder over padded rectangles, as programs that pad take it: same weights, same vectors.

Letters in shapes: B sequences, L tokens of the longest, D hidden, H heads.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.model.attention import Attention, Rotation, rotate
from bertmill.model.encoder import Block, Encoder


class PaddedEncoder(nn.Module):
    """A copy of an encoder that tells sequences apart by a mask.

    Parameters
    ----------
    encoder : Encoder
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        for block in self.encoder.blocks:
            assert isinstance(block, Block)
            block.add_module("attention", _PaddedAttention(block.attention))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the hidden vector of every token, [B, L] to [B, L, D]; the mask is 0 at padding.

        Names and order of the arguments are Hugging Face's.
        """
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        # Not -inf: a row of padding alone would become NaN.
        bias = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
        return self.encoder.transform(
            input_ids, token_type_ids, position_ids.expand_as(input_ids), bias
        )


class _PaddedAttention(nn.Module):
    """`Attention` with a bias on the scores in place of lengths, [B, 1, 1, L]."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query_key_value, self.output = attention.query_key_value, attention.output

    def forward(
        self, asking: Tensor, x: Tensor, bias: Tensor, selection: None, rotation: Rotation | None
    ) -> Tensor:
        """Mix the hidden vectors of each sequence, [B, L, D]; all tokens ask."""
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.output(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
