import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers

from bertmill.config import TokenizerSection
from bertmill.errors import TokenizerError
from bertmill.text.tokenizer import Tokenizer, load_tokenizer
from bertmill.text.vocabulary import train_tokenizer

SPECIAL = TokenizerSection().special_tokens
ENGLISH = [
    "The farmer crosses the valley, and the farmer's horses follow the winter rain.",
    "A grey crane watches the river; the river watches nobody at all!",
    "Nobody crosses the old bridge in winter. The café by the bridge is closed.",
    "In 北京 and in Zürich the cranes are cranes 😀.",
]
HOSTILE = [
    "",
    " ",
    "\t\t \n",
    "the\tfarmer\nthe\rvalley",
    "Café CAFÉ cafe\u0301 naïve Zürich",
    "北京 and 東京mixed北",
    "😀 👩\u200d👩\u200d👧 🇨🇭",
    "\x00\x01\x02",
    "the\x00farmer\u200bthe\ufeffvalley\ufffd",
    "crane" * 60,
    "ﬁnd ß İstanbul \u0131 ŉ ½ ①",
    "don't stop--...!!the.valley",
    "the\u2028valley\u2029\x85\xa0the \x0b\x0c farmer",
    "한국어 हिन्दी ไทย العربية",
    "e\u0301\u0301\u0301",
    "##farmer ## #",
    "\ue000 \U000e0041",
]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_batch([text])[0].tolist()


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    return tokenizer.tokens(range(tokenizer.size))


def random_texts(alphabet: str, seed: int = 5) -> list[str]:
    """Short random words: nearly all counts are tied."""
    draw = random.Random(seed)
    words = ("".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(2000))
    return [" ".join(next(words) for _ in range(20)) for _ in range(100)]


def letters(first: str, count: int) -> str:
    return "".join(chr(ord(first) + i) for i in range(count))


# --- training ------------------------------------------------------------------------------------


def longest_match(word: str, entries: set[str]) -> list[str]:
    """WordPiece as its definition says, slowly."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = (e for e in range(len(word), start, -1) if prefix + word[start:e] in entries)
        if (end := next(ends, None)) is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def test_wordpiece_ids_are_in_canonical_order():
    texts = random_texts(letters("a", 20))
    tokens = vocabulary(train_tokenizer(texts, TokenizerSection(vocab_size=300)))
    counts = Counter(
        piece for text in texts for w in text.split() for piece in longest_match(w, set(tokens))
    )
    assert tuple(tokens[:5]) == SPECIAL
    assert tokens[5:] == sorted(tokens[5:], key=lambda token: (-counts[token], token))
    assert len(set(counts.values())) < len(tokens) / 2  # there were ties to break


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
def test_no_entry_is_empty(kind):
    made = train_tokenizer(ENGLISH, TokenizerSection(kind=kind, min_frequency=1))
    assert "" not in made.backend.get_vocab()


def test_wordpiece_merges_what_is_frequent():
    tokens = vocabulary(train_tokenizer(["banana band bandana"] * 9, TokenizerSection()))
    assert {"banana", "band", "bandana"} <= set(tokens)


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_ids_are_in_canonical_order(lowercase):
    section = TokenizerSection(kind="word", min_frequency=2, lowercase=lowercase)
    texts = ENGLISH + random_texts("abC")
    counts = Counter(w for text in texts for w in (text.lower() if lowercase else text).split())
    kept = sorted((w for w in counts if counts[w] >= 2), key=lambda word: (-counts[word], word))
    assert vocabulary(train_tokenizer(texts, section)) == [*SPECIAL, *kept]


def test_word_vocabulary_keeps_the_most_frequent():
    texts = random_texts("ab")
    sizes = [TokenizerSection(kind="word", vocab_size=size) for size in (20, 2**20)]
    small, large = (vocabulary(train_tokenizer(texts, section)) for section in sizes)
    assert small == large[:20]
    assert len(large) > 20


# Run in processes of their own: hash seeds, ours and the library's, differ between processes.
TRAIN = """
import hashlib, json, sys
from bertmill.config import TokenizerSection
from bertmill.text.vocabulary import train_tokenizer
for texts, settings in json.load(sys.stdin):
    made = train_tokenizer(texts, TokenizerSection(**settings))
    print(hashlib.sha256(made.backend.to_str().encode()).hexdigest())
