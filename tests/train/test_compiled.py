"""``train.compile``: the same numbers to rounding, the same bits again, a line where it fails."""

import shutil
from functools import partial

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import bertmill
from bertmill.config import load_recipe
from bertmill.errors import RecipeError
from bertmill.model.packed import PackedTokens
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.compiled import compile_blocks
from bertmill.train.precision import autocast

VOCAB = 211
SMALL = ["model.hidden_size=48", "model.num_attention_heads=4", "model.intermediate_size=96"]
NO_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
BATCHES = [[9, 5, 5, 3], [48, 1], [7] * 30, [32] * 160]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgetful_compiler(tmp_path, monkeypatch):
    """Have a compiler that has nothing in its cache."""

    def forget(name="cache"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))

    forget()
    yield forget
    torch.compiler.reset()


@pytest.fixture
def without_code(monkeypatch):
    """Trace as the compiler does, and run what was traced without compiling it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def needs_compiler(device):
    if device.type == "cpu" and not shutil.which("g++"):
        pytest.skip("no C++ compiler, so nothing was compiled")


def make_model(name, settings, device=CPU):
    recipe = load_recipe(name, [*SMALL, *settings])
    model = PretrainingModel(recipe.model, VOCAB)
    initialize(model, recipe.model, torch.Generator().manual_seed(1))
    return model.to(device).train()


def packed(lengths: list[int], device: torch.device) -> PackedTokens:
    count = sum(lengths)
    ids = torch.randint(5, VOCAB, (count,), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return PackedTokens.pack(ids, torch.zeros_like(ids), positions, lengths).to(device)


def vectors_and_gradient(model, lengths, device=CPU, precision="fp32"):
    torch.manual_seed(1)
    with autocast(device, precision):
        hidden = model.encode(packed(lengths, device), packed(lengths, device).first_tokens())
    hidden.square().mean().backward()
    own = [p.grad for p in model.encoder.parameters()]
    model.zero_grad()
    whole = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in own]
    return hidden.detach(), torch.cat([x.flatten() for x in whole])


def check(one, two, rounding):
    for got, wanted in zip(one, two, strict=True):
        assert (got - wanted).norm() < rounding * wanted.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # what torch says where CUDA could round more
@pytest.mark.parametrize(("name", "precision"), [("quick", "fp32"), ("tiny", "bf16")])
def test_the_code_fits_batches_of_any_size(name, precision, device):
    needs_compiler(device)
    model = make_model(name, NO_DROPOUT, device)
    wanted = [vectors_and_gradient(model, lengths, device, precision) for lengths in BATCHES]
    names = list(model.state_dict())
    compile_blocks(model, device, precision)
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths, both in zip(BATCHES, wanted, strict=True):
            own = vectors_and_gradient(model, lengths, device, precision)
            check(own, both, {"fp32": 1e-5, "bf16": 1e-2}[precision])
        with torch.no_grad():
            model.eval().encode(packed(BATCHES[0], device))
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_blocks_that_are_sharded_or_recomputed_need_no_other_code(without_code):
    """One process; dropout is on, drawn by the compiled blocks alone."""
    model = make_model("tiny", ["model.attention_probs_dropout_prob=0.0"])
    compile_blocks(model, CPU, "fp32")
    wanted = [vectors_and_gradient(model, lengths) for lengths in BATCHES]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in model.encoder.blocks:
            forward = block.forward
            block.forward = partial(checkpoint, forward, use_reentrant=False)
            fully_shard(block, mesh=mesh)
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths, both in zip(BATCHES, wanted, strict=True):
                check(vectors_and_gradient(model, lengths), both, 1e-6)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_a_resume_has_the_same_bits(device, corpus_file, forgetful_compiler, tmp_path, capsys):
    needs_compiler(device)
    settings = [
        *SMALL,
        "tokenizer.vocab_size=200",
        "pairs.max_length=32",
        "text.held_out_fraction=0.2",
        "train.batch_size=8",
        "train.precision=fp32",
        "train.compile=true",
        "schedule.warmup_steps=2",
        f"train.device={device}",
    ]

    def weights(run):
        tensors = load_file(run.folder / "model" / "model.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    how = {"steps": 6, "settings": settings}
    whole = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "whole", **how)
    assert capsys.readouterr().out.count("\ncompiling what the blocks do") == 1
    parts = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "parts", stop_after=1e-6, **how)
    assert parts.outcome.steps == 1
    forgetful_compiler("other")
    parts = bertmill.resume(parts.folder)
    assert weights(parts) == weights(whole)
    # Compiled code draws its own dropout: had none run, the bits would be these.
    settings.append("train.compile=false")
    plain = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "plain", **how)
    assert weights(plain) != weights(whole)


def test_where_nothing_can_be_compiled_that_is_said(monkeypatch):
    def fail(*args):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    with pytest.raises(
        RecipeError, match=r"train\.compile: torch cannot compile.*\(no compiler\);"
    ):
        compile_blocks(make_model("quick", []), CPU, "fp32")
