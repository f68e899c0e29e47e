import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from bertmill.config import ModelSection, load_recipe
from bertmill.data.batch import Batch
from bertmill.model.architecture import ARCHITECTURES
from bertmill.model.conversion import from_huggingface
from bertmill.model.kernels import KERNELS, Kernels, linear
from bertmill.model.packed import PackedTokens, Selection
from bertmill.model.pretraining import PretrainingInput, PretrainingModel, initialize
from bertmill.train.device import to_device

LENGTHS = [19, 19, 12, 7, 7, 7, 3, 2]

# name: hidden, layers, heads, intermediate, vocabulary, positions, activation, tied
SHAPES = {
    "one layer, tied": (24, 1, 3, 40, 101, 32, "gelu", True),
    "two layers, untied, relu": (32, 2, 2, 64, 57, 20, "relu", False),
    "four layers, odd sizes": (30, 4, 5, 47, 33, 19, "gelu", True),
    "three layers, untied": (16, 3, 1, 16, 200, 64, "gelu", False),
}


def make_batch(vocab_size: int, lengths=LENGTHS, **changes) -> PretrainingInput:
    draws = np.random.default_rng(3)
    starts = np.cumsum([0, *lengths])
    masked_at = np.union1d(starts[:-1], starts[1:-1] + 1)
    batch = Batch(
        token_ids=draws.integers(5, vocab_size, starts[-1]),
        segment_ids=np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=draws.integers(5, vocab_size, len(masked_at)),
        next_sentence_labels=draws.integers(0, 2, len(lengths)),
    )
    return to_device(replace(batch, **changes), torch.device("cpu"))


