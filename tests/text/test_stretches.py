import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

import bertmill.text.stretches as stretches
from bertmill.config import TokenizerSection
from bertmill.errors import CorpusError
from bertmill.text.tokenizer import Tokenizer
from bertmill.text.vocabulary import train_tokenizer
from small import examples, some

TEXTS = [
    "The farmer crosses the valley, and the farmer's horses follow the winter rain (slowly).",
    "Café Zürich: 北京 and 東京 -- cranes are cranes 😀. Nobody's old bridge; 12/24!",
    "İstanbul ß ﬁnd ΣΟΦΟΣ ½ [MASK] [UNK] ## a##b",
]
KINDS = {
    "uncased": {},
    "cased": {"lowercase": False, "strip_accents": False},
    "lower-case, accents kept": {"strip_accents": False},
    "words": {"kind": "word"},
    "cased words": {"kind": "word", "lowercase": False},
}
PIECES = [
    *(chr(code) for code in range(0xA1)),  # every control character, U+001C and U+0085 too
    *"\xad\u0300\u0301\u0315\u0327\u0345\u05b0\u0660\u0903\u0e33\u1680\u180e\u200b\u200d\u202e",
    *"\u2000\u2009\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd\uffff\ue000\u037e\u1fef\u212b",
    *"ΣσςİıßŉǅẞÅéẛﬁ①²½Ⅷ々一北🇨😀👩\U0001d15e\U0001d16e\U00020000\U000e0041\U0010ffff",
    *"ㄱ가각\u1100\u1161ไำहि्",
    *("[MASK]", "[UNK]", "[CLS]", "[PAD]", "[SEP]", "##", "the", "farmer", "crane", "ing"),
    *(" ", "  ", "\n", " \n ", "\r\n", "\t", " \0 ", "a" * 101, "q" * 99, "e\u0301", "'s", "..."),
]


def tokenizer(**kind) -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerSection(vocab_size=150, min_frequency=1, **kind))


def reference(made: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Encode with the library's own `encode_batch`; spelled-out special tokens are unknown."""
    names = {made.pad_id, made.cls_id, made.sep_id, made.mask_id}
    encodings = made.backend.encode_batch(texts, add_special_tokens=False)
    return [[made.unk_id if i in names else i for i in encoding.ids] for encoding in encodings]


def assert_equal(made: Tokenizer, texts: list[str]) -> None:
    ids, lengths = made.encode_batch(texts)
    wanted = reference(made, texts)
    assert lengths.tolist() == [len(one) for one in wanted]
    assert ids.tolist() == [i for one in wanted for i in one]


@pytest.fixture(scope="module", params=KINDS)
def made(request) -> Tokenizer:
    made = tokenizer(**KINDS[request.param])
    assert made._encoder._marks is not None
    return made


# The same tokenizer for all examples: a cache that one text fills must not change another.
@examples(300)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), max_size=6))
def test_hostile_pieces(made, texts):
    assert_equal(made, texts)


@examples(300)
@given(texts=st.lists(st.text(max_size=20), max_size=6))
def test_any_characters(made, texts):
    assert_equal(made, texts)


def test_every_assigned_character(made):
    """Each between letters, alone, and with a combining mark after a blank."""
    codes = (chr(code) for code in range(sys.maxunicode + 1))
    assigned = [c for c in codes if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    assert len(assigned) > 100_000
    shown = [f"a{c}b {c} \u0301{c}\u0327" for c in some(assigned)]
    assert_equal(made, [" ".join(shown[i : i + 50]) for i in range(0, len(shown), 50)])


@pytest.mark.parametrize("character", ["\x1c", "\x85", "\x00", "\u2028", "\u00a0", "\x0b"])
def test_blanks_of_others_are_the_library_s_business(made, character):
    assert_equal(made, [f"the{character}farmer {character} {character}", character])


@pytest.mark.parametrize("text", ["a" * 200_000, "北" * 20_000, "a." * 50_000, " " * 100_000])
def test_long_texts(made, text):
    assert_equal(made, [text, "the farmer", text + "b"])


def test_more_than_one_group_of_texts(made, monkeypatch):
    monkeypatch.setattr(stretches, "_CHARACTERS_AT_ONCE", 500)
    assert_equal(made, TEXTS * 10)


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["\n"], [" "], ["", "a", ""]])
def test_little_text(made, texts):
    assert_equal(made, texts)


