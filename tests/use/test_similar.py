"""Words in context: where a word stands in a text, and which others are like it."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

import bertmill
from bertmill.config import TokenizerSection
from bertmill.errors import InputError
from bertmill.text.tokenizer import Tokenizer, load_tokenizer
from bertmill.use.similar import SimilarWord, cosine, find_word

TEXT = "The river crosses the old river, and rivers follow my sister's riverside."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary of pieces: `river` is one, `rivers` and `riverside` begin with it."""
    folder = tmp_path_factory.mktemp("pieces")
    tokens = [*TokenizerSection().special_tokens, "river", "the", "old", "my", "cross", "cr"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens += ["##oss", "##side", "'", ",", ".", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    load_tokenizer(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def oracle(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(small_run):
    return bertmill.load(small_run.folder)


# --- find_word -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("river", "river"),  # the first of two
        ("RIVER", "river"),
        ("the", "The"),
        ("crosses", "crosses"),
        ("rivers", "rivers"),  # its first piece is a word further ahead
        ("riverside", "riverside"),
        ("old river", "old river"),
        ("river ,AND", "river, and"),
        ("sister's", "sister's"),
        (TEXT, TEXT),
    ],
)
def test_a_word_is_found(tokenizer, oracle, word, spelled):
    """Its tokens are those of its characters, as transformers maps them."""
    start = TEXT.index(spelled)
    encoded = oracle(TEXT, add_special_tokens=False)
    first, last = encoded.char_to_token(start), encoded.char_to_token(start + len(spelled) - 1)
    assert find_word(tokenizer, TEXT, word) == range(first, last + 1)


@pytest.mark.parametrize(
    "word",
    [
        "rive",
        "iver",
        "side",
        "cross",
        "old rive",
        "s riversid",
        "riversi",
        "rivers my",
        "s",
        "old the",
    ],
)
def test_a_part_of_a_word_is_none(tokenizer, word):
    assert find_word(tokenizer, TEXT.replace("'s", ""), word) is None


@pytest.mark.parametrize("word", ["", " ", "\u200b"])
def test_no_word_is_none(tokenizer, word):
    assert find_word(tokenizer, TEXT, word) is None
    assert find_word(tokenizer, "", "river") is None
    assert find_word(tokenizer, "", word) is None


words = st.lists(st.sampled_from(["river", "rivers", "the", "riverside", "cross", "ab", "b", "."]))


@given(words, words.filter(len))
def test_words_among_words(tokenizer, oracle, text, wanted):
    sizes = [len(oracle.tokenize(word)) for word in text]
    starts = [i for i in range(len(text)) if text[i : i + len(wanted)] == wanted]
    place = sum(sizes[: starts[0]]) if starts else 0
    size = sum(len(oracle.tokenize(word)) for word in wanted)
    found = find_word(tokenizer, " ".join(text), " ".join(wanted))
    assert found == (range(place, place + size) if starts else None)


def test_the_end_of_a_word_is_none_where_pieces_have_no_mark():
    names = TokenizerSection().special_tokens
    vocab = {token: i for i, token in enumerate([*names, *"abc"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token=names[1]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert find_word(Tokenizer(backend, names), "cab ab abc", "ab") == range(3, 5)


def test_one_unknown_word_is_not_another(tokenizer):
    """Each is [UNK] to the model: no text can be searched for one of them."""
    for text in ("a 東 river", "東 river 京"):
        with pytest.raises(InputError, match="'京' cannot be written with the model's vocabulary"):
            find_word(tokenizer, text, "京")
    assert find_word(tokenizer, "a 東 river", "river") == range(2, 3)


# --- cosine --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9))
def test_cosine(pairs):
    one, other = np.array(pairs, np.float32).T
    products = (
        one.astype(np.float64) @ other,
        one.astype(np.float64) @ one,
        other.astype(np.float64) @ other,
    )
    got = cosine(one, other)
    if min(products[1:]) > 1e-6:
        assert got == pytest.approx(products[0] / np.sqrt(products[1] * products[2]), abs=1e-5)
    assert cosine(one, one * 0) == cosine(one * 0, one) == 0


# --- similar_words -------------------------------------------------------------------------------

AMONG = [
    "The old bridge crosses the river",
    "rivers",
    "",
    "A farmer's valley, the river remembers.",
]


def test_similar_words_are_all_words_by_their_cosine(model):
    text, word = "my sister watches the river", "river"
    asked = model.encode(text.split()).word_vector(4).astype(np.float64)
    wanted = []
    for other in AMONG:
        encoding = model.encode(other)
        for number in sorted({owner for owner in encoding.words if owner is not None}):
            rows = [i for i, owner in enumerate(encoding.words) if owner == number]
            vector = encoding.vectors[0, rows].astype(np.float64).mean(0)
            share = asked @ vector / np.linalg.norm(asked) / np.linalg.norm(vector)
            name = "".join(encoding.tokens[i].removeprefix("##") for i in rows)
            wanted.append(SimilarWord(name, other, share))
    got = model.similar_words(text, word, AMONG, top=100)
    assert len(got) == len(wanted) == 6 + 1 + 0 + 10
    assert sorted((w.word, w.text) for w in got) == sorted((w.word, w.text) for w in wanted)
    assert [w.cosine for w in got] == sorted((w.cosine for w in got), reverse=True)
    np.testing.assert_allclose(
        [w.cosine for w in got], sorted((w.cosine for w in wanted), reverse=True), atol=1e-6
    )
    for similar in got:
        assert any(
            (w.word, w.text) == (similar.word, similar.text)
            and abs(w.cosine - similar.cosine) < 1e-6
            for w in wanted
        )
    assert {"bridge", "rivers", "remembers"} <= {w.word for w in got}  # joined from their pieces


def test_none_at_all(model):
    with pytest.raises(InputError, match="`top`: is 0"):
        model.similar_words("the river", "river", ["the river"], 0)


def test_top(model):
    every = model.similar_words(AMONG[0], "river", AMONG, top=100)
    assert len(every) == 17
    assert model.similar_words(AMONG[0], "river", AMONG, top=2) == every[:2]
    assert model.similar_words(AMONG[0], "river", AMONG) == every[:10]
    assert model.similar_words(AMONG[0], "river", []) == []


@pytest.mark.parametrize("word", ["river", "crosses", "bridge"])
def test_a_word_is_most_like_itself(model, word):
    best, second, *_ = model.similar_words(AMONG[0], word, AMONG)
    assert (best.word, best.text) == (word, AMONG[0])
    assert best.cosine == pytest.approx(1, abs=1e-6)
    assert second.cosine < 0.9999


def test_the_same_word_beside_other_neighbors(model):
    found = model.similar_words(AMONG[0], "river", AMONG[1:], top=100)
    (other,) = [similar for similar in found if similar.word == "river"]
    assert other.text == AMONG[3] and 0 < other.cosine < 0.9999


def test_the_first_occurrence_counts(model):
    text = "the river follows the farmer"
    encoding = model.encode(text)
    best = model.similar_words(text, "the", [text], top=1)[0]
    assert (best.word, best.cosine) == ("the", pytest.approx(1, abs=1e-6))
    first, other = encoding.word_vector(0), encoding.word_vector(3)
    shares = [s.cosine for s in model.similar_words(text, "the", [text]) if s.word == "the"]
    assert shares == pytest.approx([1, cosine(first, other)], abs=1e-6)
    assert shares[1] < 0.9999


def test_several_words_are_the_mean_of_their_tokens(model):
    text = "my sister watches the river"
    rows = [i for i, owner in enumerate(model.encode(text).words) if owner in (3, 4)]
    mean = model.encode(text).vectors[0, rows].mean(0)
    (found,) = model.similar_words(text, "the river", ["rivers"])
    assert found.cosine == pytest.approx(
        cosine(mean, model.encode("rivers").word_vector(0)), abs=1e-6
    )


@pytest.mark.parametrize("word", ["rive", "valley", "", "river the"])
def test_a_word_that_is_not_in_the_text(model, word):
    with pytest.raises(InputError) as caught:
        model.similar_words("the river", word, AMONG)
    assert str(caught.value) == f"`word`: {word!r} is not in the text 'the river'"


@pytest.mark.parametrize("given", [3, None, b"river", "a\ud800"])
def test_what_is_not_text_is_refused(model, given):
    for arguments in [
        (given, "river", AMONG),
        ("the river", given, AMONG),
        ("the river", "river", [given]),
    ]:
        with pytest.raises(InputError, match=r"is not text|lone surrogate"):
            model.similar_words(*arguments)


def test_a_text_that_is_too_long(model):
    for arguments in [("river " * 600, []), ("river", ["river " * 600])]:
        with pytest.raises(InputError, match="the model takes 512"):
            model.similar_words(arguments[0], "river", arguments[1])
