import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmill.config import TextSection
from bertmill.text.sentences import split_sentences

PLAIN = TextSection()
SPACED = TextSection(sentences="spaced-period")


def test_abbreviations_do_not_end_a_sentence():
    text = "Dr. Jones paid $3.50 to Mr. Smith. He left! Did she? Yes."
    wanted = ["Dr. Jones paid $3.50 to Mr. Smith.", "He left!", "Did she?", "Yes."]
    assert split_sentences(text, PLAIN) == wanted


def test_sentence_does_not_cross_a_paragraph():
    assert split_sentences("A heading\nOne sentence. Two.", PLAIN) == [
        "A heading",
        "One sentence.",
        "Two.",
    ]


def test_language_sets_the_rules():
    text = "Das kostet z. B. fünf Euro. Er ging."
    assert split_sentences(text, TextSection(language="de")) == [
        "Das kostet z. B. fünf Euro.",
        "Er ging.",
    ]


def test_chinese_full_stop_ends_a_sentence():
    assert len(split_sentences("你好。世界很大。", TextSection(language="zh"))) == 2


@pytest.mark.parametrize("section", [PLAIN, SPACED])
@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n", " \u00a0 \n"])
def test_blank_text_has_no_sentences(text, section):
    assert split_sentences(text, section) == []


@pytest.mark.parametrize("space", [" ", *"\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"])
def test_white_space_that_is_not_ascii_is_white_space(space):
    """Behind a lone capital the segmenter panics at it."""
    sentences = split_sentences(f"Vitamin B{space}. Then{space}it rains.", PLAIN)
    assert sentences == [f"Vitamin B{space}.", f"Then{space}it rains."]


def test_quotes_that_are_never_closed_take_no_longer_than_others():
    """The segmenter alone takes forty seconds for them."""
    text = "“He said so. " * 60_000
    began = time.monotonic()
    sentences = split_sentences(text, PLAIN)
    assert time.monotonic() - began < 8
    assert len(sentences) == 60_000
    assert "".join(sentences).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("length", [5, 40, 1000])
def test_a_long_paragraph_is_split_as_a_short_one(monkeypatch, length):
    text = "Dr. Jones paid $3.50 to Mr. Smith. He left! Did she? " * 40
    wanted = split_sentences(text, PLAIN)
    monkeypatch.setattr("bertmill.text.sentences._LONGEST_STRETCH", length)
    sentences = split_sentences(text, PLAIN)
    assert "".join(sentences).replace(" ", "") == text.replace(" ", "")
    if length > 100:  # more than a sentence
        assert sentences == wanted


@given(st.text(st.sampled_from("aZ .!?\n\t\u00a0é北。😀\x00"), max_size=60))
def test_no_sentence_is_blank_and_no_letter_is_lost(text):
    sentences = split_sentences(text, PLAIN)
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    assert "".join("".join(sentences).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" a b . c d . ", ["a b", "c d ."]),
        ("a b . c d .", ["a b", "c d ."]),
        # The space after the last period is what counts, though it is stripped afterwards.
        ("a b . ", ["a b ."]),
        ("a b .", []),
        ("a b", []),
        (" = heading = ", []),
        ("a. b. c", []),
        (" . a", [". a"]),
        (" . . ", [". ."]),
        ("a . . b", ["a", ". b"]),
        ("caption without period\na . b\nanother", ["a", "b"]),
    ],
)
def test_spaced_period(text, wanted):
    assert split_sentences(text, SPACED) == wanted


@given(st.text(st.sampled_from("ab .\n"), max_size=40))
def test_spaced_period_is_the_reference_rule(text):
    wanted = []
    for line in text.split("\n"):
        if len(line.split(" . ")) >= 2:
            wanted += [part.strip() for part in line.strip().split(" . ")]
    assert split_sentences(text, SPACED) == [part for part in wanted if part]
