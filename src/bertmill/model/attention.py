"""Self-attention inside each packed sequence, without padding.

Letters in shapes: B sequences, N tokens of all of them end to end, S of these that ask, D hidden,
H heads, C sequences of equal length L in which Q tokens each ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.config import ModelSection
from bertmill.model.dropout import draw_scales
from bertmill.model.onednn import Linear, linear
from bertmill.model.packed import PackedTokens, Selection

_softmax_backward = torch.ops.aten._softmax_backward_data


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
    groups = _find_groups(asking.lengths, packed.lengths)
    q = q[:, None]
    if _has_own_gradient(q):
        return _AttendInTraining.apply(q, kv, groups, dropout)  # type: ignore[no-any-return,no-untyped-call]
    # split, not slices: a slice's gradient is a zero-filled tensor of the whole.
    q_pieces = torch.split(q, [group.num_sequences * group.num_asking for group in groups])
    kv_pieces = torch.split(kv, [group.num_sequences * group.length for group in groups])
    mixed = []
    for q_piece, kv_piece, group in zip(q_pieces, kv_pieces, groups, strict=True):
        ((q,), (k, v)) = group.by_head(q_piece), group.by_head(kv_piece)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)


def _has_own_gradient(q: Tensor) -> bool:
    return q.requires_grad and q.device.type == "cpu"


class _Group(NamedTuple):
    """A group of sequences of equal lengths; K is 1 for queries, 2 for keys and values."""

    num_sequences: int
    num_asking: int
    length: int
    asking: slice
    """Where those that ask stand among all of them."""
    tokens: slice
    """Where the tokens stand among all of them."""

    def by_head(self, x: Tensor) -> Tensor:
        """View tokens of the group head by head: [C * L, K, H, D / H] as [K, C, H, L, D / H]."""
        length = len(x) // self.num_sequences
        return x.view(self.num_sequences, length, *x.shape[1:]).permute(2, 0, 3, 1, 4)

    def flat(self, x: Tensor) -> Tensor:
        """Lay them into a matrix a head: [C * L, K, H, D / H] to [K, C * H, L, D / H]."""
        return self.by_head(x).flatten(1, 2)

    def put(self, flat: Tensor, x: Tensor) -> None:
        """Copy back what `flat` made."""
        by_head = self.by_head(x)
        by_head.copy_(flat.view(by_head.shape))


def _find_groups(num_asking: Sequence[int], lengths: Sequence[int]) -> list[_Group]:
    groups, asked, token = [], 0, 0
    for (q, k), run in groupby(zip(num_asking, lengths, strict=True)):
        count = len(list(run))
        asking, tokens = slice(asked, asked + count * q), slice(token, token + count * k)
        groups.append(_Group(count, q, k, asking, tokens))
        asked, token = asking.stop, tokens.stop
    return groups


class _AttendInTraining(torch.autograd.Function):
    """What torch does, in fewer passes, with cheaper draws.

    Products have the type of the queries, and the weights 32 bits at least.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, groups: list[_Group], dropout: float) -> Tensor:
        mixed, zero, scale = torch.empty_like(q), q.new_empty(()), q.shape[-1] ** -0.5
        wide = torch.promote_types(q.dtype, torch.float32)
        sizes = [
            group.num_sequences * q.shape[2] * group.num_asking * group.length for group in groups
        ]
        # Drawn at once, because each draw costs a call.
        scales = draw_scales([sum(sizes)], dropout, wide) if dropout else None
        kept, at = [], 0
        for group, size in zip(groups, sizes, strict=True):
            queries, keys_values = group.flat(q[group.asking]), group.flat(kv[group.tokens])
            scores = torch.baddbmm(zero, queries[0], keys_values[0].mT, beta=0, alpha=scale)
            weights = scores.softmax(-1, dtype=wide)
            own_scales = None if scales is None else scales[at : at + size].view(weights.shape)
            dropped = _multiply(weights, own_scales).to(q.dtype)
            group.put(torch.bmm(dropped, keys_values[1]), mixed[group.asking])
            kept += [queries, keys_values, weights, own_scales]
            at += size
        ctx.groups, ctx.q_shape, ctx.kv_shape = groups, q.shape, kv.shape
        ctx.save_for_backward(*kept)
        return mixed.flatten(1)

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dtype, d_mixed = d_mixed.dtype, d_mixed.reshape(ctx.q_shape)
        d_q, d_kv = torch.empty_like(d_mixed), d_mixed.new_empty(ctx.kv_shape)
        zero, scale = d_mixed.new_empty(()), ctx.q_shape[-1] ** -0.5
        kept = iter(ctx.saved_tensors)
        for group in ctx.groups:
            queries, keys_values, weights, scales = islice(kept, 4)
            (d_out,), d_both = group.flat(d_mixed[group.asking]), torch.empty_like(keys_values)
            torch.bmm(_multiply(weights, scales).to(dtype).mT, d_out, out=d_both[1])
            d_dropped = torch.bmm(d_out, keys_values[1].mT).to(weights.dtype)
            d_weights = _multiply(d_dropped, scales)
            d_scores = _softmax_backward(d_weights, weights, -1, weights.dtype).to(dtype)
            torch.baddbmm(zero, d_scores.mT, queries[0], beta=0, alpha=scale, out=d_both[0])
            group.put(d_both, d_kv[group.tokens])
            d_queries = torch.baddbmm(zero, d_scores, keys_values[0], beta=0, alpha=scale)
            group.put(d_queries, d_q[group.asking])
        return d_q, d_kv, None, None


def _multiply(x: Tensor, scales: Tensor | None) -> Tensor:
    return x if scales is None else x * scales


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
