"""Which numbers a run computes in: what is chosen, and that it is kept."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import bertmill
from bertmill.config import load_recipe
from bertmill.train import device, precision
from bertmill.train.world import World

SETTINGS = [
    "tokenizer.vocab_size=200",
    "text.held_out_fraction=0.2",
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "train.batch_size=8",
    "schedule.warmup_steps=2",
]
CPU = torch.device("cpu")


@pytest.fixture
def run(corpus_file, tmp_path, capsys):
    """Train four steps: the run, its weights as bytes, and what it printed of precision."""

    def run(name, *settings, **how):
        how = how or {"corpus": corpus_file, "recipe": "tiny", "out": tmp_path / name, "steps": 4}
        if settings:
            how["settings"] = [*SETTINGS, *settings]
        done = bertmill.resume(**how) if "run" in how else bertmill.pretrain(**how)
        tensors = load_file(done.folder / "model" / "model.safetensors")
        weights = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
        out = capsys.readouterr().out.splitlines()
        return done, weights, [line for line in out if line.startswith(("precision", "training"))]

    return run


def has_units(monkeypatch, has=True):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})


@pytest.mark.parametrize(
    ("width", "units", "chosen"),
    [(128, True, "fp32"), (256, True, "bf16"), (1024, True, "bf16"), (1024, False, "fp32")],
)
def test_auto_follows_from_units_and_width(width, units, chosen, monkeypatch):
    has_units(monkeypatch, units)
    recipe = load_recipe("mini", [f"model.hidden_size={width}"])
    assert precision.choose_precision(recipe, CPU, pytest.fail) == chosen


def test_a_run_keeps_what_was_chosen(run, monkeypatch):
    has_units(monkeypatch)
    monkeypatch.setattr(precision, "_LEAST_WIDTH_ON_A_CPU", 16)
    done, weights, lines = run("auto", "train.precision=auto")
    assert load_recipe(done.folder / "recipe.toml").train.precision == "bf16"
    assert lines[0].endswith("in bf16")
    _, same, _ = run("said", "train.precision=bf16")
    assert same == weights
    # Nothing is chosen again by a machine that would choose otherwise.
    monkeypatch.setattr(precision, "_LEAST_WIDTH_ON_A_CPU", 17)
    done, _, _ = run("again", run=done.folder, steps=6)
    assert done.recipe.train.precision == "bf16"


@pytest.mark.slow
def test_one_command_gives_one_model_however_busy_the_machine_is(corpus_file, tmp_path):
    """In processes of their own: alone, and beside a program for each core."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]

    def weights(name):
        command = ["pretrain", "--corpus", corpus_file, "--recipe", "tiny", "--steps", "4"]
        subprocess.run(
            [sys.executable, "-m", "bertmill", *command, *settings, "--out", tmp_path / name],
            check=True,
            capture_output=True,
        )
        return (tmp_path / name / "model" / "model.safetensors").read_bytes()

    alone = weights("alone")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        assert weights("beside others") == alone
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_bf16_is_not_fp32(run):
    weights = [run(name, f"train.precision={name}")[1] for name in ("fp32", "bf16")]
    assert weights[0] != weights[1]


def test_a_cpu_without_units_computes_in_fp32(run, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(precision, "_LEAST_WIDTH_ON_A_CPU", 16)
    done, _, lines = run("auto", "train.precision=auto")
    assert done.recipe.train.precision == "fp32" and len(lines) == 1


def test_a_run_in_bf16_goes_on_where_there_are_no_units_and_says_so(run, monkeypatch):
    done, _, lines = run("one", "train.precision=bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    done, _, lines = run("two", run=done.folder, steps=6)
    assert done.outcome.steps == 6
    assert "has no units for it" in lines[0] and lines[1].endswith("in bf16")


@pytest.mark.parametrize("name", ["quick", "d2l"])
def test_a_recipe_whose_figures_are_told_says_its_precision(name):
    assert load_recipe(name).train.precision == "fp32"


def test_held_out_losses_are_those_of_fp32(run, small_store, tmp_path):
    """Whatever it trained in: the model that it saved has them when it is opened."""
    from bertmill.model.folder import load_model
    from bertmill.train.run_data import RunData

    done, _, _ = run("run", "train.precision=bf16")
    data = RunData.open(small_store, done.recipe, CPU)
    scores = data.phases[0].held_out.score(load_model(done.folder).model, World(CPU))
    assert scores == done.outcome.held_out


def test_the_peak_is_that_of_the_best_product(monkeypatch, real_runs):
    now = [0.0]
    seconds = iter([4.0, 2.0, 8.0, 2.5, 9.0, 9.0])

    def product(left, right):
        assert left.shape == right.shape == (1024, 1024) and left.dtype == torch.bfloat16
        now[0] += next(seconds)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    assert device.measure_peak_flops(CPU, "bf16") == 2 * 1024**3 / 2.0
