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


def check_against_padded(attend, lengths, dropout, selected=None, dtype=torch.float64):
    (qkv, packed), (again, _) = make(lengths, dtype), make(lengths, dtype)
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


def nested(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, scale):
    """What CUDA's operators compute, by torch's public form for nested tensors."""
    assert q.shape[-1] % 8 == 0
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert longest_q == starts_q.diff().max()
    assert longest_k == starts_k.diff().max()
    each = ((q, starts_q), (k, starts_k), (v, starts_k))
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(x.contiguous(), starts.long()).transpose(1, 2)
        for x, starts in each
    )
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    return mixed.transpose(1, 2).values()


@pytest.fixture(params=["varlen_attn", "flash", "efficient"])
def operator(request, monkeypatch):
    """Have `at_once` call `nested`: type and dropout for which it takes this operator."""
    dropout = 0.0 if request.param == "varlen_attn" else 0.3

    def varlen_attn(*args, scale):
        return nested(*args, 0.0, scale)

    def flash(*args, scale):
        *args, given, is_causal, returns_weights = args
        assert given == dropout and not is_causal and not returns_weights
        return nested(*args, 0.0, scale), None

    def efficient(q, k, v, bias, *args, scale):
        *args, given, mask, keeps_sums = args
        assert bias is None and given == dropout and mask == 0 and keeps_sums
        return nested(q[0], k[0], v[0], *args, 0.0, scale)[None], None

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", efficient)
    return torch.float32 if request.param == "efficient" else torch.float64, dropout


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("selected", [None, [0, 6, 7, 13]], ids=["all", "some"])
def test_what_cuda_computes_at_once_is_the_padded_form(operator, selected):
    """The operators themselves need CUDA; a public form takes their arguments on a CPU."""
    dtype, dropout = operator
    check_against_padded(at_once, [5, 5, 3, 1], dropout, selected, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("size", [64, 12])
def test_cudas_operators_take_these_arguments(dtype, dropout, size, meta):
    """Names, order, shapes and types, forward and backward."""
    lengths, heads = [5, 5, 3], 3
    q = torch.empty(4, heads, size, dtype=dtype, device=meta, requires_grad=True)
    kv = torch.empty(13, 2, heads, size, dtype=dtype, device=meta, requires_grad=True)
    packed = PackedTokens.pack(*[torch.zeros(13, dtype=torch.int64)] * 3, lengths).to(meta)
    selection = Selection(packed.token_ids[:4], packed.starts, [2, 0, 2])
    mixed = fast(q, kv, selection, packed, dropout)
    assert mixed.shape == (4, heads * size) and mixed.dtype == dtype
    mixed.sum().backward()
    assert q.grad.shape == q.shape and kv.grad.shape == kv.shape


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device, so its own operators were not run")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [64, 12])
@pytest.mark.parametrize("selected", [None, [0, 6, 7, 8, 13]], ids=["all", "some"])
def test_on_cuda_all_lengths_at_once_are_the_plain_form(cuda, dtype, size, selected):
    lengths, heads = [5, 5, 3, 1], 3
    qkv = torch.randn(14, 3, heads, size, generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(14, dtype=torch.int64)
    packed = PackedTokens.pack(ids, ids, ids, lengths)
    selection = None if selected is None else select(selected, packed)
    ours = qkv.to(cuda, dtype).requires_grad_()
    exact = qkv.to(dtype).double().requires_grad_()
    on_cuda = selection and Selection(*(x.to(cuda) for x in selection[:2]), selection.lengths)
    got = call(fast, ours, packed.to(cuda), 0.0, on_cuda)
    wanted = call(plain, exact, packed, 0.0, selection)
    rounding = {"rtol": 0, "atol": 0.05 if dtype == torch.bfloat16 else 1e-4}
    torch.testing.assert_close(got.double().cpu(), wanted, **rounding)
    got.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad.double().cpu(), exact.grad, **rounding)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_cuda_dropout_falls_anew_and_comes_again_with_the_seed(cuda, dtype):
    qkv, packed = make([6] * 2000, dtype)
    qkv, packed = qkv.detach()[:6].repeat(2000, 1, 1, 1).to(cuda), packed.to(cuda)

    def attend(seed):
        torch.manual_seed(seed)
        return call(fast, qkv, packed, 0.2).float().view(2000, 6, -1)

    one, again, other = attend(1), attend(1), attend(2)
    assert torch.equal(one, again) and not torch.equal(one, other)
    wanted = call(fast, qkv[:6], PackedTokens.pack(*packed[:3], [6]), 0.0).float()
    torch.testing.assert_close(one.mean(0), wanted, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float32, True),
        ("cuda", torch.float64, False),
        ("cpu", torch.bfloat16, False),
    ],
)
def test_all_lengths_are_taken_at_once_where_that_can_be(device, dtype, expected):
    assert takes_all_lengths(torch.device(device), dtype) is expected


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
