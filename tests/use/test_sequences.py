"""Texts as packed batches, against the tokenizer of transformers and slow loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertmill.config import ModelSection, TokenizerSection
from bertmill.errors import InputError
from bertmill.text.vocabulary import train_tokenizer
from bertmill.use.sequences import (
    Sequences,
    make_sequences,
    refuse_non_text,
    refuse_too_long,
)

CPU = torch.device("cpu")
TEXT = "the river crosses my valley and two horses follow every farmer home again"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, and the letters for pieces of others."""
    return train_tokenizer([TEXT] * 2, TokenizerSection(vocab_size=200))


@pytest.fixture(scope="module")
def oracle(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def some_words(count: int, shift: int) -> str:
    return " ".join(WORDS[(i + shift) % len(WORDS)] for i in range(count))


def rows_of(sequences: Sequences, values) -> list[list[int]]:
    return [row.tolist() for row in np.split(values, sequences.starts[1:-1])]


# --- make_sequences ------------------------------------------------------------------------------


def check_against(oracle, tokenizer, first, second, max_length):
    texts = (first,) if second is None else (first, second)
    wanted = oracle(*texts, truncation="longest_first", max_length=max_length)
    whole = oracle(*texts)["input_ids"]
    made = make_sequences(tokenizer, first, second, max_length)
    assert rows_of(made, made.token_ids) == wanted["input_ids"]
    assert rows_of(made, made.segment_ids) == wanted["token_type_ids"]
    assert made.num_cut == sum(len(ids) > max_length for ids in whole)
    assert made.lengths.tolist() == [len(ids) for ids in wanted["input_ids"]]
    assert len(made) == len(first)
    return made


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 7, 10, 11, 16, 17, 40])
def test_pairs_are_cut_as_by_transformers(tokenizer, oracle, max_length):
    sizes = [(a, b) for a in range(14) for b in range(14)]
    first = [some_words(a, 0) for a, _ in sizes]
    second = [some_words(b, 5) for _, b in sizes]
    assert tokenizer.encode_batch([some_words(13, 0)])[1].tolist() == [13]
    made = check_against(oracle, tokenizer, first, second, max_length)
    assert (made.num_cut > 0) == (max_length < 29)


@pytest.mark.parametrize("max_length", [2, 3, 4, 9, 40])
def test_texts_are_cut_as_by_transformers(tokenizer, oracle, max_length):
    check_against(oracle, tokenizer, [some_words(n, n) for n in range(14)], None, max_length)


@given(
    st.lists(st.tuples(st.text(), st.text(), st.integers(0, 30)), min_size=1), st.integers(3, 40)
)
def test_any_text_is_cut_as_by_transformers(tokenizer, oracle, texts, max_length):
    names = str.maketrans("[]", "()")  # theirs takes the name of a special token for the token
    first = [f"{one} {some_words(n, 2)}".translate(names) for one, _, n in texts]
    second = [other.translate(names) for _, other, _ in texts]
    check_against(oracle, tokenizer, first, second, max_length)
    check_against(oracle, tokenizer, first, None, max_length)


@pytest.mark.parametrize("second", [None, []])
def test_no_texts(tokenizer, second):
    made = make_sequences(tokenizer, [], second, 8)
    assert (len(made), made.num_cut, made.token_ids.tolist()) == (0, 0, [])


@pytest.mark.parametrize("text", [3, None, b"bytes", ["the"]])
def test_what_is_not_text_is_refused(tokenizer, text):
    for first, second in [(["the", text], None), (["the", "a"], ["a", text])]:
        with pytest.raises(InputError, match="is not text; give a string or a list"):
            make_sequences(tokenizer, first, second, 8)
    with pytest.raises(InputError, match="is not text"):
        refuse_non_text(text)


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(InputError, match="lone surrogate"):
        make_sequences(tokenizer, ["the", "a\ud800"], None, 8)


def test_too_long_is_longer_than_the_positions():
    section = ModelSection(max_position_embeddings=40)
    refuse_too_long(40, section)
    with pytest.raises(InputError, match="has 41 tokens, but the model takes 40"):
        refuse_too_long(41, section)


# --- packing -------------------------------------------------------------------------------------


def check_packed(packed, token_ids, segment_ids):
    assert packed.token_ids.tolist() == [i for ids in token_ids for i in ids]
    assert packed.segment_ids.tolist() == [i for ids in segment_ids for i in ids]
    assert packed.position_ids.tolist() == [i for ids in token_ids for i in range(len(ids))]
    assert list(packed.lengths) == [len(ids) for ids in token_ids]
    assert {values.dtype for values in packed[:3]} == {torch.int64}


@pytest.mark.parametrize("rows", [[2], [0, 1, 2, 3, 4], [4, 0, 3], [1, 1, 2]])
def test_pack_takes_rows_in_their_order(tokenizer, oracle, rows):
    first, second = (
        [some_words(n, n) for n in (3, 0, 7, 1, 3)],
        [some_words(n, 3) for n in range(5)],
    )
    packed = make_sequences(tokenizer, first, second, 40).pack(np.array(rows), CPU)
    wanted = oracle([first[row] for row in rows], [second[row] for row in rows])
    check_packed(packed, wanted["input_ids"], wanted["token_type_ids"])
