"""ONNX files: what onnxruntime makes of them, alone and beside torch and transformers."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

from bertmill import export_huggingface
from bertmill.config import ModelSection, load_recipe
from bertmill.errors import ModelError
from bertmill.exports import onnx
from bertmill.exports.onnx import write_int8, write_onnx
from bertmill.model import bert
from bertmill.model.folder import load_model, save_model
from bertmill.model.packed import PackedTokens
from bertmill.model.pretraining import PretrainingModel
from bertmill.model.task import Task, TaskModel

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

LONGEST = 40
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": LONGEST,
}
SHAPES = {
    "published": ModelSection(**SIZES),
    "quick": load_recipe("quick").model.model_copy(update=SIZES),
}
LARGEST_ERROR = 0.05

# Batch 1, the shortest and the longest, padding of one token and of many.
BATCHES = [[1], [2], [LONGEST], [2, 2], [7, 6, 2], [LONGEST, 19, 3, 1]]


@pytest.fixture(scope="module", params=SHAPES)
def written(request, small_run, save_random_model, tmp_path_factory):
    """A model, and the folder of its ONNX files."""
    place = tmp_path_factory.mktemp("onnx")
    about = load_model(small_run.folder).about if request.param == "quick" else None
    loaded = save_random_model(place / "model", SHAPES[request.param], about)
    folder = place / "onnx"
    folder.mkdir()
    differences = write_onnx(folder, loaded)
    assert 0 < differences.pop("last_hidden_state") < 1e-5 and not differences
    write_int8(folder)
    return loaded, folder


def rectangles(lengths, vocab_size, seed=3):
    """The three inputs by their names; what stands at padding is arbitrary."""
    draw = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": draw.integers(vocab_size, size=shape),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        "token_type_ids": draw.integers(2, size=shape),
    }


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (hidden,) = session.run(None, inputs)
    return hidden


def encode(loaded, inputs):
    """The vectors of the packed encoder at the true tokens, [N, D]."""
    real = inputs["attention_mask"] > 0
    lengths = real.sum(1).tolist()
    packed = PackedTokens.pack(
        torch.tensor(inputs["input_ids"][real]),
        torch.tensor(inputs["token_type_ids"][real]),
        torch.cat([torch.arange(length) for length in lengths]),
        lengths,
    )
    with torch.no_grad():
        return loaded.model.encode(packed).numpy()


# --- the vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_the_vectors_are_the_encoders(written, lengths):
    loaded, folder = written
    inputs = rectangles(lengths, loaded.model.vocab_size)
    hidden = run_onnx(folder / "model.onnx", inputs)
    assert hidden.shape == (len(lengths), max(lengths), 24) and hidden.dtype == np.float32
    found = hidden[inputs["attention_mask"] > 0]
    np.testing.assert_allclose(found, encode(loaded, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("written", ["published"], indirect=True)
def test_the_vectors_are_those_of_transformers(written, tmp_path):
    loaded, folder = written
    model = BertModel.from_pretrained(export_huggingface(loaded.folder, tmp_path / "out")).eval()
    for lengths in BATCHES:
        inputs = rectangles(lengths, loaded.model.vocab_size)
        with torch.no_grad():
            theirs = model(**{name: torch.tensor(values) for name, values in inputs.items()})
        real = inputs["attention_mask"] > 0
        found = run_onnx(folder / "model.onnx", inputs)[real]
        np.testing.assert_allclose(found, theirs.last_hidden_state.numpy()[real], atol=1e-4)


def test_what_stands_at_padding_is_not_seen(written):
    loaded, folder = written
    one = rectangles([9, 4], loaded.model.vocab_size)
    two = {name: values.copy() for name, values in one.items()}
    two["input_ids"][1, 4:] += 1
    two["input_ids"] %= loaded.model.vocab_size
    real = one["attention_mask"] > 0
    first, second = (run_onnx(folder / "model.onnx", inputs) for inputs in (one, two))
    np.testing.assert_array_equal(first[real], second[real])
    assert np.abs(first - second).max() > 0.1  # or the test would tell nothing
    one["attention_mask"][1] = 0
    assert np.isfinite(run_onnx(folder / "model.onnx", one)).all()


def test_a_process_that_has_onnxruntime_alone(written, tmp_path):
    loaded, folder = written
    inputs = rectangles([11, 5], loaded.model.vocab_size)
    np.savez(tmp_path / "inputs.npz", **inputs)
    program = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(["last_hidden_state"], dict(numpy.load(sys.argv[2])))[0])
assert not {"torch", "onnx", "onnxscript", "bertmill"} & set(sys.modules)
"""
    names = [folder / "model.onnx", tmp_path / "inputs.npz", tmp_path / "hidden.npy"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *names], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = np.load(names[2])[inputs["attention_mask"] > 0]
    np.testing.assert_allclose(found, encode(loaded, inputs), rtol=0, atol=1e-5)


