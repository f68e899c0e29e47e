"""A pretrained model in use: vectors, words, fillers."""

import logging

import numpy as np
import pytest

import bertmill
from bertmill.errors import InputError

UNICODE = ["naïve", "東京", "🦢", "e\u0301", "\u200b", "\x00", "ﬁ", "שלום"]


@pytest.fixture(scope="module")
def model(small_run):
    return bertmill.load(small_run.folder)


# --- encode --------------------------------------------------------------------------------------


def test_a_text_becomes_a_row_a_token(model):
    encoding = model.encode("The river crosses the valley")
    assert encoding.vectors.dtype == np.float32
    assert encoding.vectors.shape == (1, len(encoding.tokens), 16)
    assert encoding.tokens[0] == "[CLS]" and encoding.tokens[-1] == "[SEP]"
    assert len(encoding.words) == len(encoding.tokens)
    assert np.isfinite(encoding.vectors).all()


def test_a_list_of_words_maps_each_row_to_its_word(model):
    encoding = model.encode(["crosses", "crossesriver", "the"])
    assert encoding.words[0] is encoding.words[-1] is None
    inner = encoding.words[1:-1]
    assert inner == sorted(inner)
    assert set(inner) == {0, 1, 2}
    assert inner.count(1) > 1  # so that the mean below is one of several rows


def test_word_vector_is_the_mean_of_its_rows(model):
    encoding = model.encode(["crosses", "crossesriver", "the"])
    rows = [i for i, word in enumerate(encoding.words) if word == 1]
    np.testing.assert_allclose(
        encoding.word_vector(1), encoding.vectors[0, rows].mean(0), rtol=0, atol=1e-6
    )
    assert encoding.word_vector(0).shape == (16,)


@pytest.mark.parametrize("word", [-1, 3])
def test_word_vector_of_a_word_that_is_not_there(model, word):
    with pytest.raises(InputError, match="words go from 0 to 2"):
        model.encode(["crosses", "the", "river"]).word_vector(word)


def test_word_vector_without_any_word(model):
    with pytest.raises(InputError) as caught:
        model.encode("").word_vector(0)
    assert "0 to -1" not in str(caught.value)


def test_words_of_a_text_are_those_that_the_tokenizer_splits_it_into(model):
    text, words = model.encode("The river, the valley"), ["The", "river", ",", "the", "valley"]
    listed = model.encode(words)
    assert text.words == listed.words
    assert text.tokens == listed.tokens
    np.testing.assert_array_equal(text.vectors, listed.vectors)


def test_two_segments(model):
    one, two = ["the", "river"], ["my", "sister"]
    encoding = model.encode(one, two)
    tokens = encoding.tokens
    first, second = model.encode(one).tokens, model.encode(two).tokens
    assert tokens == first + second[1:]
    assert encoding.vectors.shape == (1, len(tokens), 16)
    assert {word for word in encoding.words if word is not None} == {0, 1, 2, 3}
    specials = [token in ("[CLS]", "[SEP]") for token in tokens]
    assert [word is None for word in encoding.words] == specials


def test_words_of_two_texts_are_counted_on(model):
    encoding = model.encode("the river", "my sister")
    assert sorted({word for word in encoding.words if word is not None}) == [0, 1, 2, 3]


def test_the_order_of_the_segments_matters(model):
    forward, backward = (
        model.encode("the river", "my sister"),
        model.encode("my sister", "the river"),
    )
    assert not np.allclose(forward.word_vector(0), backward.word_vector(2), atol=1e-4)


def test_the_second_segment_has_its_own_segment_embedding(model):
    apart = model.encode(["the", "river"], ["the", "river"])
    assert not np.allclose(apart.word_vector(0), apart.word_vector(2), atol=1e-4)


def test_an_empty_second_segment_is_a_segment(model):
    assert model.encode("the river", "").tokens[-2:] == ["[SEP]", "[SEP]"]
    assert model.encode("the river").tokens[-2:] != ["[SEP]", "[SEP]"]


def test_vectors_depend_on_the_context(model):
    one, other = model.encode(["the", "river"]), model.encode(["my", "river"])
    assert not np.array_equal(one.word_vector(1), other.word_vector(1))


