"""Attention inside each packed sequence, without padding (Vaswani et al. 2017, section 3.2.1).

For the queries Q, keys K and values V of a sequence in one head of width d::

    S = Q K^T / sqrt(d)     W = softmax(S)     O = (W * M) V

where M are the scales of dropout (`dropout.draw_scales`), and for the gradient dO of the output::

    dV = (W * M)^T dO       dW = (dO V^T) * M       dS = W * (dW - sum of dW * W over the keys)
    dQ = dS K / sqrt(d)     dK = dS^T Q / sqrt(d)

Letters in shapes: N tokens of all sequences end to end, S query tokens (all N, or those that a loss
reads), D hidden, H heads; C sequences of equal length L with Q query tokens in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmill.model.kernels.dropout import draw_scales
from bertmill.model.packed import PackedTokens, Selection

_HEAD_MULTIPLE = 8
"""Widths of a head that CUDA's operators take."""
_WIDEST_HEAD = 256


def plain(
    q: Tensor, kv: Tensor, queries: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Attend, one sequence at a time.

    Parameters
    ----------
    q : Tensor
        Queries, [S, H, D / H].
    kv : Tensor
        Keys and values of all tokens, [N, 2, H, D / H].
    queries : PackedTokens or Selection
        Which tokens the queries are of: all, or some.
    packed : PackedTokens
    dropout : float
        Probability with which a weight is dropped.

    Returns
    -------
    Tensor
        [S, D].
    """
    mixed = []
    each = torch.split(q, list(queries.lengths)), torch.split(kv, list(packed.lengths))
    for q_own, kv_own in zip(*each, strict=True):
        q, k, v = (x.transpose(0, 1) for x in (q_own, *kv_own.unbind(1)))  # [H, L, D / H]
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(out.transpose(0, 1).flatten(1))
    return torch.cat(mixed)


def fast(
    q: Tensor, kv: Tensor, queries: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Do what `plain` does, in the fastest way that there is for such numbers."""
    # torch makes no promise about its operator for dS.
    has_operator = hasattr(torch.ops.aten, "_softmax_backward_data")
    if q.requires_grad and q.device.type == "cpu" and has_operator:
        return in_training(q, kv, queries, packed, dropout)
    if takes_all_lengths(q.device, q.dtype) and q.shape[-1] <= _WIDEST_HEAD:
        return at_once(q, kv, queries, packed, dropout)
    return by_length(q, kv, queries, packed, dropout)


def takes_all_lengths(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has operators here that take sequences of any lengths at once.

    The meta device has them too: it shows the shapes of what CUDA computes.
    """
    # torch makes no promise about them: they are what its attention for nested tensors calls.
    names = ("_flash_attention_forward", "_efficient_attention_forward")
    is_built_in = all(hasattr(torch.ops.aten, name) for name in names)
    if device.type == "cuda" and dtype != torch.float32 and torch.cuda.is_available():
        is_built_in &= torch.cuda.get_device_capability(device) >= (8, 0)  # FlashAttention's least
    return is_built_in and device.type in ("cuda", "meta") and dtype != torch.float64


def at_once(
    q: Tensor, kv: Tensor, queries: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Attend in one call, where `takes_all_lengths`.

    FlashAttention in 16 bits; it has none for 32, so there it is the memory-efficient form. Both
    draw dropout from torch's generator, and take the queries of some tokens alone.
    """
    size = q.shape[-1]
    if size % _HEAD_MULTIPLE:  # zeros change no score, and add columns that are cut off again
        q, kv = (F.pad(x, (0, -size % _HEAD_MULTIPLE)) for x in (q, kv))
    k, v = kv.unbind(1)
    bounds = queries.starts, packed.starts, max(queries.lengths), max(packed.lengths)
    scale, aten = size**-0.5, torch.ops.aten
    if q.dtype == torch.float32:
        # [1, S, H, D / H]; 0: no causal mask; True: keep what the gradient needs.
        whole = q[None], k[None], v[None], None
        found = aten._efficient_attention_forward(*whole, *bounds, dropout, 0, True, scale=scale)
        mixed = found[0][0]
    elif dropout:
        found = aten._flash_attention_forward(q, k, v, *bounds, dropout, False, False, scale=scale)
        mixed = found[0]
    else:
        # Here, because it takes a second to import.
        from torch.nn.attention.varlen import varlen_attn

        mixed = varlen_attn(q, k, v, *bounds, scale=scale)
    return mixed[..., :size].flatten(1)  # type: ignore[no-any-return]


def by_length(
    q: Tensor, kv: Tensor, queries: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Attend in one call for each group of neighbors of equal lengths.

    Lengths 5, 5, 3 with queries of all tokens make a call over [2, H, 5, D / H] and one over
    [1, H, 3, D / H].
    """
    groups, q = _find_groups(queries.lengths, packed.lengths), q[:, None]
    # split, not slices: a slice's gradient is a zero-filled tensor of the whole.
    q_pieces = torch.split(q, [group.num_sequences * group.num_queries for group in groups])
    kv_pieces = torch.split(kv, [group.num_sequences * group.length for group in groups])
    mixed = []
    for q_piece, kv_piece, group in zip(q_pieces, kv_pieces, groups, strict=True):
        ((q,), (k, v)) = group.by_head(q_piece), group.by_head(kv_piece)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)


def in_training(
    q: Tensor, kv: Tensor, queries: PackedTokens | Selection, packed: PackedTokens, dropout: float
) -> Tensor:
    """Attend as `by_length` does, with a gradient in fewer passes and cheaper draws.

    All of it has 32 bits at least, as in torch's own form with dropout: scores in 16 bits make the
    error of the gradients two to five times as large.
    """
    groups = _find_groups(queries.lengths, packed.lengths)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        mixed = _Attention.apply(q[:, None].to(wide), kv.to(wide), groups, dropout)  # type: ignore[no-untyped-call]
    return mixed.to(q.dtype)  # type: ignore[no-any-return]


class _Group(NamedTuple):
    """Neighboring sequences of equal lengths; in shapes K is 1 for queries, 2 for keys and values.

    `flat` makes one matrix per sequence and head: for 2 sequences of 5 tokens, 3 heads of width 4,
    keys and values [10, 2, 3, 4] become [2, 6, 5, 4].
    """

    num_sequences: int
    num_queries: int
    length: int
    queries: slice
    """Its rows among all queries."""
    tokens: slice
    """Its rows among all tokens."""

    def by_head(self, x: Tensor) -> Tensor:
        """View the group's rows head by head: [C * L, K, H, D / H] as [K, C, H, L, D / H]."""
        length = len(x) // self.num_sequences
        return x.view(self.num_sequences, length, *x.shape[1:]).permute(2, 0, 3, 1, 4)

    def flat(self, x: Tensor) -> Tensor:
        """Copy them into matrices: [C * L, K, H, D / H] to [K, C * H, L, D / H]."""
        return self.by_head(x).flatten(1, 2)

    def put(self, flat: Tensor, x: Tensor) -> None:
        """Copy such matrices back into the group's rows `x`."""
        by_head = self.by_head(x)
        by_head.copy_(flat.view(by_head.shape))


def _find_groups(num_queries: Sequence[int], lengths: Sequence[int]) -> list[_Group]:
    groups, query, token = [], 0, 0
    for (q, k), run in groupby(zip(num_queries, lengths, strict=True)):
        count = len(list(run))
        queries, tokens = slice(query, query + count * q), slice(token, token + count * k)
        groups.append(_Group(count, q, k, queries, tokens))
        query, token = queries.stop, tokens.stop
    return groups


class _Attention(torch.autograd.Function):
    """The equations above, group by group."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, groups: list[_Group], dropout: float) -> Tensor:
        mixed, zero, scale = torch.empty_like(q), q.new_empty(()), q.shape[-1] ** -0.5
        sizes = [g.num_sequences * q.shape[2] * g.num_queries * g.length for g in groups]
        # Drawn at once, because each draw costs a call.
        drawn = draw_scales([sum(sizes)], dropout, q.dtype) if dropout else None
        scales = None if drawn is None else torch.split(drawn, sizes)
        saved: list[Tensor | None] = []
        for i, group in enumerate(groups):
            queries, keys_values = group.flat(q[group.queries]), group.flat(kv[group.tokens])
            scores = torch.baddbmm(zero, queries[0], keys_values[0].mT, beta=0, alpha=scale)
            weights = torch.softmax(scores, -1, out=scores)
            own_scales = None if scales is None else scales[i].view(weights.shape)
            dropped = _multiply(weights, own_scales)
            group.put(torch.bmm(dropped, keys_values[1]), mixed[group.queries])
            saved += [queries, keys_values, weights, own_scales]
        ctx.groups, ctx.q_shape, ctx.kv_shape = groups, q.shape, kv.shape
        ctx.save_for_backward(*saved)
        return mixed.flatten(1)

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_mixed = d_mixed.reshape(ctx.q_shape)
        d_q, d_kv = torch.empty_like(d_mixed), d_mixed.new_empty(ctx.kv_shape)
        zero, scale = d_mixed.new_empty(()), ctx.q_shape[-1] ** -0.5
        softmax_gradient = torch.ops.aten._softmax_backward_data.out
        saved = ctx.saved_tensors
        for i, group in enumerate(ctx.groups):
            queries, keys_values, weights, scales = saved[4 * i : 4 * i + 4]
            (d_out,), d_both = group.flat(d_mixed[group.queries]), torch.empty_like(keys_values)
            torch.bmm(_multiply(weights, scales).mT, d_out, out=d_both[1])
            d_scores = torch.bmm(d_out, keys_values[1].mT)
            if scales is not None:
                d_scores *= scales
            softmax_gradient(d_scores, weights, -1, weights.dtype, grad_input=d_scores)
            torch.baddbmm(zero, d_scores.mT, queries[0], beta=0, alpha=scale, out=d_both[0])
            group.put(d_both, d_kv[group.tokens])
            d_queries = torch.baddbmm(zero, d_scores, keys_values[0], beta=0, alpha=scale)
            group.put(d_queries, d_q[group.queries])
        return d_q, d_kv, None, None


def _multiply(x: Tensor, scales: Tensor | None) -> Tensor:
    return x if scales is None else x * scales
