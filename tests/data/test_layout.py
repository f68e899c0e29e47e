"""The layout of sequences and the cut of pairs, each against a list at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmill.data.layout import interleave, lay_out, spans, truncate

CLS, SEP = 1, 2
TEXTS = st.lists(st.lists(st.integers(5, 99), max_size=6), max_size=6)


def lengths_of(texts):
    return np.array([len(text) for text in texts], np.int64)


def flat(texts):
    return np.array([i for text in texts for i in text], np.int64)


@given(TEXTS, st.data())
def test_sequences_are_framed(firsts, data):
    seconds = data.draw(
        st.none()
        | st.lists(st.lists(st.integers(5, 99)), min_size=len(firsts), max_size=len(firsts))
    )
    if seconds is None:
        text_ids, b_lengths = flat(firsts), None
        wanted = [[CLS, *a, SEP] for a in firsts]
        segments = [[0] * len(ids) for ids in wanted]
    else:
        text_ids = flat([part for pair in zip(firsts, seconds, strict=True) for part in pair])
        b_lengths = lengths_of(seconds)
        pairs = list(zip(firsts, seconds, strict=True))
        wanted = [[CLS, *a, SEP, *b, SEP] for a, b in pairs]
        segments = [[0] * (len(a) + 2) + [1] * (len(b) + 1) for a, b in pairs]
    made = lay_out(text_ids, lengths_of(firsts), b_lengths, CLS, SEP)
    assert made.token_ids.tolist() == flat(wanted).tolist()
    assert made.segment_ids.tolist() == flat(segments).tolist()
    assert made.position_ids.tolist() == [i for ids in wanted for i in range(len(ids))]
    assert made.starts.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()
    assert made.is_text.tolist() == [i not in (CLS, SEP) for i in flat(wanted)]
    assert {values.dtype for values in made[:4]} == {np.dtype(np.int64)}


def shorten(a, b, room, odd_to_a):
    """A token at a time from the longer text."""
    while a + b > room:
        if a > b or (a == b and not odd_to_a):
            a -= 1
        else:
            b -= 1
    return a, b


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_the_longer_text_is_cut_first(a, b, room, odd_to_a):
    kept = truncate(np.array([a]), np.array([b]), room, odd_to_a)
    assert tuple(int(n[0]) for n in kept) == shorten(a, b, room, odd_to_a)


@pytest.mark.parametrize(("a", "b", "wanted"), [(7, 4, (3, 2)), (4, 7, (2, 3)), (7, 7, (2, 3))])
def test_the_odd_token_may_go_to_the_longer_text(a, b, wanted):
    a_lengths, b_lengths = np.array([a]), np.array([b])
    kept = truncate(a_lengths, b_lengths, 5, a_lengths > b_lengths)
    assert tuple(int(n[0]) for n in kept) == wanted


def test_places_of_ranges():
    assert spans(np.array([5, 0]), np.array([2, 3])).tolist() == [5, 6, 0, 1, 2]
    assert spans(np.array([], np.int64), np.array([], np.int64)).tolist() == []
    assert interleave(np.array([1, 2]), np.array([7, 8])).tolist() == [1, 7, 2, 8]