# --- memory --------------------------------------------------------------------------------------


def remembered_bytes(cache: stretches.TextEncoder) -> int:
    pieces = cache._pieces
    return sys.getsizeof(pieces) + sum(
        sys.getsizeof(part) for entry in pieces.items() for part in entry
    )


def test_what_is_remembered_stays_below_the_cap(monkeypatch):
    monkeypatch.setattr(stretches, "_CACHE_BYTES", 100_000)
    made = tokenizer()
    sizes = []
    for i in range(60):
        assert_equal(made, [" ".join(f"w{i}x{j} é{i}y{j}" for j in range(30))])
        # The entries that are there from the start are not counted.
        assert 0 <= remembered_bytes(made._encoder) - made._encoder.num_bytes < 300
        sizes.append(made._encoder.num_bytes)
    assert 50_000 < max(sizes) <= 100_000
    assert sum(b < a for a, b in pairwise(sizes)) >= 2  # forgotten, and again


def test_a_stretch_is_encoded_once(monkeypatch):
    made = tokenizer()
    seen: list[str] = []
    encode_whole = made._encoder._encode_whole

    def count(texts):
        seen.extend(texts)
        return encode_whole(texts)

    monkeypatch.setattr(made._encoder, "_encode_whole", count)
    for _ in range(3):
        assert_equal(made, ["Zürich, Zürich (Zürich) the Zürich."])
    assert sorted(seen) == sorted({*seen, "Zürich"})


def test_threads_may_share_it(monkeypatch):
    monkeypatch.setattr(stretches, "_CACHE_BYTES", 20_000)  # forgotten under one another's hands
    made = tokenizer()
    batches = [[f"the w{i} é{i % 7}, crane{j}" for j in range(40)] for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(made.encode_batch, batches))
    for batch, (ids, _) in zip(batches, results, strict=True):
        assert ids.tolist() == [i for one in reference(made, batch) for i in one]


# --- tokenizers of others ------------------------------------------------------------------------


def foreign(change) -> Tokenizer:
    made = tokenizer()
    backend = tokenizers.Tokenizer.from_str(made.backend.to_str())
    change(backend)
    return Tokenizer(backend, made.special_tokens)


FOREIGN = {
    "added token with a blank": lambda b: b.add_tokens(["the farmer"]),
    "added token inside words": lambda b: b.add_tokens(["ran"]),
    "another normalizer": lambda b: setattr(
        b, "normalizer", normalizers.Replace(" farmer", "crane")
    ),
    "another splitter": lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Metaspace()),
    "no splitter": lambda b: setattr(b, "pre_tokenizer", None),
    "split elsewhere": lambda b: setattr(
        b, "pre_tokenizer", pre_tokenizers.Split(tokenizers.Regex("e f"), "isolated")
    ),
    "another model": lambda b: setattr(
        b, "model", models.Unigram([(t, -1.0) for t in (*b.get_vocab(), "a b")], 1)
    ),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_unknown_kinds_are_left_to_the_library(change):
    made = foreign(change)
    assert made._encoder._marks is None
    assert_equal(made, [*TEXTS, "the farmer crosses the farmer crane", ""])


NEARLY_OURS = {
    "special token": lambda b: b.add_special_tokens(["[the farmer]"]),
    "no normalizer": lambda b: setattr(b, "normalizer", None),
    "control characters kept": lambda b: setattr(
        b, "normalizer", normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False)
    ),
    "frame that says a text twice": lambda b: setattr(
        b, "post_processor", processors.TemplateProcessing("$A $A", "$A $B", [])
    ),
}


@pytest.mark.parametrize("change", NEARLY_OURS.values(), ids=NEARLY_OURS)
def test_known_kinds_of_others(change):
    made = foreign(change)
    assert made._encoder._marks is not None
    assert_equal(made, [*TEXTS, *PIECES, "".join(PIECES), " ".join(PIECES), "[the farmer]"])


def test_a_panic_of_the_library_is_an_error_of_the_text():
    class PanicException(BaseException):
        pass

    named = r"makes the tokenizer panic \(index out of bounds\)"
    with pytest.raises(CorpusError, match=named), stretches._library_errors():
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), stretches._library_errors():
        raise KeyboardInterrupt
