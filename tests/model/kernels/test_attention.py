import pytest
import torch
from torch.nn import functional as F

from bertmill.model.kernels import attention
from bertmill.model.kernels.attention import (
    at_once,
    by_length,
    fast,
    in_training,
    plain,
    takes_all_lengths,
)
from bertmill.model.packed import PackedTokens, Selection

HEADS, SIZE = 3, 4


def make(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3, HEADS, SIZE, generator=generator, dtype=dtype)
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    return qkv.requires_grad_(), PackedTokens.pack(ids, ids, ids, lengths)


def select(at, packed):
    at = torch.tensor(at)
    starts = torch.searchsorted(at, packed.starts.long()).int()
    return Selection(at, starts, starts.diff().tolist())


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
        selection = select(selected, packed)
        wanted = wanted[selection.at]
    got = call(attend, qkv, packed, dropout, selection)
    torch.testing.assert_close(got, wanted)
    outer = torch.randn(wanted.shape, dtype=wanted.dtype)
    got.backward(outer)
    wanted.backward(outer)
    torch.testing.assert_close(qkv.grad, again.grad)


FORMS = pytest.mark.parametrize("attend", [plain, by_length, in_training])


@FORMS
@pytest.mark.parametrize("lengths", [[5, 5, 3], [1], [7], [4, 2, 4, 4, 1, 1]])
def test_every_form_is_the_padded_one(attend, lengths):
    check_against_padded(attend, lengths, 0.0)


SELECTED = {
    "as many of each": [0, 2, 5, 9, 10, 11],
    "not as many of each": [4, 6, 7, 8, 12],
    "none of the first": [7, 10],
    "none of one between": [0, 12],
    "none of the last": [3, 4, 5],
}


@FORMS
@pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)
def test_for_some_tokens_every_form_is_the_padded_one(attend, selected):
    check_against_padded(attend, [5, 5, 3], 0.0, selected)


@pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)
def test_with_dropout_that_drops_nothing_it_is_the_padded_form(selected, monkeypatch):
    monkeypatch.setattr(attention, "draw_scales", lambda shape, p, dtype: torch.ones(shape))
    check_against_padded(in_training, [5, 5, 3], 0.3, selected)


@pytest.mark.parametrize("selected", [None, *SELECTED.values()], ids=["all", *SELECTED])
def test_without_gradients_the_vectors_are_the_same(selected):
    lengths = [5, 5, 3]
    qkv, packed = make(lengths)
    with torch.no_grad():
        selection = None if selected is None else select(selected, packed)
        got = call(fast, qkv, packed, 0.0, selection)
        wanted = padded(qkv, lengths)
    torch.testing.assert_close(got, wanted if selected is None else wanted[selected])


def test_dropout_falls_on_the_weights_forward_and_backward(monkeypatch):
    """Sequences of 2 and 1 tokens: each head's weights, and what each is multiplied with."""
    scales = torch.rand(HEADS * (2 * 2 + 1), dtype=torch.float64)
    asked = []

    def draw(shape, p, dtype):
        asked.append((*shape, p, dtype))
        return scales.clone()

    monkeypatch.setattr(attention, "draw_scales", draw)
    (qkv, packed), (again, _) = make([2, 1]), make([2, 1])
    got = call(fast, qkv, packed, 0.3)
    assert asked == [(len(scales), 0.3, torch.float64)]
    wanted = torch.zeros(3, HEADS, SIZE, dtype=torch.float64)
    per_run = scales.split([HEADS * 4, HEADS])
    for head in range(HEADS):
        for rows, drawn in ((slice(0, 2), per_run[0]), (slice(2, 3), per_run[1])):
            q, k, v = again[rows, :, head].unbind(1)
            weights = ((q @ k.T) / SIZE**0.5).softmax(-1)
            wanted[rows, head] = (weights * drawn.view(HEADS, *weights.shape)[head]) @ v
    wanted = wanted.flatten(1)
    torch.testing.assert_close(got, wanted)
    outer = torch.randn(wanted.shape, dtype=wanted.dtype)
    got.backward(outer)
    wanted.backward(outer)
    torch.testing.assert_close(qkv.grad, again.grad)


def test_dropout_keeps_the_mean():
    qkv, packed = make([6] * 2000, torch.float32)
    qkv = qkv[:6].repeat(2000, 1, 1, 1)  # the same sequence, dropped anew each time
    torch.manual_seed(1)
    mean = call(fast, qkv, packed, 0.2).view(2000, 6, -1).mean(0)
    wanted = call(fast, qkv, packed, 0.0)[:6]
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
    check_against_padded(at_once, [5, 5, 3, 1], 0.0, selected)


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


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_in_16_bits_gradients_are_as_exact_as_those_of_torchs_autocast(scale, dropout):
    """Torch draws other elements, so that with dropout the error is compared to that without."""
    lengths, heads, size = [64] * 3 + [40], 4, 32
    generator = torch.Generator().manual_seed(1)
    exact = scale * torch.randn(sum(lengths), 3, heads, size, generator=generator).bfloat16()
    outer = torch.randn(sum(lengths), heads * size, generator=generator).bfloat16()
    packed = PackedTokens.pack(*[torch.zeros(sum(lengths), dtype=torch.int64)] * 3, lengths)

    def gradient(attend, dtype, dropout):
        qkv = exact.to(dtype).detach().requires_grad_()
        torch.manual_seed(3)  # the same draws in every type
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = call(attend, qkv, packed, dropout)
        assert mixed.dtype == dtype
        mixed.backward(outer.to(dtype))
        return qkv.grad.double()

    def error(attend, dropout):
        right = gradient(in_training, torch.float64, dropout)
        return (gradient(attend, torch.bfloat16, dropout) - right).norm() / right.norm()

    torchs = error(by_length, 0.0)
    assert error(in_training, dropout) <= torchs