# --- heads ---------------------------------------------------------------------------------------


@pytest.fixture(
    params=["classification", "words", pytest.param("regression", marks=pytest.mark.slow)]
)
def tuned(request, save_random_model, tmp_path):
    """A model with the random head of a task."""
    loaded = save_random_model(tmp_path / "model", SHAPES["published"])
    labels = () if request.param == "regression" else ("no", "yes", "perhaps")
    model = TaskModel(loaded.model, Task(request.param, labels)).eval()
    for parameter in model.task_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    (tmp_path / "tuned").mkdir()
    save_model(tmp_path / "tuned", model, loaded.tokenizer, None)
    return load_model(tmp_path / "tuned")


def logits_of(folder, inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "logits"]
    return session.run(["logits"], inputs)[0]


def test_8_bits_of_a_fine_tuned_model_need_no_text(tuned, tmp_path):
    onnx.export_onnx(tuned.folder, tmp_path / "out", True, [], [], print)
    report = json.loads((tmp_path / "out" / "onnx.json").read_text("utf-8"))
    names = ["largest_difference", *(f"largest_difference_of_{n}logits" for n in ("", "int8_"))]
    assert list(report) == names and 1e-4 < report[names[-1]] < 2.0


def test_the_head_of_a_task(tuned, tmp_path):
    differences = write_onnx(tmp_path, tuned)
    assert (
        differences.keys() == {"last_hidden_state", "logits"} and max(differences.values()) < 1e-4
    )
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    kind = "Token" if tuned.task_model.task.kind == "words" else "Sequence"
    assert config["architectures"] == [f"BertFor{kind}Classification"]
    assert tuple(config["id2label"].values()) == (tuned.task_model.task.labels or ("LABEL_0",))
    theirs = getattr(transformers, f"BertFor{kind}Classification").from_pretrained(tuned.folder)
    for lengths in BATCHES:
        inputs = rectangles(lengths, tuned.model.vocab_size)
        with torch.no_grad():
            expected = theirs.eval()(**{k: torch.tensor(v) for k, v in inputs.items()}).logits
        found = logits_of(tmp_path, inputs)
        real = inputs["attention_mask"] > 0 if kind == "Token" else ...
        np.testing.assert_allclose(found[real], expected.numpy()[real], atol=1e-4)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_masked_token_head(tied, save_random_model, tmp_path):
    section = ModelSection(**SIZES, tie_word_embeddings=tied)
    loaded = save_random_model(tmp_path / "model", section)
    differences = write_onnx(tmp_path, loaded, masked_tokens=True)
    assert differences.keys() == {"last_hidden_state", "logits"}
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["BertForMaskedLM"]
    inputs = rectangles([9, 4], loaded.model.vocab_size)
    with torch.no_grad():
        expected = loaded.model.masked_token_logits(torch.tensor(encode(loaded, inputs))).numpy()
    found = logits_of(tmp_path, inputs)[inputs["attention_mask"] > 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_embeddings_of_a_tied_head_are_there_once(tmp_path):
    section = ModelSection(**SIZES | {"hidden_size": 128, "num_attention_heads": 2})
    model = PretrainingModel(section, 4000).eval()
    whole = onnx._WithHead(bert.PaddedBert(model.encoder), model)
    onnx._write_file(tmp_path / "model.onnx", whole, ["last_hidden_state", "logits"])
    num_bytes = 4 * sum(parameter.numel() for parameter in whole.parameters())
    assert (tmp_path / "model.onnx").stat().st_size < num_bytes + 4 * 4000 * 128 // 2


@pytest.mark.parametrize("tuned", ["classification"], indirect=True)
def test_a_head_that_computes_something_else(tuned, tmp_path, monkeypatch):
    forward = onnx._WithHead.forward

    def another(self, input_ids, attention_mask, token_type_ids):
        hidden, logits = forward(self, input_ids, attention_mask, token_type_ids)
        return hidden, logits * 1.01

    monkeypatch.setattr(onnx._WithHead, "forward", another)
    with pytest.raises(ModelError, match=r"other logits, by .* \(limit .*\); install"):
        write_onnx(tmp_path, tuned)


# --- the folder ----------------------------------------------------------------------------------


def test_names_and_shapes(written):
    session = onnxruntime.InferenceSession(written[1] / "model.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        (name, "tensor(int64)", ["batch", "length"]) for name in names
    ]
    (output,) = session.get_outputs()
    assert (output.name, output.type) == ("last_hidden_state", "tensor(float)")
    assert output.shape == ["batch", "length", 24]


def test_what_is_in_the_folder(written):
    loaded, folder = written
    files = ["config.json", "model.int8.onnx", "model.onnx", "tokenizer.json"]
    files += ["tokenizer_config.json", "vocab.txt"] + ["bertmill.json"] * bool(loaded.about)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for name in set(files) & {"bertmill.json", "tokenizer.json", "vocab.txt"}:
        assert (folder / name).read_bytes() == (loaded.folder / name).read_bytes()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kind = "Bertmill" if loaded.model.section.norm == "pre" else "Bert"
    assert config["architectures"] == [f"{kind}Model"]


def test_the_tokenizer_opens_in_transformers(written):
    loaded, folder = written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The river crosses", "two horses in year 7.", return_tensors="np")
    ids = [loaded.tokenizer.cls_id, *loaded.tokenizer.encode_words("The river crosses")[0]]
    ids += [loaded.tokenizer.sep_id, *loaded.tokenizer.encode_words("two horses in year 7.")[0]]
    assert inputs["input_ids"].tolist() == [[*ids, loaded.tokenizer.sep_id]]
    hidden = run_onnx(folder / "model.onnx", dict(inputs))
    found, expected = hidden[0], encode(loaded, dict(inputs))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "written", ["quick", pytest.param("published", marks=pytest.mark.slow)], indirect=True
)
def test_the_same_bytes_again_and_nothing_about_this_machine(written, tmp_path):
    loaded, folder = written
    write_onnx(tmp_path, loaded)
    content = (folder / "model.onnx").read_bytes()
    assert (tmp_path / "model.onnx").read_bytes() == content
    assert b".py" not in content and str(Path.cwd()).encode() not in content


