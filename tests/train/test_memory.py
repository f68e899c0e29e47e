"""What a step takes, how it is divided by that, and that neither changes what is computed."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertmill as package
from bertmill.config import load_recipe, parse_bytes
from bertmill.errors import RecipeError
from bertmill.model.architecture import architecture_of
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train import memory
from bertmill.train.device import to_device
from bertmill.train.memory import Division, divide_step, estimate
from bertmill.train.precision import autocast
from bertmill.train.run_folder import RunFolder
from small import SMALL
from train.test_step import VOCAB as FEW
from train.test_step import make_batch

CPU = torch.device("cpu")
VOCAB = 30_522
GB = 10**9


# --- what a step keeps ---------------------------------------------------------------------------


def kept_bytes(recipe, batch):
    """What autograd really keeps of the encoder, parameters apart, each piece of memory once."""
    model = PretrainingModel(recipe.model, FEW).train()
    given = to_device(batch, CPU)
    apart = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # held, so that no other gets its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(CPU, recipe.train.precision),
    ):
        out = model.encode(given.packed, given.selection)
    assert out.requires_grad
    return sum(size for size, _ in kept.values()), model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"],
        ["model.hidden_act=relu"],
        ["model.norm=pre", "model.position_embedding=rotary"],
    ],
)
def test_the_activations_are_those_that_autograd_keeps(precision, settings):
    recipe = load_recipe("tiny", [f"train.precision={precision}", *settings])
    batch, is_bf16 = make_batch([64] * 16), precision == "bf16"
    found, model = kept_bytes(recipe, batch)
    kept = architecture_of(recipe.model).activation_bytes(
        recipe.model, 16 * 64, len(batch.selected_at), 64, is_bf16, on_cpu=True
    )
    factors = 2 * is_bf16 * sum(p.numel() for p in model.encoder.blocks.parameters())
    told = kept.embeddings + kept.block + kept.last_block + factors
    assert told == pytest.approx(found, rel=0.03)


def test_recompute_keeps_the_inputs_of_blocks(monkeypatch):
    recipe = load_recipe("tiny", ["train.precision=fp32", "model.num_hidden_layers=6"])
    batch = make_batch([64] * 16)
    whole, _ = kept_bytes(recipe, batch)
    monkeypatch.setattr("bertmill.model.bert.Block.recompute", True)
    inputs, _ = kept_bytes(recipe, batch)
    kept = architecture_of(recipe.model).activation_bytes(recipe.model, 1024, 48, 64, False, True)
    assert inputs == pytest.approx(kept.embeddings + 6 * kept.block_input, rel=0.05)
    assert inputs < whole / 5


@pytest.mark.parametrize("name", ["tiny", "quick", "d2l"])
def test_recompute_changes_no_bit(name):
    """With dropout on: its draws come again."""
    settings = ["model.hidden_dropout_prob=0.2", "model.attention_probs_dropout_prob=0.2"]
    recipe = load_recipe(name, [*settings, "train.precision=fp32"])
    found = []
    for recompute in (False, True):
        model = PretrainingModel(recipe.model, FEW).train()
        initialize(model, recipe.model, torch.Generator().manual_seed(1))
        model.set_recompute(recompute=recompute)
        torch.manual_seed(2)
        sums = model(to_device(make_batch(), CPU))
        (sums.mlm + sums.nsp).backward()
        next_draw = torch.rand(1)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([sums.mlm, sums.nsp, next_draw, *grads])
    assert len(found[0]) > 20
    assert all(map(torch.equal, *found))


# --- what is chosen ------------------------------------------------------------------------------


def divide(name="base", *settings, said=None, **more):
    recipe = load_recipe(name, ["train.precision=fp32", "pairs.max_length=128", *settings])
    say = pytest.fail if said is None else said.append
    allowed = memory.allowed_memory(recipe, CPU)
    return divide_step(recipe, VOCAB, CPU, say, allowed, **more)


@pytest.fixture
def machine(monkeypatch):
    """Make it a machine of so many bytes."""

    def of(num_bytes):
        monkeypatch.setattr(memory, "device_memory", lambda device: num_bytes)

    of(24 * GB)
    return of


def test_sizes_are_read():
    sizes = {"8GB": 8e9, "12.5 GB": 12.5e9, "512MB": 512e6, "2GiB": 2**31, "7": 7}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    assert not any(parse_bytes(text) for text in ("lots", "", "-1GB", "8XB"))


@pytest.mark.parametrize("size", ["lots", "0GB", "8 apples"])
def test_what_is_not_a_size_is_refused(size, refused, corpus_file):
    args = ["pretrain", "--corpus", corpus_file, "--set", f"train.memory={size}"]
    refused(args, f"train: memory='{size}' is not a size; write for example 8GB or 500MB")


def test_small_recipes_are_not_divided(machine):
    machine(8 * GB)
    for name in ("quick", "d2l", "tiny"):
        assert divide(name) == Division(0, False)


def test_a_batch_is_cut_into_the_fewest_equal_parts_that_fit(machine):
    recipe, sizes = load_recipe("base", ["train.precision=fp32", "pairs.max_length=128"]), []
    machine(96 * GB)
    for allowed in (4, 8, 12, 16, 24, 48, 96):
        said = []
        chosen = divide("base", f"train.memory={allowed}GB", said=said)
        size = chosen.micro_batch_tokens or 256 * 128
        parts = math.ceil(256 * 128 / size)
        assert estimate(recipe, VOCAB, size, "cpu").total <= allowed * GB
        if parts > 1:
            larger = math.ceil(256 / (parts - 1)) * 128
            assert estimate(recipe, VOCAB, larger, "cpu").total > allowed * GB
            what = f"memory: {allowed}.0 GB allows {size:,} tokens at once"
            assert said == [f"{what}: {parts} micro-batches a step"]
        sizes.append(size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-2] and sizes[-1] == 256 * 128
    assert divide("base", "train.memory=4GB", said=[]).micro_batch_tokens == sizes[0]


def test_by_default_it_is_a_share_of_the_whole_machine(machine):
    machine(20 * GB)
    default, given = divide(said=[]), divide("base", "train.memory=12GB", said=[])
    assert default == given != divide("base", "train.memory=20GB", said=[])


def test_ranks_share_the_rows(machine):
    settings = ["base", "train.memory=8GB", "train.batch_size=32"]
    one, four = (divide(*settings, "pairs.max_length=512", said=[], num_ranks=n) for n in (1, 8))
    assert one.micro_batch_tokens and not four.micro_batch_tokens


def test_recompute_comes_where_one_sequence_does_not_fit(machine):
    recipe = load_recipe("base", ["train.precision=fp32", "pairs.max_length=512"])
    kept, again = (estimate(recipe, VOCAB, 512, "cpu", r).total for r in (False, True))
    settings = ["pairs.max_length=512", f"train.memory={(kept + again) // 2}B"]
    said = []
    chosen = divide("base", *settings, said=said)
    assert chosen.recompute and chosen.micro_batch_tokens >= 512
    assert said[0].endswith("micro-batches a step, whose blocks are computed twice")
    with pytest.raises(
        RecipeError, match=r"a step needs .* GB at least, .* GB is allowed; set train"
    ):
        divide("base", *settings, "train.recompute=false")
    assert divide("tiny", "train.recompute=true") == Division(0, True)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        (["pairs.max_length=512", "train.memory=3.6GB"], r"pairs.max_length=\d+ fits"),
        (["train.memory=2GB"], "the network of the recipe medium fits"),
        (["train.memory=4GB", "train.micro_batch_tokens=32768"], "lower train.micro_batch_tokens"),
        (["train.memory=1MB"], "allow more"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(settings, fix, machine):
    with pytest.raises(RecipeError, match=rf"a step needs .* at least, .* is allowed; {fix}"):
        divide("base", *settings)


def test_it_is_refused_in_one_line_before_there_is_a_run(refused, corpus_file, tmp_path):
    settings = ["--set", "tokenizer.vocab_size=200", "--set", "train.memory=2GB"]
    args = ["pretrain", "--recipe", "large", "--corpus", corpus_file, "--out", tmp_path / "run"]
    refused(
        [*args, *settings], "train.memory=2GB: a step needs", "2.0 GB is allowed", "fits"
    )  # nor is the text prepared
    assert not (tmp_path / "run").exists()


def test_more_than_there_is_is_refused(machine):
    machine(6 * GB)
    with pytest.raises(RecipeError, match=r"train.memory=8GB: is more than the 6.0 GB that this"):
        divide("base", "train.memory=8GB")


def test_fewer_ranks_divide_what_they_no_longer_hold(machine):
    """A batch of four ranks, undivided, goes on with one; where it fits it is left whole."""
    machine(24 * GB)
    settings, many = ["train.memory=9GB", "train.batch_size=64"], []
    assert divide("base", *settings, num_ranks=4).micro_batch_tokens == 0
    recipe = load_recipe("base", ["train.precision=fp32", "pairs.max_length=128", *settings])
    how = {"num_ranks": 1, "is_resumed": True}
    chosen = divide_step(recipe, VOCAB, CPU, many.append, 24 * GB, **how)
    assert chosen == Division(0, False) and many == []
    chosen = divide_step(recipe, VOCAB, CPU, many.append, 4 * GB, **how)
    assert 0 < chosen.micro_batch_tokens < 64 * 128 and "micro-batches a step" in many[0]
    with pytest.raises(RecipeError, match="go on with more memory or more ranks"):
        divide_step(recipe, VOCAB, CPU, pytest.fail, 1 * GB, **how)


def test_a_run_keeps_what_was_chosen(corpus_file, tmp_path, monkeypatch, capsys):
    """Also where the machine has less memory later, as long as it fits."""
    fits = {16 * 32: 9, 8 * 32: 5, 4 * 32: 3}  # bytes by tokens

    def tell(recipe, vocab_size, num_tokens, device_type, recompute=False, num_ranks=1):
        size = min(n for n in fits if n >= num_tokens)
        return memory.StepMemory(0, 0, 0, fits[size] // (1 + recompute), 0, 0)

    monkeypatch.setattr(memory, "estimate", tell)
    monkeypatch.setattr(memory, "device_memory", lambda device: 6)
    how = {"recipe": "tiny", "settings": [*SMALL, "train.batch_size=16", "train.memory=5B"]}
    whole = package.pretrain(corpus_file, out=tmp_path / "whole", steps=4, **how)
    assert whole.recipe.train.micro_batch_tokens == 256
    assert "memory: 0.0 GB allows 256 tokens at once: 2 micro-batches a step" in (
        capsys.readouterr().out
    )
    package.pretrain(corpus_file, out=tmp_path / "cut", steps=2, **how)
    monkeypatch.setattr(memory, "device_memory", lambda device: 2)
    resumed = package.resume(tmp_path / "cut", steps=4)
    assert resumed.recipe.train.micro_batch_tokens == 256 and resumed.recipe.train.recompute
    weights = [
        (run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, resumed)
    ]
    assert weights[0] == weights[1]
    monkeypatch.setattr(memory, "device_memory", lambda device: 1)
    with pytest.raises(RecipeError, match=r"memory: a step needs .* at least"):
        package.resume(tmp_path / "cut", steps=5)
    assert RunFolder(tmp_path / "cut").read()[0].train.micro_batch_tokens == 256


# --- the machine ---------------------------------------------------------------------------------


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("4:memory:/a/b\n3:cpuset:/\n0::/c/d\n")
    for name, text in {
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
        "memory/a/memory.limit_in_bytes": "700000000",
        "c/memory.max": "max",
        "c/d/memory.max": "500000000\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    limits = memory._cgroup_limits(own, root)
    assert sorted(limits) == [500_000_000, 700_000_000, 9223372036854771712]
    assert memory._cgroup_limits(tmp_path / "none", root) == []
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: limits)
    assert memory.device_memory(CPU) == 500_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.device_memory(CPU) == 125_000_000


# --- measured ------------------------------------------------------------------------------------

BASE = ["pairs.max_length=128"]  # one phase
SHAPES = {
    "d2l": ("d2l", 20_256, 512, 1, False, []),
    "tiny in parts": ("tiny", VOCAB, 64, 4, False, []),
    "mini": ("mini", VOCAB, 64, 1, False, []),
    "three layers of base": ("base", 8_000, 8, 2, False, [*BASE, "model.num_hidden_layers=3"]),
    "at length 512": (
        "base",
        8_000,
        4,
        2,
        False,
        ["model.num_hidden_layers=3", "pairs.max_length=512"],
    ),
    "computed again": ("base", 8_000, 8, 2, True, [*BASE, "model.num_hidden_layers=6"]),
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_the_peak_of_a_process_to_15_percent(name, monkeypatch):
    monkeypatch.setattr(memory, "SEQUENCES_AT_ONCE", 0)  # only steps are taken
    recipe_name, vocab_size, rows, parts, recompute, settings = SHAPES[name]
    settings = ["train.precision=fp32", *settings]
    program = Path(__file__).with_name("measure_step.py")
    given = [recipe_name, vocab_size, rows, parts, int(recompute), *settings]
    done = subprocess.run(
        [sys.executable, program, *map(str, given)], capture_output=True, text=True, check=True
    )
    recipe = load_recipe(recipe_name, settings)
    num_tokens = rows * recipe.pairs.max_length
    told = estimate(recipe, vocab_size, num_tokens, "cpu", recompute).total
    assert told == pytest.approx(int(done.stdout), rel=0.15)
