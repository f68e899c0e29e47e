import pytest
import torch
from torch.nn import functional as F

from bertmill.model import attention
from bertmill.model.attention import attend_at_once, attend_by_length, takes_all_lengths
from bertmill.model.packed import PackedTokens, Selection

HEADS, SIZE = 3, 4


def make(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3, HEADS, SIZE, generator=generator, dtype=dtype)
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    return qkv.requires_grad_(), PackedTokens.pack(ids, ids, ids, lengths)


def call(attend, qkv, packed, dropout, selection=None):
    q, kv = qkv[:, 0], qkv[:, 1:]
    if selection is None:
        return attend(q, kv, packed, packed, dropout)
    return attend(q[selection.at], kv, selection, packed, dropout)


def padded(qkv, lengths):
    """All sequences in one rectangle, padding masked out."""
    longest = max(lengths)
    rows = [F.pad(part, (0, 0) * 3 + (0, longest - len(part))) for part in qkv.split(lengths)]
    q, k, v = torch.stack(rows).permute(2, 0, 3, 1, 4)
    is_token = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=is_token[:, None, None])
    return mixed.transpose(1, 2).flatten(2)[is_token]


def check_against_padded(attend, lengths, dropout, selected=None):
    (qkv, packed), (again, _) = make(lengths), make(lengths)
    wanted, selection = padded(again, lengths), None
    if selected is not None:
        at = torch.tensor(selected)
        starts = torch.searchsorted(at, packed.starts.long()).int()
        selection = Selection(at, starts, starts.diff().tolist())
        wanted = wanted[selection.at]
    got = call(attend, qkv, packed, dropout, selection)
    torch.testing.assert_close(got, wanted)
    outer = torch.randn(wanted.shape, dtype=wanted.dtype)
    got.backward(outer)
    wanted.backward(outer)
    torch.testing.assert_close(qkv.grad, again.grad)


@pytest.mark.parametrize("lengths", [[5, 5, 3], [1], [7], [4, 2, 4, 4, 1, 1]])
def test_by_length_is_the_padded_form(lengths):
    check_against_padded(attend_by_length, lengths, 0.0)


SELECTED = {
    "as many of each": [0, 2, 5, 9, 10, 11],
    "not as many of each": [4, 6, 7, 8, 12],
    "none of the first": [7, 10],
    "none of one between": [0, 12],
    "none of the last": [3, 4, 5],
}


@pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_where_some_ask_they_get_what_they_would_among_all(selected, dropout, monkeypatch):
    monkeypatch.setattr(attention, "drop", lambda weights, p: weights)
    check_against_padded(attend_by_length, [5, 5, 3], dropout, selected)


def test_the_form_for_dropout_is_the_padded_form_where_nothing_is_dropped(monkeypatch):
    shapes = []

    def keep_all(weights, p):
        assert p == 0.3
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        shapes.append(tuple(weights.shape))
        return weights

    monkeypatch.setattr(attention, "drop", keep_all)
    check_against_padded(attend_by_length, [5, 5, 3], 0.3)
    assert shapes == [(2 * HEADS, 5, 5), (HEADS, 3, 3)]


def test_dropout_keeps_the_mean():
    qkv, packed = make([6] * 2000, torch.float32)
    qkv = qkv.detach()[:6].repeat(2000, 1, 1, 1)  # the same sequence, dropped anew each time
    torch.manual_seed(1)
    mean = call(attend_by_length, qkv, packed, 0.2).view(2000, 6, -1).mean(0)
    wanted = call(attend_by_length, qkv, packed, 0.0)[:6]
    torch.testing.assert_close(mean, wanted, atol=0.06, rtol=0)
    assert (mean - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("selected", [None, [0, 6, 7, 13]], ids=["all", "some"])
def test_at_once_tells_the_kernel_where_sequences_begin(monkeypatch, selected):
    """The kernel itself needs CUDA; its arguments, as documented, are checked by a slow one."""

    def slow(q, k, v, starts_q, starts_k, longest_q, longest_k):
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert longest_q == starts_q.diff().max()
        assert longest_k == starts_k.diff().max()
        each = ((q, starts_q), (k, starts_k), (v, starts_k))
        parts = (x.transpose(0, 1).split(starts.diff().tolist(), 1) for x, starts in each)
        mixed = [F.scaled_dot_product_attention(*part) for part in zip(*parts, strict=True)]
        return torch.cat(mixed, 1).transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow)
    check_against_padded(attend_at_once, [5, 5, 3, 1], 0.0, selected)


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "expected"),
    [
        ("cuda", torch.bfloat16, 0.0, True),
        ("cuda", torch.bfloat16, 0.1, False),
        ("cuda", torch.float32, 0.0, False),
        ("cpu", torch.bfloat16, 0.0, False),
    ],
)
def test_the_kernel_for_all_lengths_is_used_where_it_is_right(device, dtype, dropout, expected):
    assert takes_all_lengths(torch.device(device), dtype, dropout) is expected
