"""No pickle is read or written, anywhere: reading one runs whatever its maker wishes."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import bertmill
from bertmill.errors import BertmillError

SOURCE = Path(__file__).parents[1] / "src" / "bertmill"
READERS = r"pickle|torch\.(load|save)\b|joblib|marshal|shelve|dill|(?<![\w.])(eval|exec)\("


def test_the_source_names_no_reader_of_pickles():
    for path in SOURCE.rglob("*.py"):
        source = path.read_text("utf-8")
        for allowed in ("without pickle", "allow_pickle=False"):
            source = source.replace(allowed, "")
        assert not re.findall(READERS, source), path


class Malice:
    """What a stranger may put where weights or numbers are looked for."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "name",
    ["model/model.safetensors", "model/config.json", "model/tokenizer.json", "model/bertmill.json",
     "optimizer.safetensors", "state.json"],
)  # fmt: skip
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(small_run, tmp_path, name):
    run = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    folder = (run / "model").resolve().parent
    mark = tmp_path / "it-ran"
    malice = pickle.dumps(Malice(mark))
    (folder / name).write_bytes(malice)
    (folder / "model" / "pytorch_model.bin").write_bytes(malice)
    for other in (run / "checkpoints").iterdir():
        if other != folder:
            shutil.rmtree(other)
    with pytest.raises(BertmillError):
        bertmill.resume(run, steps=20)
    assert not mark.exists()


def test_a_pickle_of_token_counts_is_refused_and_not_run(small_store, tmp_path):
    import hashlib
    import json

    store = shutil.copytree(small_store.folder, tmp_path / "store")
    mark = tmp_path / "it-ran"
    malice = pickle.dumps(Malice(mark))
    (store / "token-counts.npy").write_bytes(malice)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["token_counts"] |= {
        "num_bytes": len(malice),
        "sha256": hashlib.sha256(malice).hexdigest(),
    }
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BertmillError):
        bertmill.pretrain(store, "tiny", out=tmp_path / "run", steps=1)
    assert not mark.exists()


def test_what_a_run_writes_is_safetensors(small_run):
    written = {path.suffix for path in small_run.folder.rglob("*") if path.is_file()}
    assert written <= {".safetensors", ".json", ".jsonl", ".toml", ".txt", ".png", ""}
    for path in small_run.folder.rglob("*.safetensors"):
        assert load_file(path)