"""
TRAININGS = {
    "ties": (random_texts(letters("a", 26)), {"vocab_size": 400}),
    "tiny cap": (random_texts(letters("a", 26)), {"vocab_size": 40}),
    "words": (random_texts(letters("a", 26)), {"kind": "word", "vocab_size": 300}),
    "chinese": (random_texts(letters("一", 900)), {"vocab_size": 300}),
    # Letters of an alphabet too large for the vocabulary, inside words.
    "hangul": (random_texts(letters("가", 400)), {"vocab_size": 300, "strip_accents": False}),
    "armenian": (random_texts(letters("\u0561", 38)), {"vocab_size": 60}),
}


@pytest.fixture(scope="module")
def trained_elsewhere() -> list[dict[str, str]]:
    """Hashes of the same trainings in three processes."""
    import bertmill

    folder = Path(bertmill.__file__).parents[1]
    processes = []
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", TRAIN]
        text = json.dumps(list(TRAININGS.values()))
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=True
        )
        processes.append(dict(zip(TRAININGS, done.stdout.split(), strict=True)))
    return processes


@pytest.mark.parametrize("training", TRAININGS)
def test_training_gives_the_same_bytes_in_every_process(trained_elsewhere, training):
    assert len({hashes[training] for hashes in trained_elsewhere}) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
@pytest.mark.parametrize("cap", [8, 40, 300])
@pytest.mark.parametrize("alphabet", [letters("一", 3000), letters("a", 26), letters("가", 500)])
def test_vocabulary_never_exceeds_the_cap(kind, cap, alphabet):
    section = TokenizerSection(kind=kind, vocab_size=cap, min_frequency=1)
    made = train_tokenizer(random_texts(alphabet), section)
    assert made.size <= cap
    assert len(set(vocabulary(made))) == made.size


@pytest.mark.parametrize("frequency", [2, 5])
def test_rare_words_are_left_out(frequency):
    texts = ["common " * 5 + "twice twice once"]
    made = train_tokenizer(texts, TokenizerSection(kind="word", min_frequency=frequency))
    wanted = {"common", "twice"} if frequency == 2 else {"common"}
    assert set(vocabulary(made)) == {*SPECIAL, *wanted}


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_lowercase(kind, lowercase):
    section = TokenizerSection(kind=kind, lowercase=lowercase, min_frequency=1)
    made = train_tokenizer(["Farmer farmer"] * 3, section)
    assert (ids(made, "Farmer") == ids(made, "farmer")) is lowercase
    assert made.unk_id not in ids(made, "Farmer farmer")


@pytest.mark.parametrize("strip_accents", [True, False])
def test_strip_accents(strip_accents):
    made = train_tokenizer(["café cafe"] * 3, TokenizerSection(strip_accents=strip_accents))
    assert (ids(made, "café") == ids(made, "cafe")) is strip_accents


def test_word_kind_splits_at_blanks_alone():
    made = train_tokenizer(["don't stop-now ."] * 3, TokenizerSection(kind="word"))
    assert made.tokens(ids(made, " don't\tstop-now\r\n.")) == ["don't", "stop-now", "."]


def test_special_tokens_have_the_names_asked_for():
    names = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    for kind in ("wordpiece", "word"):
        section = TokenizerSection(kind=kind, **dict(zip(keys, names, strict=True)))
        made = train_tokenizer(ENGLISH, section)
        assert made.tokens(range(5)) == list(names)
        assert made.mask_token == "<mask>"
        assert made.tokens(ids(made, "ϡ")) == ["<unk>"]


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_text_without_words_is_refused(kind, texts):
    with pytest.raises(TokenizerError, match="no words"):
        train_tokenizer(texts, TokenizerSection(kind=kind))


# --- encoding ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["wordpiece", "cased", "accents", "word", "cased word"])
def made(request) -> Tokenizer:
    kind = "word" if request.param.endswith("word") else "wordpiece"
    cased = request.param.startswith("cased")
    section = TokenizerSection(
        kind=kind,
        vocab_size=120,
        min_frequency=1,
        lowercase=not cased,
        strip_accents=not cased and request.param != "accents",
    )
    return train_tokenizer(ENGLISH, section)


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def hugging_face(saved):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("text", [*HOSTILE, *ENGLISH])
def test_saved_folder_gives_equal_ids_in_transformers(made, hugging_face, text):
    assert hugging_face(text, add_special_tokens=False)["input_ids"] == ids(made, text)


def test_saved_folder_frames_pairs_in_transformers(made, hugging_face):
    a, b = ids(made, "the farmer"), ids(made, "the grey crane")
    pair = hugging_face("the farmer", "the grey crane")
    assert pair["input_ids"] == [made.cls_id, *a, made.sep_id, *b, made.sep_id]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_saved_folder_frames_single_texts_in_transformers(made, hugging_face):
    single = hugging_face("the farmer")
    assert single["input_ids"] == [made.cls_id, *ids(made, "the farmer"), made.sep_id]
    assert set(single["token_type_ids"]) == {0}


def test_saved_folder_names_special_tokens_in_transformers(made, hugging_face):
    keys = ("pad", "unk", "cls", "sep", "mask")
    theirs = [getattr(hugging_face, f"{key}_token_id") for key in keys]
    assert theirs == [getattr(made, f"{key}_id") for key in keys]
    assert len(hugging_face) == made.size


def test_save_and_load_change_nothing(made, saved):
    opened = load_tokenizer(saved)
    assert opened.identity == made.identity
    assert opened.special_tokens == made.special_tokens
    assert vocabulary(opened) == vocabulary(made)
    assert (opened.is_special == made.is_special).all()
    assert (opened.continues_word == made.continues_word).all()
    assert [ids(opened, text) for text in HOSTILE] == [ids(made, text) for text in HOSTILE]


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    load_tokenizer(saved).save(tmp_path)
    for path in saved.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_batch_is_its_texts_end_to_end(made):
    flat, lengths = made.encode_batch(HOSTILE)
    one_by_one = [ids(made, text) for text in HOSTILE]
    assert lengths.tolist() == [len(one) for one in one_by_one]
    assert flat.tolist() == [i for one in one_by_one for i in one]


def test_empty_batch(made):
    flat, lengths = made.encode_batch([])
    assert (flat.size, lengths.size) == (0, 0)


def test_word_numbers_follow_the_pieces(made):
    for text in [*ENGLISH, *HOSTILE]:
        encoded, words = made.encode_words(text)
        assert encoded == ids(made, text)
        steps = [b - a for a, b in pairwise(words)]
        pieces = [bool(made.continues_word[i]) for i in encoded[1:]]
        assert [step == 0 for step in steps] == pieces
        assert set(steps) <= {0, 1}


@pytest.mark.parametrize("name", SPECIAL)
def test_names_of_special_tokens_are_plain_text(made, name):
    for text in (name, f"the {name} farmer", f"{name}{name}", name.lower(), f"\t{name}\n"):
        found = set(ids(made, text))
        assert not found & {made.pad_id, made.cls_id, made.sep_id, made.mask_id}
        assert set(made.encode_words(text)[0]) == found


def test_name_of_the_unknown_token_is_the_unknown_word():
    made = train_tokenizer(
        ["the <unk> farmer"] * 3, TokenizerSection(kind="word", unk_token="<unk>")
    )
    assert ids(made, "<unk>") == [made.unk_id]


def test_names_of_special_tokens_in_the_corpus_get_no_second_id():
    texts = [f"the {' '.join(SPECIAL)} farmer"] * 5
    tokens = vocabulary(train_tokenizer(texts, TokenizerSection(kind="word", lowercase=False)))
    assert sorted(tokens) == sorted([*SPECIAL, "the", "farmer"])


def test_decode_joins_pieces():
    made = train_tokenizer(ENGLISH, TokenizerSection(vocab_size=90))
    pieces = ids(made, "the horses follow")
    assert len(pieces) > 3
    assert made.decode(pieces) == "the horses follow"


# --- opening -------------------------------------------------------------------------------------


@pytest.fixture
def vocab_file(tmp_path) -> Path:
    path = tmp_path / "vocab.txt"
    tokens = [*SPECIAL, "the", "cafe", "café", "The", "Cafe", "Café", "##s"]
    path.write_text("\n".join(tokens) + "\n", "utf-8")
    return path


def test_bare_vocab_file(vocab_file):
    opened = load_tokenizer(vocab_file)
    assert opened.tokens(ids(opened, "The Cafés")) == ["the", "cafe", "##s"]
    assert opened.tokens([opened.pad_id, opened.mask_id]) == ["[PAD]", "[MASK]"]


def test_bare_vocab_file_follows_the_recipe(vocab_file):
    section = TokenizerSection(lowercase=False, strip_accents=False)
    opened = load_tokenizer(vocab_file, section)
    assert opened.tokens(ids(opened, "The Café")) == ["The", "Café"]


@pytest.mark.parametrize("ending", ["\n", "", "\r\n"])
def test_vocab_file_line_ends(tmp_path, ending):
    newline = ending or "\n"
    (tmp_path / "v.txt").write_bytes((newline.join([*SPECIAL, "the"]) + ending).encode())
    opened = load_tokenizer(tmp_path / "v.txt")
    assert vocabulary(opened) == [*SPECIAL, "the"]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, ["the", "cafe"]),
        ({"do_lower_case": True}, ["the", "cafe"]),
        ({"do_lower_case": True, "strip_accents": False}, ["the", "café"]),
        # Accents follow the case where the file does not tell: as every cased BERT is published.
        ({"do_lower_case": False}, ["The", "Café"]),
        ({"do_lower_case": False, "strip_accents": None}, ["The", "Café"]),
        ({"do_lower_case": False, "strip_accents": True}, ["The", "Cafe"]),
    ],
)
def test_vocab_folder_follows_its_config(vocab_file, config, wanted):
    (vocab_file.parent / "tokenizer_config.json").write_text(json.dumps(config))
    opened = load_tokenizer(vocab_file.parent)
    assert opened.tokens(ids(opened, "The Café")) == wanted


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_are_read_from_the_folder(tmp_path, file):
    names = {"pad_token": "<p>", "unk_token": {"content": "<u>", "lstrip": False}}
    tokens = ["<p>", "<u>", "[CLS]", "[SEP]", "[MASK]", "the"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    (tmp_path / file).write_text(json.dumps(names))
    assert load_tokenizer(tmp_path).special_tokens == tuple(tokens[:5])


def test_truncation_and_padding_of_the_file_are_dropped(saved, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    opened, whole = load_tokenizer(tmp_path), load_tokenizer(saved)
    assert ids(opened, ENGLISH[0]) == ids(whole, ENGLISH[0])


def test_published_vocabulary(shared_data):
    opened = load_tokenizer(shared_data / "vocab" / "bert-base-uncased.txt")
    assert opened.size == 30_522
    assert opened.tokens(ids(opened, "Unaffable, Zürich!")) == [
        "una",
        "##ffa",
        "##ble",
        ",",
        "zurich",
        "!",
    ]


# --- identity ------------------------------------------------------------------------------------


def identity(texts=tuple(ENGLISH), **settings) -> str:
    return train_tokenizer(list(texts), TokenizerSection(vocab_size=120, **settings)).identity


@pytest.mark.parametrize(
    "settings",
    [
        {"lowercase": False},
        {"strip_accents": False},
        {"kind": "word"},
        {"min_frequency": 3},
        {"mask_token": "<mask>"},
        {"texts": ("something else entirely",)},
    ],
)
def test_identity_changes_with_what_decides_the_ids(settings):
    assert identity(**settings) != identity()


def test_identity_changes_with_two_ids_swapped(tmp_path):
    for name, words in (("one", ["a", "b"]), ("two", ["b", "a"])):
        (tmp_path / name).write_text("\n".join([*SPECIAL, *words]))
    assert load_tokenizer(tmp_path / "one").identity != load_tokenizer(tmp_path / "two").identity


def test_identity_does_not_depend_on_the_files(made, saved):
    backend = tokenizers.Tokenizer.from_str(made.backend.to_str())
    backend.enable_truncation(3)  # decides nothing: it is dropped on opening
    assert Tokenizer(backend, made.special_tokens).identity == load_tokenizer(saved).identity


def test_identity_changes_with_an_added_token():
    made = train_tokenizer(ENGLISH, TokenizerSection(vocab_size=90))
    backend = tokenizers.Tokenizer.from_str(made.backend.to_str())
    backend.add_tokens(["the farmer"])
    more = Tokenizer(backend, made.special_tokens)
    assert ids(more, "the farmer") != ids(made, "the farmer")
    assert more.identity != made.identity


def test_identity_is_a_sha256():
    assert len(bytes.fromhex(identity())) == hashlib.sha256().digest_size


# --- refusals ------------------------------------------------------------------------------------


def refusal(path, section=None) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path, section)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.fix
    return message


def test_missing_path(tmp_path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none")


def test_folder_without_a_tokenizer(tmp_path):
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "vocab.txt" in message


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"model": {"type": "Nothing"}}', "\x00"])
def test_broken_tokenizer_file(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "not a tokenizer" in message


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe"])
def test_broken_tokenizer_config(saved, tmp_path, data):
    load_tokenizer(saved).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(data)
    assert "tokenizer_config.json" in refusal(tmp_path)


@pytest.mark.parametrize("missing", SPECIAL)
def test_vocabulary_without_a_special_token(tmp_path, missing):
    tokens = [name for name in SPECIAL if name != missing]
    (tmp_path / "vocab.txt").write_text("\n".join([*tokens, "the"]))
    message = refusal(tmp_path / "vocab.txt")
    assert "vocab.txt" in message
    assert missing in message
    assert "[tokenizer]" in message


def test_special_tokens_of_other_names(saved):
    names = TokenizerSection(mask_token="<mask>")
    (saved / "tokenizer_config.json").rename(saved / "hidden")
    try:
        assert "<mask>" in refusal(saved, names)
    finally:
        (saved / "hidden").rename(saved / "tokenizer_config.json")


def test_token_listed_twice(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "river", "crane", "river"]))
    assert "'river' is listed twice" in refusal(tmp_path)


def test_vocabulary_that_is_not_utf8(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join([*SPECIAL, "café"]).encode("latin-1"))
    assert "vocab.txt" in refusal(tmp_path / "vocab.txt")


def test_a_vocabulary_of_special_tokens_alone_is_refused():
    with pytest.raises(TokenizerError, match=r"no word besides .*min_frequency"):
        train_tokenizer(["each word once"], TokenizerSection(kind="word", min_frequency=2))
