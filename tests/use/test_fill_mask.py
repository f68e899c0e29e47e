"""Words for masks: those of a pipeline in transformers, and of the chain rule over all words."""

import itertools

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, pipeline
from transformers.utils import logging

import bertmill
from bertmill.config import TokenizerSection
from bertmill.errors import InputError, ModelError
from bertmill.text.tokenizer import Tokenizer
from bertmill.text.vocabulary import train_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

SPECIAL = TokenizerSection().special_tokens
TEXT = "the river crosses the valley and my sister follows two horses in the old world"
SIZE = 75
"""Of the vocabulary of this text."""
MASKED = [
    "the [MASK] crosses the valley",
    "[MASK]",
    "my [MASK] follows [MASK][MASK] in the un[MASK]able World.",
]


def make(folder, tokenizer: Tokenizer):
    """A network with large random weights, so that every neighbor matters, as theirs and ours."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=tokenizer.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    network = BertForMaskedLM(config).eval()
    network.save_pretrained(folder)
    tokenizer.save(folder)
    return network, AutoTokenizer.from_pretrained(folder), bertmill.load(folder)


def by_hand(pieces: list[str]) -> Tokenizer:
    """A vocabulary of these pieces."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *pieces])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIAL))
    return Tokenizer(backend, SPECIAL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tokenizer = train_tokenizer([TEXT] * 2, TokenizerSection(vocab_size=90))
    return make(tmp_path_factory.mktemp("trained"), tokenizer)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Every word has one spelling, and the search is wide enough for all beginnings."""
    pieces = ["a", "b", "c", "##d", "##e", "##f", "##g"]
    return make(tmp_path_factory.mktemp("tiny"), by_hand(pieces))


@pytest.fixture(scope="module")
def ours(trained):
    return trained[2]


@torch.inference_mode()
def chain_rule(network, tokenizer, text: str, number: int, pieces: list[str]) -> float:
    """The product of each piece's probability, given those before it and masks behind it."""
    mask = tokenizer.mask_token_id
    ids = tokenizer(text)["input_ids"]
    at = [place for place, i in enumerate(ids) if i == mask][number]
    piece_ids = tokenizer.convert_tokens_to_ids(pieces)
    product = 1.0
    for done, piece in enumerate(piece_ids):
        rest = [mask] * (len(piece_ids) - done)
        filled = [*ids[:at], *piece_ids[:done], *rest, *ids[at + 1 :]]
        logits = network(input_ids=torch.tensor([filled])).logits[0, at + done]
        product *= logits.softmax(-1)[piece].item()
    return product


def check(fillers, wanted: dict[str, float]):
    """Exactly these words, with these probabilities, the most probable first."""
    assert [filler.token for filler in fillers] == sorted(wanted, key=lambda w: -wanted[w])
    assert [filler.probability for filler in fillers] == pytest.approx(
        sorted(wanted.values(), reverse=True), rel=1e-4
    )


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", MASKED)
@pytest.mark.parametrize("top", [1, 5, SIZE])
def test_tokens_of_the_pipeline_of_transformers(trained, text, top):
    network, tokenizer, ours = trained
    filled = pipeline("fill-mask", model=network, tokenizer=tokenizer, device="cpu")(
        text, top_k=top
    )
    masks = [filled] if text.count("[MASK]") == 1 else filled
    assert ours.tokenizer.size == SIZE
    assert len(masks) == text.count("[MASK]")
    for got, mask in zip(ours.fill_mask(text, top), masks, strict=True):
        names = tokenizer.convert_ids_to_tokens([filler["token"] for filler in mask])
        check(got, {name: f["score"] for name, f in zip(names, mask, strict=True)})
        assert len(got) == top


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", MASKED)
def test_targets_of_one_piece_have_the_softmax(trained, text):
    network, tokenizer, ours = trained
    with torch.inference_mode():
        encoded = tokenizer(text, return_tensors="pt")
        shares = network(**encoded).logits[0].softmax(-1)
    masks = shares[encoded["input_ids"][0] == tokenizer.mask_token_id]
    targets = ["river", "the", "valley", "s", "horses"]
    ids = tokenizer.convert_tokens_to_ids(targets)
    for got, mask in zip(ours.fill_mask(text, targets=targets), masks, strict=True):
        check(got, {target: mask[i].item() for target, i in zip(targets, ids, strict=True)})


@pytest.mark.parametrize("text", MASKED)
def test_targets_of_several_pieces_have_the_chain_rule(trained, text):
    network, tokenizer, ours = trained
    targets = ["riverside", "river", "Followed", "the river", "my sisterland"]
    assert [len(tokenizer.tokenize(target)) for target in targets] == [5, 1, 4, 2, 6]
    for number, got in enumerate(ours.fill_mask(text, 9, targets=targets)):
        check(
            got,
            {
                t: chain_rule(network, tokenizer, text, number, tokenizer.tokenize(t))
                for t in targets
            },
        )


def test_as_many_targets_as_are_asked_for(ours):
    targets = ["river", "the", "valley"]
    (every,) = ours.fill_mask(MASKED[0], 3, targets=targets)
    assert sorted(filler.token for filler in every) == sorted(targets)
    assert ours.fill_mask(MASKED[0], 2, targets=targets) == [every[:2]]
    assert ours.fill_mask(MASKED[0], targets=[]) == [[]]


# --- words ---------------------------------------------------------------------------------------


def every_word(num_pieces: int):
    return itertools.product("abc", *[["##d", "##e", "##f", "##g"]] * (num_pieces - 1))


@pytest.mark.parametrize("max_pieces", [1, 2, 3])
@pytest.mark.parametrize("text", ["a [MASK] b", "[MASK]", "cad [MASK] b bed [MASK]"])
def test_words_of_an_exhaustive_search(tiny, text, max_pieces):
    network, tokenizer, ours = tiny
    words = [word for n in range(1, max_pieces + 1) for word in every_word(n)]
    assert len(words) == [3, 15, 63][max_pieces - 1]
    for number, got in enumerate(ours.fill_mask(text, 12, max_pieces=max_pieces)):
        found = {
            "".join(piece.removeprefix("##") for piece in word): chain_rule(
                network, tokenizer, text, number, list(word)
            )
            for word in words
        }
        check(got, dict(sorted(found.items(), key=lambda item: -item[1])[:12]))
        assert len(got) == min(12, len(words))


@pytest.mark.parametrize("text", MASKED)
def test_only_whole_words_without_special_tokens(trained, text):
    _, tokenizer, ours = trained
    words = [w.token for mask in ours.fill_mask(text, SIZE, max_pieces=3) for w in mask]
    assert len(words) == SIZE * text.count("[MASK]")
    pieces = {word: tokenizer.tokenize(word) for word in words}
    assert not any(word.startswith("##") or word in SPECIAL for word in words)
    assert not any(piece in SPECIAL for word in words for piece in pieces[word])
    assert all(piece.startswith("##") for word in words for piece in pieces[word][1:])
    assert {len(found) for found in pieces.values()} >= {1, 2}


def test_a_word_has_one_spelling(tmp_path):
    """ "ab" is a piece, so that no text spells it a ##b: its probability is that of the piece."""
    network, tokenizer, ours = make(tmp_path, by_hand(["a", "ab", "b", "##b", "##bb", "##a"]))
    (got,) = ours.fill_mask("a [MASK] b", 11, max_pieces=3)
    words = [filler.token for filler in got]
    assert len(set(words)) == len(words)
    for filler in got:
        wanted = chain_rule(network, tokenizer, "a [MASK] b", 0, tokenizer.tokenize(filler.token))
        assert filler.probability == pytest.approx(wanted, rel=1e-4)


def test_words_of_a_word_level_vocabulary(tmp_path):
    section = TokenizerSection(kind="word", vocab_size=90)
    tokenizer = train_tokenizer([TEXT] * 2, section)
    _, _, ours = make(tmp_path, tokenizer)
    text = f"the {tokenizer.mask_token} crosses"
    (words,) = ours.fill_mask(text, tokenizer.size, max_pieces=3)
    assert sorted(word.token for word in words) == sorted(set(TEXT.split()))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["the river", "", "[mask]"])