def test_dropout_is_off(model, small_run):
    assert small_run.recipe.model.hidden_dropout_prob == 0.1
    first, again = model.encode("the river"), model.encode("the river")
    np.testing.assert_array_equal(first.vectors, again.vectors)


def test_run_folder_and_model_folder_are_the_same_model(model, small_run):
    other = bertmill.load(small_run.folder / "model")
    np.testing.assert_array_equal(
        model.encode("the river").vectors, other.encode("the river").vectors
    )
    assert other.new_weights == ()


@pytest.mark.parametrize("nothing", ["", "  \n", [], [""], ["", " "]])
def test_nothing_has_the_two_special_rows(model, nothing):
    encoding = model.encode(nothing)
    assert encoding.vectors.shape == (1, 2, 16)
    assert encoding.tokens == ["[CLS]", "[SEP]"]
    assert encoding.words == [None, None]


@pytest.mark.parametrize("text", UNICODE)
def test_unicode(model, text):
    for given in (text, [text], f"the {text} river"):
        encoding = model.encode(given)
        assert np.isfinite(encoding.vectors).all()
        assert encoding.vectors.shape[1] == len(encoding.tokens) == len(encoding.words)


@pytest.mark.parametrize("given", [3, None, b"bytes", ["the", 3], ["the", None], [["the"]]])
def test_what_is_not_text_is_refused(model, given):
    with pytest.raises(InputError, match="is not text; give a string or a list"):
        model.encode(given)


@pytest.mark.parametrize("given", ["a \ud800 b", ["a", "\udfff"]])
def test_half_a_character_is_refused(model, given):
    with pytest.raises(InputError, match="lone surrogate"):
        model.encode(given)
    with pytest.raises(InputError, match="lone surrogate"):
        model.encode("the river", given)


