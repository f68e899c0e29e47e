"""Self-attention inside each packed sequence, without padding.

Letters in shapes: B sequences, N tokens of all of them end to end, D hidden, H heads, C sequences
of equal length L.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.config import ModelSection
from bertmill.model.dropout import drop
from bertmill.model.onednn import Linear
from bertmill.model.packed import PackedTokens


class Attention(nn.Module):
    """Multi-head self-attention inside each sequence (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.num_heads = section.num_attention_heads
        self.dropout = section.attention_probs_dropout_prob
        self.query_key_value = Linear(section.hidden_size, 3 * section.hidden_size)
        self.output = Linear(section.hidden_size, section.hidden_size)

    def forward(
        self, x: Tensor, packed: PackedTokens, rotation: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Mix the hidden vectors of each sequence, [N, D]."""
        qkv = self.query_key_value(x).view(len(x), 3, self.num_heads, -1)
        if rotation is not None:
            q, k, v = qkv.unbind(1)
            qkv = torch.stack([rotate(q, rotation), rotate(k, rotation), v], 1)
        dropout = self.dropout if self.training else 0.0
        is_at_once = takes_all_lengths(qkv.device, qkv.dtype, dropout)
        attend = attend_at_once if is_at_once else attend_by_length
        return self.output(attend(qkv, packed, dropout))  # type: ignore[no-any-return]


def takes_all_lengths(device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether torch has a kernel here that takes sequences of any lengths at once.

    It is for CUDA and 16 bits, and knows no dropout.
    """
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and not dropout


def attend_at_once(qkv: Tensor, packed: PackedTokens, dropout: float) -> Tensor:
    """Attend in one call, where `takes_all_lengths`: [N, 3, H, D / H] to [N, D]."""
    # Here, because it takes a second to import.
    from torch.nn.attention.varlen import varlen_attn

    assert not dropout
    q, k, v = qkv.unbind(1)
    longest = max(packed.lengths)
    mixed = varlen_attn(q, k, v, packed.starts, packed.starts, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed.flatten(1)


def attend_by_length(qkv: Tensor, packed: PackedTokens, dropout: float) -> Tensor:
    """Attend in one call for each stretch of sequences of equal length: [N, 3, H, D / H] to [N, D].

    Lengths 5, 5, 3 make a call over [2, H, 5, D / H] and one over [1, H, 3, D / H].
    """
    runs = [(length, len(list(run))) for length, run in groupby(packed.lengths)]
    # split, not slices: a slice's gradient is a zero-filled tensor of the whole.
    pieces = torch.split(qkv, [length * count for length, count in runs])
    mixed = []
    for piece, (length, count) in zip(pieces, runs, strict=True):
        # [C, L, 3, H, D / H] to three times [C, H, L, D / H].
        q, k, v = piece.view(count, length, *piece.shape[1:]).permute(2, 0, 3, 1, 4)
        if dropout and qkv.device.type == "cpu":
            out = _attend_with_cheap_dropout(q, k, v, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(out.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(mixed)


def _attend_with_cheap_dropout(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Do what torch does, but for its Bernoulli draws, [C, H, L, D / H]."""
    shape, nothing = q.shape, q.new_empty(())
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=shape[-1] ** -0.5)
    return torch.bmm(drop(scores.softmax(-1), dropout), v).view(shape)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + half) of a head's components by the token's angle, [..., H, D / H]."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.to(x.dtype)  # under autocast the angles have more bits than the components