def test_a_text_without_a_mask(ours, text):
    with pytest.raises(InputError, match=r"has no \[MASK\]; write \[MASK\] where"):
        ours.fill_mask(text, targets=["river"])


@pytest.mark.parametrize("text", [3, None, ["[MASK]"], b"[MASK]", "[MASK] \ud800"])
def test_what_is_not_text_is_refused(ours, text):
    with pytest.raises(InputError, match=r"is not text|lone surrogate"):
        ours.fill_mask(text)


@pytest.mark.parametrize("target", [3, None, b"river", ["river"], "a\ud800"])
def test_a_target_that_is_not_text_is_refused(ours, target):
    with pytest.raises(InputError, match=r"is not text|lone surrogate"):
        ours.fill_mask("the [MASK]", targets=["river", target])


@pytest.mark.parametrize("target", ["", " ", "東", "river 🦢"])
def test_a_target_that_the_vocabulary_cannot_write(ours, target):
    with pytest.raises(InputError, match=f"`targets`: {target!r} is not in the vocabulary"):
        ours.fill_mask("the [MASK]", targets=["river", target])


@pytest.mark.parametrize("top", [-1, 0, SIZE + 1])
def test_top_is_out_of_range(ours, top):
    with pytest.raises(InputError, match=f"`top`: is {top}; give 1 to {SIZE}"):
        ours.fill_mask("the [MASK]", top, max_pieces=2)


@pytest.mark.parametrize("max_pieces", [-1, 0, 11])
def test_max_pieces_is_out_of_range(ours, max_pieces):
    with pytest.raises(InputError, match=f"`max_pieces`: is {max_pieces}; give 1 to 10"):
        ours.fill_mask("the [MASK]", max_pieces=max_pieces)


def test_a_text_that_is_too_long(ours):
    fits = " ".join(["the"] * 29) + " [MASK]"
    assert len(ours.fill_mask(fits)) == 1
    assert len(ours.fill_mask(fits, max_pieces=1)[0]) == 5
    with pytest.raises(InputError, match="has 33 tokens, but the model takes 32"):
        ours.fill_mask("the " + fits)
    for more in ({"max_pieces": 2}, {"targets": ["river", "the river"]}):
        with pytest.raises(InputError, match="has 33 tokens, but the model takes 32"):
            ours.fill_mask(fits, **more)


def test_a_folder_without_a_masked_token_head(trained, tmp_path):
    network, tokenizer, _ = trained
    BertModel(network.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no masked-token head; give a folder"):
        bertmill.load(tmp_path).fill_mask("the [MASK]")
