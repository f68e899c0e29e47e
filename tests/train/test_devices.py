"""What a step promises, on every device: the same checks on the CPU and, where there is one, CUDA.

Marked ``gpu`` where CUDA is meant; skipped, with what was not checked, where there is none.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bertmill
from bertmill.config import Recipe, load_recipe
from bertmill.data.batch import Batch
from bertmill.model.bert import PaddedBert
from bertmill.model.kernels import vocabulary_loss
from bertmill.model.pretraining import PretrainingModel, initialize, shapes_alone
from bertmill.train import device as device_module
from bertmill.train.device import num_filler, repeatable_kernels, to_device
from bertmill.train.metrics import LossMeter, SpeedMeter
from bertmill.train.optimizer import make_optimizer
from bertmill.train.precision import autocast
from bertmill.train.step import StepInput, take_step
from bertmill.train.world import World

LENGTHS = [32, 19, 19, 12, 7, 7, 7, 3]
VOCAB = 211
# No dropout: devices draw it differently.
SMALL = [
    "model.hidden_size=48",
    "model.num_attention_heads=4",
    "model.intermediate_size=96",
    "model.hidden_dropout_prob=0.0",
    "model.attention_probs_dropout_prob=0.0",
]
RECIPES = {name: load_recipe(name, SMALL) for name in ("tiny", "quick")}


def make_batch(lengths, vocab_size: int) -> Batch:
    draws = np.random.default_rng(3)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    masked_at = np.unique(np.concatenate([starts[:-1] + 1, starts[1:] - 1]))
    return Batch(
        token_ids=draws.integers(5, vocab_size, starts[-1]),
        segment_ids=np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=draws.integers(5, vocab_size, len(masked_at)),
        next_sentence_labels=draws.integers(0, 2, len(lengths)),
    )


def make_model(recipe: Recipe, vocab_size: int = VOCAB) -> PretrainingModel:
    model = PretrainingModel(recipe.model, vocab_size).train()
    section = recipe.model.model_copy(update={"init": "normal", "initializer_range": 0.15})
    initialize(model, section, torch.Generator().manual_seed(1))
    return model


def step(model, optimizer, meter, batch, device, recipe, precision="fp32"):
    """One step of the loop, up to where the loop reads the losses."""
    knobs = recipe.train.model_copy(update={"precision": precision})
    recipe = recipe.model_copy(update={"train": knobs})
    made = StepInput.of([batch], device)
    meter.add(*take_step(model, optimizer, made, recipe, 0, World(device)))


def losses_and_gradient(model, batch, device, precision="fp32"):
    """Both sums and the whole gradient end to end, in float64 on the CPU."""
    model.zero_grad()
    with autocast(device, precision):
        sums = model(to_device(batch, device))
    assert all(value.dtype == next(model.parameters()).dtype for value in sums)
    (sums.mlm + sums.nsp).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return torch.stack(sums).detach().double().cpu(), gradient.double().cpu()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_packed_is_padded(recipe, device):
    model, batch = make_model(recipe).to(device), make_batch(LENGTHS, VOCAB)
    packed = model.encode(to_device(batch, device).packed)[: sum(LENGTHS)]
    rows = [torch.from_numpy(batch.token_ids).split(LENGTHS)]
    rows.append(torch.from_numpy(batch.segment_ids).split(LENGTHS))
    ids, segments = (torch.nn.utils.rnn.pad_sequence(r, batch_first=True).to(device) for r in rows)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).to(device)
    padded = PaddedBert(model.encoder)(ids, mask.long(), segments)
    torch.testing.assert_close(packed, padded[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_losses_and_gradients_are_those_of_float64(recipe, device):
    model, batch = make_model(recipe), make_batch(LENGTHS, VOCAB)
    exact_losses, exact = losses_and_gradient(model.double(), batch, torch.device("cpu"))
    losses, gradient = losses_and_gradient(model.float().to(device), batch, device)
    torch.testing.assert_close(losses, exact_losses, atol=0.0, rtol=1e-5)
    assert (gradient - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_bf16_losses_and_gradients_are_near_those_of_fp32(recipe, device):
    """A product's factors have 8 bits, a relative error of 2^-9 each; sums are fp32."""
    model, batch = make_model(recipe).to(device), make_batch(LENGTHS, VOCAB)
    losses, gradient = losses_and_gradient(model, batch, device)
    rough_losses, rough = losses_and_gradient(model, batch, device, "bf16")
    torch.testing.assert_close(rough_losses, losses, atol=0.0, rtol=1e-2)
    assert 0 < (rough - gradient).norm() < 0.05 * gradient.norm()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_what_the_losses_read_is_selected():
    batch = make_batch([4, 3, 5], VOCAB)
    some = replace(batch, masked_at=np.array([2, 3, 8, 11]))
    got = to_device(some, torch.device("cpu"))
    assert got.selection.at.tolist() == [0, 2, 3, 4, 7, 8, 11]
    assert got.selection.starts.tolist() == [0, 3, 4, 7]
    assert got.selection.lengths == [3, 1, 3]
    assert got.masked_rows.tolist() == [1, 2, 5, 6]

    without_pairs = replace(some, next_sentence_labels=np.empty(0, np.int64))
    got = to_device(without_pairs, torch.device("cpu"))
    assert got.selection.at.tolist() == [2, 3, 8, 11]
    assert got.selection.lengths == [2, 0, 2]
    assert got.masked_rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("has_pairs", [True, False], ids=["pairs", "none"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_filler_changes_no_loss_no_gradient_and_no_speed(recipe, has_pairs, monkeypatch):
    model, batch, cpu = (
        make_model(recipe),
        make_batch([*LENGTHS * 3, 3], VOCAB),
        torch.device("cpu"),
    )
    if not has_pairs:
        batch = replace(batch, next_sentence_labels=batch.next_sentence_labels[:0])
    own = to_device(batch, cpu)
    losses, gradient = losses_and_gradient(model, batch, cpu)
    monkeypatch.setattr(device_module, "_takes_filler", lambda device: True)
    filled = to_device(batch, cpu)
    assert len(filled.packed.token_ids) == sum(filled.packed.lengths) == 322
    assert filled.packed.lengths == [*own.packed.lengths, 1]
    assert filled.lengths == (own.packed.lengths, own.selection.lengths)
    assert len(filled.selection.at) == filled.selection.starts[-1] == len(own.selection.at) + 1
    with_filler, its_gradient = losses_and_gradient(model, batch, cpu)
    torch.testing.assert_close(with_filler, losses, atol=0.0, rtol=1e-6)
    assert (its_gradient - gradient).norm() < 1e-6 * gradient.norm()
    one, two = (SpeedMeter(recipe.model, VOCAB, 1.0) for _ in range(2))
    one.add([own], 1.0, 0.0)
    two.add([filled], 1.0, 0.0)
    assert one.rates(World(torch.device("cpu"))) == two.rates(World(torch.device("cpu")))
    scores = (model.eval().score(each) for each in (own, filled))
    for without, having in zip(*scores, strict=True):
        torch.testing.assert_close(having, without)


def test_filler_is_little_and_makes_few_sizes():
    sizes = range(1, 40_000, 7)
    for size in sizes:
        assert 1 <= num_filler(size, 128) <= max(1, min(size / 100, 128))
    assert {size + num_filler(size, 128) for size in range(16_300, 16_384)} == {16_384}
    assert {size + num_filler(size, 512) for size in range(29_000, 31_000)} == set(
        range(29_184, 31_000 + 256, 256)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision, device, monkeypatch):
    """On the CPU: with tensors that have no values, so that a read of one is an error."""
    monkeypatch.setattr(vocabulary_loss, "_can_read_without_waiting", lambda device: False)
    batch = make_batch(LENGTHS, VOCAB)

    def make_step():
        recipe = RECIPES["tiny"]
        model = make_model(recipe)
        if device.type == "cuda":  # what has no values cannot be moved
            model.to(device)
        optimizer, meter = make_optimizer(model, recipe.optimizer), LossMeter(device)
        return meter, lambda: step(model, optimizer, meter, batch, device, recipe, precision)

    if device.type == "cpu":
        with FakeTensorMode():
            meter, make = make_step()
            make()
            with pytest.raises(DataDependentOutputException):
                meter.state()
        return
    meter, make = make_step()
    make()  # the libraries start up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make()
        with pytest.raises(RuntimeError, match="synchroniz"):
            meter.state()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["quick", "tiny", "d2l", "base", "large"])
def test_a_step_of_a_recipe_reads_nothing_of_the_device(name, dtype, meta, monkeypatch):
    """Whole networks with their dropout, few rows; by the operators that CUDA has."""
    takes = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], takes, lambda: ["meta"])
    recipe, longest = load_recipe(name), load_recipe(name).pairs.max_length
    with shapes_alone():
        model = PretrainingModel(recipe.model, recipe.tokenizer.vocab_size).train()
    model.to(dtype)  # autocast does not know this device
    made = StepInput.of([make_batch([longest, longest, longest // 2, 7], VOCAB)], meta)
    optimizer, meter = make_optimizer(model, recipe.optimizer), LossMeter(meta)
    called = CalledOperators()
    with called:
        fp32 = recipe.train.model_copy(update={"precision": "fp32"})
        recipe = recipe.model_copy(update={"train": fp32})
        meter.add(*take_step(model, optimizer, made, recipe, 0, World(torch.device("cpu"))))
    dropout = recipe.model.attention_probs_dropout_prob
    attention = "_efficient_attention_forward", "_efficient_attention_backward"
    if dtype == torch.bfloat16 and dropout:
        attention = "_flash_attention_forward", "_flash_attention_backward"
    elif dtype == torch.bfloat16:
        attention = "_varlen_attn", "_varlen_attn_backward"
    counts = {called.names.count(operator) for operator in attention}
    assert counts == {recipe.model.num_hidden_layers}
    assert called.names.count("_fused_adamw_") == 2
    assert called.devices <= {meta}
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        meter.state()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["quick", "tiny", "d2l", "base"])
def test_losses_are_computed_on_a_cuda_device_that_is_not_there(name, precision, monkeypatch):
    """With tensors that say they are on CUDA: one elsewhere is an error, and so is a read."""
    if not torch.backends.cuda.is_built():
        pytest.skip("torch was built without CUDA: tensors that say they are there end the process")
    recipe, there = load_recipe(name), torch.device("cuda", 0)
    batch = make_batch([recipe.pairs.max_length, 90, 7], VOCAB)
    monkeypatch.setattr(
        device_module, "copy_to", lambda device, x: torch.empty_like(x, device=device)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        with there:
            model = PretrainingModel(recipe.model, recipe.tokenizer.vocab_size).train()
        made = device_module._to_device(batch, there)
        # `torch.autocast` looks for a real one.
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", precision == "bf16")
        try:
            sums = model(made)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert {value.device for value in sums} == {there}
    assert {value.dtype for value in sums} == {torch.float32}
    with pytest.raises(DataDependentOutputException):
        sums.mlm.item()


class CalledOperators(TorchDispatchMode):
    """Names of the operators that are called, and the devices of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.devices = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.append(function.__name__.partition(".")[0])
        self.devices |= {x.device for x in tree_leaves(out) if torch.is_tensor(x)}
        return out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resume_has_the_same_bits(precision, device, corpus_file, tmp_path):
    settings = [
        *SMALL[:3],  # with dropout
        "tokenizer.vocab_size=200",
        "pairs.max_length=32",
        "text.held_out_fraction=0.2",
        "train.batch_size=8",
        "schedule.warmup_steps=2",
        f"train.device={device}",
        f"train.precision={precision}",
    ]

    def weights(run):
        tensors = load_file(run.folder / "model" / "model.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    how = {"steps": 6, "settings": settings}
    whole = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "whole", **how)
    parts = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "parts", stop_after=1e-6, **how)
    assert parts.outcome.steps == 1
    parts = bertmill.resume(parts.folder)
    assert weights(parts) == weights(whole)
    assert whole.outcome.mfu > 0


def test_repeatable_kernels_leave_the_setting_as_it_was(device):
    with repeatable_kernels(device):
        assert torch.are_deterministic_algorithms_enabled() == (device.type == "cuda")
        assert deterministic.fill_uninitialized_memory == (device.type != "cuda")
    assert not torch.are_deterministic_algorithms_enabled()
    assert deterministic.fill_uninitialized_memory


BASE = load_recipe("base", ["pairs.max_length=128"])


def step_of_base(device: torch.device) -> None:
    """One step of BERT-Base on 32 sequences of 128 tokens."""
    model = PretrainingModel(BASE.model, 30_522).to(device).train()
    lengths = [BASE.pairs.max_length] * 32
    batch = make_batch(lengths, 30_522)
    masked_at = np.sort(np.random.default_rng(1).permutation(sum(lengths))[: 32 * 19])
    labels = np.arange(len(masked_at)) + 5
    batch = replace(batch, masked_at=masked_at, masked_labels=labels)
    optimizer = make_optimizer(model, BASE.optimizer)
    step(model, optimizer, LossMeter(device), batch, device, BASE)


@pytest.mark.alone
def test_base_at_32_times_128_fits_in_8_gb(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step_of_base(device)
        assert torch.cuda.max_memory_allocated() < 8e9
        return
    program = (
        "import runpy, sys, torch\n"
        "runpy.run_path(sys.argv[1])['step_of_base'](torch.device('cpu'))\n"
        "status = open('/proc/self/status').read()\n"
        "print(int(status.split('VmHWM:')[1].split()[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, check=True
    )
    peak_bytes = 1024 * json.loads(done.stdout)
    # Weights, gradients and both moments alone are 16 bytes each.
    assert 16 * 110e6 < peak_bytes < 8e9