@pytest.mark.parametrize("name", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
def test_names_of_special_tokens_are_plain_text(model, name):
    for given in (f"the {name} river", ["the", name, "river"]):
        inner = model.encode(given).tokens[1:-1]
        assert name not in inner
        assert len(inner) > 2


def test_as_many_tokens_as_positions_fit(model):
    full = model.encode(["river"] * 100).vectors.shape[1]
    pieces = (full - 2) // 100
    assert model.encode(["river"] * (510 // pieces)).vectors.shape[1] <= 512
    with pytest.raises(InputError, match=r"text: has \d+ tokens, but the model takes 512"):
        model.encode(["river"] * (510 // pieces + 1))


def test_vectors_equal_those_of_transformers(model, small_run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    # It reports the heads that a bare encoder leaves unused; that is no concern of this test.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    theirs = transformers.BertModel.from_pretrained(small_run.folder / "model").eval()
    one, two = "The river crosses the valley.", "My sister feeds two horses."
    ours = model.encode(one, two)
    ids = torch.tensor([[model.tokenizer.backend.token_to_id(token) for token in ours.tokens]])
    first = ours.tokens.index("[SEP]") + 1
    segments = (torch.arange(ids.shape[1]) >= first).long()[None]
    with torch.inference_mode():
        hidden = theirs(input_ids=ids, token_type_ids=segments).last_hidden_state.numpy()
    np.testing.assert_allclose(ours.vectors, hidden, rtol=0, atol=1e-5)


def test_transformers_tokenizer_makes_the_same_ids(model, small_run):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(small_run.folder / "model")
    one, two = "The river crosses the valley.", "My sister feeds two horses."
    made = theirs(one, two)
    assert theirs.convert_ids_to_tokens(made["input_ids"]) == model.encode(one, two).tokens


# --- fill_mask -----------------------------------------------------------------------------------


def test_one_mask(model):
    (fillers,) = model.fill_mask("the [MASK] crosses the valley")
    assert len(fillers) == 5
    probabilities = [filler.probability for filler in fillers]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    assert all(model.tokenizer.backend.token_to_id(filler.token) is not None for filler in fillers)


def test_several_masks_in_the_order_of_the_text(model):
    masks = model.fill_mask("[MASK] river crosses [MASK][MASK]", top=3)
    assert [len(mask) for mask in masks] == [3, 3, 3]
    # The same place in the same text has the same proposals; other places have others.
    assert masks == model.fill_mask("[MASK] river crosses [MASK] [MASK]", top=3)
    assert masks[0] != masks[1] != masks[2]


def test_all_proposals_add_up_to_one(model):
    (fillers,) = model.fill_mask("the [MASK]", top=model.tokenizer.size)
    assert sum(filler.probability for filler in fillers) == pytest.approx(1, abs=1e-4)
    assert len({filler.token for filler in fillers}) == model.tokenizer.size


@pytest.mark.parametrize("top", [0, -1, 10**6])
def test_top_is_bounded_by_the_vocabulary(model, top):
    with pytest.raises(InputError, match=f"`top`: is {top}; give 1 to {model.tokenizer.size}"):
        model.fill_mask("the [MASK]", top=top)


@pytest.mark.parametrize("text", ["the river", "", "the [mask]", "the <mask>"])
def test_a_text_without_a_mask_is_refused(model, text):
    with pytest.raises(InputError, match=r"no \[MASK\]; write \[MASK\] where"):
        model.fill_mask(text)


@pytest.mark.parametrize("given", [3, None, ["the", "[MASK]"], b"[MASK]"])
def test_a_mask_in_what_is_not_text_is_refused(model, given):
    with pytest.raises(InputError, match="is not text"):
        model.fill_mask(given)


def test_a_masked_text_that_is_too_long_is_refused(model):
    with pytest.raises(InputError, match="the model takes 512"):
        model.fill_mask("river " * 600 + "[MASK]")


# --- word-level models ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def word_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("word-level")
    lines = [
        f"{who} {what} . {who} {what} again . "
        for who in ("a crane", "a crane driver", "he", "she")
        for what in ("is flying", "came", "just left", "is here")
    ]
    (folder / "corpus.txt").write_text("\n".join(lines), "utf-8")
    run = bertmill.pretrain(
        str(folder / "corpus.txt"),
        "d2l",
        out=folder / "run",
        steps=2,
        settings=[
            "tokenizer.min_frequency=1",
            "text.held_out_fraction=0.2",
            "pairs.max_length=32",
            "model.hidden_size=16",
            "model.intermediate_size=32",
            "train.batch_size=4",
        ],
    )
    return bertmill.load(run.folder)


def test_word_level_rows_are_words(word_model):
    encoding = word_model.encode(["a", "crane", "is", "flying"])
    assert encoding.vectors.shape == (1, 6, 16)
    assert encoding.tokens == ["<cls>", "a", "crane", "is", "flying", "<sep>"]
    assert encoding.words == [None, 0, 1, 2, 3, None]


def test_word_level_pair(word_model):
    encoding = word_model.encode(["a", "crane", "driver", "came"], ["he", "just", "left"])
    assert encoding.vectors.shape == (1, 10, 16)
    assert encoding.tokens[5] == encoding.tokens[9] == "<sep>"
    assert encoding.words == [None, 0, 1, 2, 3, None, 4, 5, 6, None]


def test_word_level_vectors_of_a_word_with_two_meanings_differ(word_model):
    bird = word_model.encode(["a", "crane", "is", "flying"]).word_vector(1)
    machine = word_model.encode(["a", "crane", "driver", "came"]).word_vector(1)
    assert not np.allclose(bird, machine, atol=1e-4)


def test_word_level_mask_has_its_own_name(word_model):
    (fillers,) = word_model.fill_mask("a <mask> is flying", top=2)
    assert len(fillers) == 2
    with pytest.raises(InputError, match="no <mask>"):
        word_model.fill_mask("a [MASK] is flying")


def test_a_word_that_is_not_in_the_vocabulary_is_unknown(word_model):
    assert word_model.encode(["zebra"]).tokens == ["<cls>", "<unk>", "<sep>"]


def test_a_list_item_of_two_words_has_two_rows(word_model):
    assert word_model.encode(["a crane", "left"]).words == [None, 0, 0, 1, None]