# --- weights of 8 bits ---------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_of_8_bits(save_random_model, tmp_path):
    wide = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
    loaded = save_random_model(tmp_path / "model", ModelSection(**SIZES | wide))
    write_onnx(tmp_path, loaded)
    assert write_int8(tmp_path) == tmp_path / "model.int8.onnx"
    sizes = [(tmp_path / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < 0.29 * sizes[1]
    inputs = rectangles([LONGEST, 19, 3], loaded.model.vocab_size)
    real, expected = inputs["attention_mask"] > 0, encode(loaded, inputs)
    found = run_onnx(tmp_path / "model.int8.onnx", inputs)[real]
    error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    assert 1e-4 < error < LARGEST_ERROR


# --- what is said and refused --------------------------------------------------------------------


def test_nothing_is_said_and_logging_stays_as_it_was(small_run, tmp_path, capfd, caplog):
    before = (list(logging.getLogger().handlers), logging.root.manager.disable)
    write_onnx(tmp_path, load_model(small_run.folder))
    write_int8(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before


def test_a_file_that_computes_something_else(small_run, tmp_path, monkeypatch):
    """Here: one that looks at padding."""
    attend = bert._PaddedAttention.forward
    monkeypatch.setattr(
        bert._PaddedAttention,
        "forward",
        lambda self, asking, x, bias, *rest: attend(self, asking, x, 0 * bias, *rest),
    )
    with pytest.raises(
        ModelError, match=r"computes other vectors, by .* \(limit 0.0001\); install"
    ):
        write_onnx(tmp_path, load_model(small_run.folder))


def test_vectors_that_are_not_numbers(small_run, tmp_path):
    loaded = load_model(small_run.folder)
    loaded.model.encoder.embeddings.segment.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="other vectors, by nan"):
        write_onnx(tmp_path, loaded)
