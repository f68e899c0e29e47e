"""Pseudo-log-likelihoods, against a loop that masks one token at a time in transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

import bertmill
from bertmill.config import TokenizerSection
from bertmill.errors import InputError, ModelError
from bertmill.text.vocabulary import train_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

TEXT = "the river crosses the valley and my sister follows two horses in the old world"
TEXTS = [
    "the river crosses the valley",
    "river",
    "",
    "rivers crossed everything",
    "unfollowable horses, ridden; sisterly",
    "my sister follows two horses in the old world",
    "my sister follows two horses in the old worlds",
    "🦢 the 東 river",
    "s s s s s",
    " ".join(["the riverside"] * 10),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A network with large random weights: whatever is masked matters. And its folder."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = train_tokenizer([TEXT] * 2, TokenizerSection(vocab_size=90))
    tokenizer.save(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=tokenizer.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    network = BertForMaskedLM(config).eval()
    network.save_pretrained(folder)
    return network, AutoTokenizer.from_pretrained(folder), folder


@pytest.fixture(scope="module")
def ours(theirs):
    return bertmill.load(theirs[2])


@torch.inference_mode()
def slow_score(theirs, text: str, mask_rest_of_word: bool) -> float:
    """Salazar et al. 2020; with the rest of the word masked, Kauf and Ivanova 2023's l2r rule."""
    network, tokenizer, _ = theirs
    encoded = tokenizer(text)
    ids, words = encoded["input_ids"], encoded.word_ids()
    total = 0.0
    for at in range(1, len(ids) - 1):
        masked = list(ids)
        masked[at] = tokenizer.mask_token_id
        for later in range(at + 1, len(ids) - 1):
            if mask_rest_of_word and words[later] == words[at]:
                masked[later] = tokenizer.mask_token_id
        logits = network(input_ids=torch.tensor([masked])).logits[0, at]
        total += logits.log_softmax(-1)[ids[at]].item()
    return total


@pytest.mark.parametrize("mask_rest_of_word", [False, True])
def test_scores_are_those_of_a_slow_loop(ours, theirs, mask_rest_of_word):
    got = ours.score(TEXTS, mask_rest_of_word=mask_rest_of_word)
    wanted = [slow_score(theirs, text, mask_rest_of_word) for text in TEXTS]
    assert got.shape == (len(TEXTS),) and got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_the_rest_of_the_word_matters_where_there_is_one(ours):
    alone, together = ours.score(TEXTS), ours.score(TEXTS, mask_rest_of_word=True)
    differ = np.abs(alone - together) > 0.1
    pieces = [ours.tokenizer.encode_words(text)[1] for text in TEXTS]
    assert differ.tolist() == [len(set(words)) < len(words) for words in pieces]
    assert 2 < differ.sum() < len(TEXTS) - 2


@pytest.mark.parametrize("mask_rest_of_word", [False, True])
def test_equal_texts_have_equal_scores(ours, mask_rest_of_word):
    """To the bit, wherever in the list they stand; across lists, but for rounding."""
    once = ours.score(TEXTS, mask_rest_of_word=mask_rest_of_word)
    many = [*range(len(TEXTS))] * 4
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(many)
        got = ours.score([TEXTS[i] for i in order], mask_rest_of_word=mask_rest_of_word)
        for i in range(len(TEXTS)):
            assert len(set(got[order == i])) == 1
        np.testing.assert_allclose(got, once[order], rtol=0, atol=1e-5)


def test_equal_texts_are_computed_once_and_without_padding(ours, theirs):
    """A copy of a text for each of its tokens; in another batch the last bits might differ."""
    lengths = [len(ids) for ids in theirs[1](TEXTS)["input_ids"]]
    rows = []
    norm = ours.model.encoder.embeddings.norm
    hook = norm.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    ours.score(TEXTS * 3)
    hook.remove()
    assert sum(rows) == sum(length * (length - 2) for length in lengths)


def test_texts_that_are_read_alike_have_equal_scores(ours):
    one, *others = ours.score(
        ["the river", "The  River\n", "river", "THE RIVER", "\x00the\u200b river"]
    )
    assert others[0] == others[2] == others[3] == one != others[1]


def test_scores_are_those_of_one_thread(ours):
    texts = [f"{text} {i}" for i in range(12) for text in TEXTS]  # several batches
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = ours.score(texts)
        torch.set_num_threads(2)
        np.testing.assert_allclose(ours.score(texts), wanted, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_nothing_scores_0(ours):
    assert ours.score("") == 0
    assert ours.score(["", " \n", "\u200b"]).tolist() == [0, 0, 0]
    assert ours.score([]).shape == (0,)
    assert ours.score(["", "river"])[1] == ours.score("river") < 0


def test_one_text_has_one_score(ours):
    score = ours.score("the river")
    assert score.shape == () and score.dtype == np.float64
    assert score == ours.score(["the river"])[0]


def test_the_name_of_the_mask_is_plain_text(ours):
    assert ours.score("the [MASK]") < ours.score("the") < 0


def test_a_text_that_is_too_long(ours):
    assert np.isfinite(ours.score(" ".join(["the"] * 62)))
    too_long = " ".join(["the"] * 63)
    with pytest.raises(InputError, match="2 of 3 have more tokens than the model takes, 64"):
        ours.score([too_long, "the", too_long])


@pytest.mark.parametrize("given", [3, None, [3], ["the", None], [b"the"], [["the"]]])
def test_what_is_not_text_is_refused(ours, given):
    with pytest.raises(InputError, match="is not text"):
        ours.score(given)


def test_half_a_character_is_refused(ours):
    with pytest.raises(InputError, match="lone surrogate"):
        ours.score(["a", "\udfff"])


def test_a_folder_without_a_masked_token_head(theirs, tmp_path):
    network, tokenizer, _ = theirs
    BertModel(network.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    headless = bertmill.load(tmp_path)
    assert np.isfinite(headless.embed("the river")).all()
    with pytest.raises(ModelError, match="has no masked-token head; give a folder"):
        headless.score("the river")
