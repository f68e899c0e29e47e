"""``train.compile``: the same numbers to rounding, the same bits again, a line where it fails."""

import pytest
import torch
from safetensors.torch import load_file

import bertmill
from bertmill.config import load_recipe
from bertmill.errors import RecipeError
from bertmill.model.encoder import initialise
from bertmill.model.folder import load_model
from bertmill.model.heads import PretrainingModel
from bertmill.model.packed import PackedTokens
from bertmill.train.compiled import compiled_blocks
from bertmill.train.precision import autocast
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import RunFolder

VOCAB = 211
SMALL = ["model.hidden_size=48", "model.num_attention_heads=4", "model.intermediate_size=96"]
NO_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
SETTINGS = [
    *SMALL,
    "tokenizer.vocab_size=200",
    "pairs.max_length=32",
    "text.held_out_fraction=0.2",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.log_every_steps=1",
    "train.compile=true",
    "schedule.warmup_steps=2",
]


@pytest.fixture(autouse=True)
def forgetful_compiler(tmp_path, monkeypatch):
    """Have a compiler that has nothing in its cache."""

    def forget(name="cache"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))

    forget()
    yield forget
    torch.compiler.reset()


def packed(lengths: list[int], device: torch.device) -> PackedTokens:
    count = sum(lengths)
    ids = torch.randint(5, VOCAB, (count,), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return PackedTokens.pack(ids, torch.zeros_like(ids), positions, lengths).to(device)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # what torch says where CUDA could round more
@pytest.mark.parametrize(
    ("name", "precision"), [("quick", "fp32"), ("tiny", "fp32"), ("tiny", "bf16")]
)
def test_the_code_fits_batches_of_any_size_and_no_validation(name, precision, device):
    recipe = load_recipe(name, [*SMALL, *NO_DROPOUT])
    model = PretrainingModel(recipe.model, VOCAB)
    initialise(model, recipe.model, torch.Generator().manual_seed(1))
    model.to(device).train()

    def compute(lengths):
        tokens = packed(lengths, device)
        # One batch as in pretraining, where the last block computes some tokens.
        selection = tokens.first_tokens() if lengths == batches[0] else None
        with autocast(device, precision):
            hidden = model(tokens, selection)
        hidden.square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.encoder.parameters()])
        model.zero_grad()
        return hidden.detach(), gradient

    batches = [[9, 5, 5, 3], [48], [7] * 30, [32] * 160]
    expected = [compute(lengths) for lengths in batches]
    names = list(model.state_dict())
    rounding = {"fp32": 1e-5, "bf16": 1e-2}[precision]
    with (
        compiled_blocks(model, device, precision),
        torch.compiler.set_stance("fail_on_recompile"),
    ):
        for lengths, (hidden, gradient) in zip(batches, expected, strict=True):
            own_hidden, own_gradient = compute(lengths)
            assert (own_hidden - hidden).norm() < rounding * hidden.norm()
            assert (own_gradient - gradient).norm() < rounding * gradient.norm()
        with pytest.raises(RuntimeError, match="Detected recompile"):
            model.eval()(packed(batches[0], device))
    assert list(model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_a_resume_has_the_same_bits(device, corpus_file, forgetful_compiler, tmp_path, capsys):
    def weights(run):
        tensors = load_file(run.folder / "model" / "model.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    how = {"steps": 6, "settings": [*SETTINGS, f"train.device={device}"]}
    whole = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "whole", **how)
    assert capsys.readouterr().out.count("\ncompiling what the blocks do") == 1
    parts = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "parts", stop_after=1e-6, **how)
    assert parts.outcome.steps == 1
    forgetful_compiler("other")
    parts = bertmill.pretrain(resume=parts.folder)
    assert weights(parts) == weights(whole)
    # Compiled code draws its own dropout: had none run, the bits would be these.
    how["settings"].append("train.compile=false")
    plain = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "plain", **how)
    assert weights(plain) != weights(whole)


@pytest.mark.slow
def test_losses_are_the_same_to_rounding_and_held_out_ones_those_of_the_saved_model(
    corpus_file, small_store, tmp_path
):
    def losses(run):
        trained = [r for r in RunFolder(run.folder).metrics() if r["split"] == "train"]
        return [r[key] for r in trained for key in ("mlm_loss", "nsp_loss")]

    runs = [
        bertmill.pretrain(
            corpus_file,
            "quick",
            out=tmp_path / value,
            steps=6,
            settings=[*SETTINGS, *NO_DROPOUT, "optimizer.lr=1e-3", f"train.compile={value}"],
        )
        for value in ("true", "false")
    ]
    own, expected = map(losses, runs)
    assert len(own) == 12 and own == pytest.approx(expected, rel=1e-5)
    assert own != expected
    data = RunData.open(small_store, runs[0].recipe)
    held_out = data.held_out.score(load_model(runs[0].folder).model, torch.device("cpu"))
    assert held_out == runs[0].outcome.held_out


def test_a_machine_without_a_compiler_is_told_in_one_line(corpus_file, tmp_path):
    from torch._inductor import config

    how = {"out": tmp_path / "run", "steps": 1, "settings": SETTINGS}
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(RecipeError) as told,
    ):
        bertmill.pretrain(corpus_file, "tiny", **how)
    assert str(told.value).startswith("train.compile: torch cannot compile here (")
    assert "no-such-compiler" in told.value.what and "\n" not in told.value.what
    assert str(told.value).endswith(
        "; install a C++ compiler, or begin a new run with train.compile=false"
    )
    assert not RunFolder(tmp_path / "run").metrics()
