"""Exports for onnxruntime: their held-out scores are those of the model."""

import json
import sys
from dataclasses import asdict

import pytest

import bertmill as package
from bertmill.config import load_recipe
from bertmill.errors import InputError, MissingExtraError, ModelError
from bertmill.evaluation.held_out import open_held_out
from bertmill.exports import onnx
from bertmill.exports.onnx import export_onnx, score_files, write_onnx
from bertmill.model.folder import load_model

LARGEST_LOSS = 0.02

LINES = [
    f"{who} {does} in year {n}."
    for n, (who, does) in enumerate(
        (who, does)
        for who in ["The river", "A crane", "My sister", "The old farmer", "Nobody"]
        for does in ["follows the valley", "remembers two horses", "crosses a road", "is here"]
    )
]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """More pairs than are scored at once."""
    path = tmp_path_factory.mktemp("held-out") / "held-out.txt"
    path.write_text("\n\n".join(" ".join(LINES[d % 7 : d % 7 + 9]) for d in range(90)), "utf-8")
    return [str(path)]


@pytest.fixture
def save(save_random_model, tmp_path):
    """A model folder of the quick recipe's kind."""

    def save(leave_out=(), **changes):
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
        section = load_recipe("quick").model.model_copy(update=sizes | changes)
        return save_random_model(tmp_path / "model", section, None, leave_out).folder

    return save


def be_silent(line):
    pass


def export(model, out, sources=(), int8=True):
    assert export_onnx(model, out, int8, sources, [], be_silent) == out
    return json.loads((out / "onnx.json").read_text("utf-8"))


# --- the scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["run", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("quick", "untied"))]
)
def test_the_files_score_as_the_model(kind, small_run, save, held_out, tmp_path):
    model = small_run.folder
    if kind != "run":
        model = save(tie_word_embeddings=kind == "quick")
    report = export(model, tmp_path / "out", held_out)
    assert 0 < report["largest_difference"] < 1e-5
    scores = report["held_out"]
    assert list(scores) == ["torch", "model.int8.onnx", "model.onnx"]
    assert scores["torch"] == asdict(package.evaluate_held_out(model, held_out, device="cpu"))
    assert scores["torch"]["num_pairs"] > 64
    assert scores["model.onnx"] == pytest.approx(scores["torch"], abs=1e-4)
    print(
        "ERR",
        {
            k: (v, scores["model.int8.onnx"][k])
            for k, v in scores["torch"].items()
            if v is not None and v != scores["model.int8.onnx"][k]
        },
    )
    assert scores["model.int8.onnx"] == pytest.approx(scores["torch"], abs=LARGEST_LOSS)
    assert scores["model.int8.onnx"]["mlm_loss"] != pytest.approx(scores["torch"]["mlm_loss"], 1e-6)


@pytest.mark.slow
def test_each_file_is_scored_by_itself(save, held_out, tmp_path):
    folder = save()
    model, other = load_model(folder), load_model(folder)
    other.model.encoder.final_norm.weight.data.neg_()
    write_onnx(tmp_path, other)
    scores = score_files(model, tmp_path, open_held_out(model, held_out, [], be_silent))
    assert list(scores) == ["torch", "model.onnx"]
    assert abs(scores["model.onnx"].mlm_loss - scores["torch"].mlm_loss) > 0.01
    assert scores["model.onnx"].num_predictions == scores["torch"].num_predictions


def test_settings_and_a_model_without_next_sentence_head(save, held_out, tmp_path):
    model = save(["pooler", "next_sentence_head"])
    settings, said = ["masking.mask_fraction=0.4"], []
    export_onnx(model, tmp_path / "out", False, held_out, settings, said.append)
    scores = json.loads((tmp_path / "out" / "onnx.json").read_text("utf-8"))["held_out"]
    expected = package.evaluate_held_out(model, held_out, settings=settings, device="cpu")
    assert scores["torch"] == asdict(expected)
    assert [each["nsp_loss"] for each in scores.values()] == [None] * 2
    assert sum("no next-sentence head" in line for line in said) == 1


# --- the folder ----------------------------------------------------------------------------------


def test_without_text_nothing_is_judged(small_run, tmp_path):
    report = export(small_run.folder, tmp_path / "deep" / "out", int8=False)
    assert list(report) == ["largest_difference"]
    names = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert {"model.onnx", "onnx.json", "bertmill.json"} < names
    assert "model.int8.onnx" not in names
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_8_bits_are_measured(small_run, tmp_path):
    with pytest.raises(InputError, match="`int8`: needs `held_out`; give text to measure what 8 b"):
        export(small_run.folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_alone_is_exported_without_text(save, held_out, tmp_path):
    model = save(["pooler", "next_sentence_head", "masked_token_head"])
    with pytest.raises(ModelError, match="no masked-token head"):
        export(model, tmp_path / "out", held_out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert export(model, tmp_path / "out", int8=False)["largest_difference"] < 1e-5


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_out_that_exists(kind, small_run, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine", "utf-8") if kind == "file" else out.mkdir()
    with pytest.raises(InputError, match="out: already exists; choose another `out`"):
        export(small_run.folder, out)
    assert list(tmp_path.rglob("*")) == [out]


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_not_installed(name, small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name} is not .*pip install 'bertmill\[onnx\]'"):
        export(small_run.folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["difference", "text", "disk"])
def test_what_fails_leaves_nothing_behind(fault, small_run, held_out, tmp_path, monkeypatch):
    sources = held_out
    if fault == "difference":
        monkeypatch.setattr(onnx, "LARGEST_DIFFERENCE", 0.0)
    elif fault == "text":
        sources = [str(tmp_path / "gone.txt")]
    else:
        monkeypatch.setattr(onnx, "write_int8", full_disk)
    words = {"difference": "other vectors, by", "text": "does not exist", "disk": "No space left"}
    with pytest.raises(package.BertmillError, match=words[fault]) as caught:
        export(small_run.folder, tmp_path / "out", sources)
    assert str(caught.value).count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def full_disk(folder):
    raise OSError(28, "No space left on device")
