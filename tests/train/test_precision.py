"""Which numbers a run computes in: what is chosen, that it is kept, that choosing is not seen."""

import math

import pytest
import torch
from safetensors.torch import load_file

import bertmill
from bertmill.config import load_recipe
from bertmill.train import device, precision

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


@pytest.fixture
def cpu_with_units(monkeypatch):
    """Have a CPU that has units, on which bf16 is so many times as fast."""

    def set_up(times_as_fast):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        real = precision._measure

        def measure(recipe, data):
            assert all(map(math.isfinite, real(recipe, data).values()))  # it leaves its traces
            return {"fp32": 0.05 * times_as_fast, "bf16": 0.05}

        monkeypatch.setattr(precision, "_measure", measure)
        monkeypatch.setattr(precision, "_MEASURED_SECONDS", 0.0)

    return set_up


@pytest.mark.parametrize(("times", "chosen"), [(1.19, "fp32"), (1.21, "bf16")])
def test_auto_is_what_was_measured_and_the_run_keeps_it(times, chosen, run, cpu_with_units):
    cpu_with_units(times)
    done, weights, lines = run("auto", "train.precision=auto")
    assert done.recipe.train.precision == chosen
    assert load_recipe(done.folder / "recipe.toml").train.precision == chosen
    assert len(lines) == 2 and lines[1].endswith(f"in {chosen}")
    assert lines[0].startswith(f"precision: {chosen}; ")
    assert f"{50 * times:.0f} ms in fp32 and 50 ms in bf16, {times:.2f} times" in lines[0]
    # Choosing leaves no trace: the same bits as where the recipe says so.
    _, same, lines = run("said", f"train.precision={chosen}")
    assert same == weights and len(lines) == 1
    # And nothing is chosen again by a machine that would choose otherwise.
    cpu_with_units(2.4 - times)
    done, _, lines = run("again", run=done.folder, steps=6)
    assert done.recipe.train.precision == chosen and len(lines) == 1


def test_bf16_is_not_fp32(run):
    weights = [run(name, f"train.precision={name}")[1] for name in ("fp32", "bf16")]
    assert weights[0] != weights[1]


def test_a_cpu_without_units_computes_in_fp32(run, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(precision, "_measure", None)
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
    assert data.held_out.score(load_model(done.folder).model, CPU) == done.outcome.held_out


def test_the_peak_is_that_of_the_best_product(monkeypatch, real_runs):
    now = [0.0]
    seconds = iter([4.0, 2.0, 8.0, 2.5, 9.0, 9.0])

    def product(left, right):
        assert left.shape == right.shape == (1024, 1024) and left.dtype == torch.bfloat16
        now[0] += next(seconds)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    assert device.measure_peak_flops(CPU, "bf16") == 2 * 1024**3 / 2.0