def padded(packed: PackedTokens, values: torch.Tensor) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(values.split(list(packed.lengths)), batch_first=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_everything_equals_transformers(shape):
    width, layers, heads, inner, vocab, positions, act, tied = shape
    section = ModelSection(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        hidden_act=act,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(1)
    theirs = BertForPreTraining(
        BertConfig(vocab_size=vocab, **section.model_dump(exclude={"init", "norm"}))
    ).eval()
    for parameter in theirs.parameters():  # biases and LayerNorm too, or a mix-up would not show
        torch.nn.init.normal_(parameter, std=0.3)
    ours = PretrainingModel(section, vocab).eval()
    found = from_huggingface(
        ARCHITECTURES["bert"], theirs.state_dict(), ours.state_dict(), {"encoder"}, "theirs"
    )
    ours.load_state_dict(found)

    batch = make_batch(vocab)
    packed = batch.packed
    lengths = torch.tensor(LENGTHS)
    wanted = theirs(
        input_ids=padded(packed, packed.token_ids),
        token_type_ids=padded(packed, packed.segment_ids),
        attention_mask=(torch.arange(max(LENGTHS)) < lengths[:, None]).long(),
        output_hidden_states=True,
    )
    real = torch.arange(max(LENGTHS)) < lengths[:, None]
    masked_at = batch.selection.at[batch.masked_rows]
    hidden = ours.encode(packed)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(hidden, wanted.hidden_states[-1][real], **close)
    pooled = ours.pool(hidden[packed.starts[:-1]])
    torch.testing.assert_close(
        ours.next_sentence_head(pooled), wanted.seq_relationship_logits, **close
    )
    torch.testing.assert_close(
        ours.masked_token_logits(hidden), wanted.prediction_logits[real], **close
    )
    sums = ours(batch)
    mlm = torch.nn.functional.cross_entropy(
        wanted.prediction_logits[real][masked_at], batch.masked_labels, reduction="sum"
    )
    # Hugging Face's label 0 says "next", ours 1.
    nsp = torch.nn.functional.cross_entropy(
        wanted.seq_relationship_logits, 1 - batch.next_sentence_labels, reduction="sum"
    )
    torch.testing.assert_close(sums.mlm, mlm, **close)
    torch.testing.assert_close(sums.nsp, nsp, **close)
    scores = ours.score(batch)
    torch.testing.assert_close(scores.mlm.sum(), mlm, **close)
    torch.testing.assert_close(scores.nsp.sum(), nsp, **close)
    right = wanted.prediction_logits[real][masked_at].argmax(-1) == batch.masked_labels
    assert torch.equal(scores.mlm_right, right)


NOTHING = np.empty(0, np.int64)
QUICK = load_recipe("quick").model.model_copy(
    update={"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
)


@pytest.mark.parametrize("section", [QUICK, QUICK.model_copy(update={"norm": "post"})])
def test_sequences_do_not_see_one_another(section):
    model = PretrainingModel(section, 60).eval()
    initialize(model, section.model_copy(update={"init": "normal"}), torch.Generator())
    packed = make_batch(60).packed
    together = model.encode(packed)
    start = 0
    for length in LENGTHS:
        one = PackedTokens.pack(*(t[start : start + length] for t in packed[:3]), [length])
        torch.testing.assert_close(model.encode(one), together[start : start + length])
        start += length


def test_order_of_lengths_does_not_matter():
    model = PretrainingModel(QUICK, 60).eval()
    packed = make_batch(60).packed
    back = torch.arange(sum(LENGTHS)).split(LENGTHS)[::-1]
    index = torch.cat(back)
    turned = PackedTokens.pack(*(t[index] for t in packed[:3]), LENGTHS[::-1])
    torch.testing.assert_close(model.encode(turned), model.encode(packed)[index])


def slow_rotary_attention(q, k, v, positions):
    """Complex numbers, one head, one pair of tokens at a time (Su et al. 2021, section 3.2)."""
    length, width = q.shape
    half = width // 2
    angles = [10_000.0 ** (-i / half) for i in range(half)]
    scores = torch.empty(length, length)
    for m in range(length):
        for n in range(length):
            total = 0.0
            for i, angle in enumerate(angles):
                one = complex(q[m, i], q[m, i + half])
                two = complex(k[n, i], k[n, i + half])
                turn = (positions[m] - positions[n]) * angle
                total += (one * two.conjugate() * complex(math.cos(turn), math.sin(turn))).real
            scores[m, n] = total / math.sqrt(width)
    return scores.softmax(-1) @ v


def test_rotary_attention_is_the_papers():
    section = QUICK.model_copy(update={"num_attention_heads": 1, "hidden_size": 8})
    model = PretrainingModel(section, 10)
    attention = model.encoder.blocks[0].attention.requires_grad_(False)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 1, 2, 3, 0, 1])
    packed = PackedTokens.pack(x, x, x, [4, 2])
    got = attention(x, x, packed, None, model.encoder._rotation(positions))
    q, k, v = attention.query_key_value(x).chunk(3, -1)
    mixed = torch.cat(
        [
            slow_rotary_attention(q[a:b], k[a:b], v[a:b], positions[a:b].tolist())
            for a, b in ((0, 4), (4, 6))
        ]
    )
    torch.testing.assert_close(got, attention.output(mixed))


def test_fan_in_draw_starts_with_blocks_that_add_nothing():
    model = PretrainingModel(QUICK, 60).eval()
    initialize(model, QUICK, torch.Generator().manual_seed(1))
    packed = make_batch(60).packed
    embedded = model.encoder.embeddings(*packed[:3])
    torch.testing.assert_close(model.encode(packed), model.encoder.final_norm(embedded))
    spread = model.encoder.blocks[0].attention.query_key_value.weight.std()
    assert abs(spread * 24**0.5 - 1) < 0.1


def test_normal_draw_has_berts_spread():
    section = ModelSection(hidden_size=96, num_hidden_layers=1, intermediate_size=96)
    model = PretrainingModel(section, 500)
    initialize(model, section, torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 0).all(), name
        elif parameter.numel() > 1000:
            assert abs(parameter.std() - 0.02) < 0.001, name


def test_same_generator_same_weights():
    models = [PretrainingModel(QUICK, 60) for _ in range(2)]
    for model in models:
        initialize(model, QUICK, torch.Generator().manual_seed(5))
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_dropout_changes_training_not_use():
    section = QUICK.model_copy(
        update={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "init": "normal"}
    )
    model = PretrainingModel(section, 60)
    packed = make_batch(60).packed
    assert not torch.equal(model.train().encode(packed), model.encode(packed))
    assert torch.equal(model.eval().encode(packed), model.encode(packed))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("position", ["rotary", "absolute"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_what_is_selected_is_as_in_the_whole(norm, position, num_layers):
    changes = {"norm": norm, "position_embedding": position, "num_hidden_layers": num_layers}
    section = QUICK.model_copy(update={**changes, "init": "normal"})
    model = PretrainingModel(section, 60).double().eval()
    initialize(model, section, torch.Generator().manual_seed(2))
    packed = make_batch(60).packed
    at = torch.tensor([0, 1, 18, 19, 40, 60, 61, 75])  # none of some sequences
    outer = torch.randn(len(at), section.hidden_size, dtype=torch.float64)

    def vectors_and_gradients(compute):
        model.zero_grad()
        found = compute()
        found.backward(outer)
        return [found, *(p.grad for p in model.parameters() if p.grad is not None)]

    whole = vectors_and_gradients(lambda: model.encode(packed)[at])
    starts = torch.searchsorted(at, packed.starts.long()).int()
    selection = Selection(at, starts, starts.diff().tolist())
    some = vectors_and_gradients(lambda: model.encode(packed, selection))
    torch.testing.assert_close(some, whole)


def test_without_pairs_the_second_loss_is_zero():
    model = PretrainingModel(QUICK, 60).eval()
    batch = make_batch(60, next_sentence_labels=NOTHING)
    assert model(batch).nsp == 0
    assert not len(model.score(batch).nsp)


def test_all_logits_are_never_held(monkeypatch):
    """No tensor of predictions times vocabulary is made while the losses and gradients are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    vocab, lengths = 5000, [128] * 32
    model = PretrainingModel(QUICK, vocab)
    every_other = np.arange(0, sum(lengths), 2)
    batch = make_batch(vocab, lengths, masked_at=every_other, masked_labels=every_other)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        sums = model(batch)
        (sums.mlm + sums.nsp).backward()
    assert largest < 0.5 * len(batch.masked_rows) * vocab


def counting_kernels(rows: list[int]) -> Kernels:
    """Kernels that add the rows of every linear map to a list."""

    def counted(x, weight, bias):
        rows.append(len(x))
        return linear.fast(x, weight, bias)

    return replace(KERNELS["auto"], linear=counted)


def test_attention_in_training_computes_no_padded_token(monkeypatch):
    model, scored = PretrainingModel(QUICK, 60), []
    multiply = torch.baddbmm

    def counted(zero, left, right, **options):
        scored.append(left.shape[0] * left.shape[1] * right.shape[2])
        return multiply(zero, left, right, **options)

    monkeypatch.setattr(torch, "baddbmm", counted)
    model.encode(make_batch(60).packed)
    every_pair = sum(n * n for n in LENGTHS) * QUICK.num_attention_heads
    assert sum(scored) == every_pair * QUICK.num_hidden_layers


def test_no_padded_token_is_computed(monkeypatch):
    rows, attended = [], []
    model = PretrainingModel(QUICK, 60, counting_kernels(rows))
    packed = make_batch(60).packed
    num_tokens = len(packed.token_ids)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, out: rows.append(inputs[0].shape[0]))
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **options):
        attended.append(q.shape[0] * q.shape[2])
        return attend(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        model.eval().encode(packed)
    assert set(rows) == {num_tokens}
    assert sum(attended) == num_tokens * QUICK.num_hidden_layers
    assert len(attended) > QUICK.num_hidden_layers  # of several lengths


def test_first_tokens():
    first = make_batch(60).packed.first_tokens()
    assert first.at.tolist() == [0, 19, 38, 50, 57, 64, 71, 74]
    assert first.starts.tolist() == list(range(9))
    assert first.lengths == [1] * 8


def test_in_the_last_block_only_keys_and_values_are_of_what_no_loss_reads():
    batch = make_batch(60)
    section = QUICK.model_copy(update={"num_hidden_layers": 1})
    rows = []
    model = PretrainingModel(section, 60, counting_kernels(rows))
    for module in model.encoder.blocks[-1].modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, out: rows.append(inputs[0].shape[0]))
    model(batch)
    num_tokens, num_selected = len(batch.packed.token_ids), len(batch.selection.at)
    assert num_selected < num_tokens
    # Of all tokens: keys and values, and the norm before them.
    assert sorted(rows) == [num_selected] * 6 + [num_tokens] * 2
