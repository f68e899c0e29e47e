"""Self-attention inside each packed sequence, without padding.

Letters in shapes: B sequences, N tokens of all of them end to end, S of these that ask, D hidden,
H heads, C sequences of equal length L in which Q tokens each ask.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.config import ModelSection
from bertmill.model.dropout import drop
from bertmill.model.onednn import Linear, linear
from bertmill.model.packed import PackedTokens, Selection


class Attention(nn.Module):
    """Multi-head self-attention inside each sequence (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.num_heads = section.num_attention_heads
        self.dropout = section.attention_probs_dropout_prob
        self.query_key_value = Linear(section.hidden_size, 3 * section.hidden_size)
        self.output = Linear(section.hidden_size, section.hidden_size)

    def forward(
        self,
        asking: Tensor,
        x: Tensor,
        packed: PackedTokens,
        selection: Selection | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """Mix the hidden vectors of each sequence, [N, D], for the tokens selected, [S, D].

        `asking` are the vectors of these, from which the queries are made.
        """
        width, heads = x.shape[1], self.num_heads
        # split, not slices: a slice's gradient is a zero-filled tensor of the whole.
        q_weight, kv_weight = torch.split(self.query_key_value.weight, [width, 2 * width])
        q_bias, kv_bias = torch.split(self.query_key_value.bias, [width, 2 * width])
        q = linear(asking, q_weight, q_bias).view(-1, heads, width // heads)
        kv = linear(x, kv_weight, kv_bias).view(-1, 2, heads, width // heads)
        if rotation is not None:
            q = rotate(q, rotation if selection is None else rotation.of(selection))
            k, v = kv.unbind(1)
            kv = torch.stack([rotate(k, rotation), v], 1)
        dropout = self.dropout if self.training else 0.0
        is_at_once = takes_all_lengths(q.device, q.dtype, dropout)
        attend = attend_at_once if is_at_once else attend_by_length
        who = packed if selection is None else selection
        return self.output(attend(q, kv, who, packed, dropout))  # type: ignore[no-any-return]


def takes_all_lengths(device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether torch has a kernel here that takes sequences of any lengths at once.

    It is for CUDA and 16 bits, and knows no dropout.
    """
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and not dropout


def attend_at_once(
    q: Tensor, kv: Tensor, asking: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Do in one call what `attend_by_length` does, where `takes_all_lengths`."""
    # Here, because it takes a second to import.
    from torch.nn.attention.varlen import varlen_attn

    assert not dropout
    k, v = kv.unbind(1)
    longest = max(asking.lengths), max(packed.lengths)
    mixed = varlen_attn(q, k, v, asking.starts, packed.starts, *longest)
    assert isinstance(mixed, Tensor)
    return mixed.flatten(1)


def attend_by_length(
    q: Tensor, kv: Tensor, asking: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Attend in one call for each stretch of sequences of equal lengths.

    Lengths 5, 5, 3 where all tokens ask make a call over [2, H, 5, D / H] and one over
    [1, H, 3, D / H].

    Parameters
    ----------
    q : Tensor
        Queries of the tokens that ask, [S, H, D / H].
    kv : Tensor
        Keys and values of all tokens, [N, 2, H, D / H].
    asking : PackedTokens or Selection
        All tokens, or some.
    packed : PackedTokens
    dropout : float

    Returns
    -------
    Tensor
        [S, D].
    """
    both_lengths = zip(asking.lengths, packed.lengths, strict=True)
    runs = [(*lengths, len(list(run))) for lengths, run in groupby(both_lengths)]
    q_pieces = torch.split(q, [num_asking * count for num_asking, _, count in runs])
    kv_pieces = torch.split(kv, [length * count for _, length, count in runs])
    mixed = []
    for q, kv, (num_asking, length, count) in zip(q_pieces, kv_pieces, runs, strict=True):
        # [C, Q, H, D / H] to [C, H, Q, D / H], and [C, L, 2, H, D / H] to two [C, H, L, D / H].
        q = q.view(count, num_asking, *q.shape[1:]).transpose(1, 2)
        k, v = kv.view(count, length, *kv.shape[1:]).permute(2, 0, 3, 1, 4)
        if dropout and q.device.type == "cpu":
            out = _attend_with_cheap_dropout(q, k, v, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)


def _attend_with_cheap_dropout(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Do what torch does, but for its Bernoulli draws: [C, H, Q, D / H] by [C, H, L, D / H]."""
    shape, nothing = q.shape, q.new_empty(())
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=shape[-1] ** -0.5)
    return torch.bmm(drop(scores.softmax(-1), dropout), v).view(shape)


class Rotation(NamedTuple):
    """Rotary angles of tokens (Su et al. 2021), each [..., 1, D / H / 2]."""

    cos: Tensor
    sin: Tensor

    def of(self, selection: Selection) -> Rotation:
        """Take the angles of some tokens: [N, 1, D / H / 2] to [S, 1, D / H / 2]."""
        return Rotation(*(x.index_select(0, selection.at) for x in self))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + half) of a head's components by the token's angle, [..., H, D / H]."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.to(x.dtype)  # under autocast the angles have more bits than the components
