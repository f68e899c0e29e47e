"""What `inspect` tells of a recipe, a store, a run and a model folder."""

import json
import re
import shutil

import pytest

from bertmill.config import load_recipe, recipe_to_toml
from bertmill.data.prepare import prepare
from bertmill.errors import BertmillError, InputError, StoreError
from bertmill.model.pretraining import PretrainingModel
from bertmill.show.contents import describe

SHOWN = re.compile(r"\S+\(\S+\)")


def test_recipe_by_name():
    found = describe("tiny")
    assert found["kind"] == "recipe"
    assert found["recipe"] == load_recipe("tiny").model_dump()
    assert found["parameters"]["total"] > found["parameters"]["encoder_with_pooler"] > 4_000_000


def test_recipe_by_file_is_the_same(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(recipe_to_toml(load_recipe("tiny")), "utf-8")
    assert describe(file) == describe("tiny")


@pytest.mark.parametrize(
    ("name", "encoder", "millions"),
    [
        # In millions as Turc et al. 2019 give them, who count the masked-token head too.
        ("tiny", 4_385_920, 4.4),
        ("mini", 11_170_560, 11.3),
        ("small", 28_763_648, 29.1),
        ("medium", 41_373_184, 41.7),
        ("base", 109_482_240, 110.1),
        ("large", 335_141_888, 336.2),
    ],
)
def test_parameters_of_the_published_sizes(name, encoder, millions):
    counts = describe(name)["parameters"]
    assert counts["encoder_with_pooler"] == encoder
    assert round(counts["total"] / 1e6, 1) == millions


def test_store(small_store):
    found = describe(small_store.folder)
    assert found["kind"] == "store"
    assert found["vocab_size"] == small_store.tokenizer.size
    assert found["tokenizer_identity"] == small_store.tokenizer.identity
    assert found["splits"]["train"] == {
        "num_documents": small_store.train.num_documents,
        "num_sentences": small_store.train.num_sentences,
        "num_tokens": small_store.train.num_tokens,
    }
    assert found["splits"]["held_out"]["num_documents"] > 0
    assert len(found["pairs"]) == 3
    assert 0.5 < found["seen_fraction"] < 1


@pytest.mark.parametrize("of_run", [False, True])
def test_store_that_is_checked(small_store, small_run, tmp_path, of_run):
    copy = shutil.copytree(small_store.folder, tmp_path / "store")
    target = copy
    if of_run:
        target = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
        facts = json.loads((target / "run.json").read_text()) | {"store": str(copy)}
        (target / "run.json").write_text(json.dumps(facts))
    assert describe(target, 0, check=True) == describe(target, 0)
    shard = copy / "held_out-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert describe(target, 0)["vocab_size"]
    with pytest.raises(StoreError, match=r"held_out-00000\.arrow: is damaged"):
        describe(target, 0, check=True)


def test_run(small_run):
    found = describe(small_run.folder, num_pairs=2)
    assert found["kind"] == "run"
    assert found["recipe"] == small_run.recipe.model_dump()
    assert found["model"]["kind"] == "model"
    assert found["vocab_size"] == small_run.vocab_size
    assert found["splits"]["train"]["num_documents"] == small_run.train_documents
    assert found["last"]["train"]["step"] == found["last"]["held_out"]["step"] == 8
    assert found["facts"]["budget_seconds"] is None
    assert len(found["pairs"]) == 2


def test_model(small_run):
    found = describe(small_run.folder / "model")
    assert found["kind"] == "model"
    assert found["model"] == small_run.recipe.model.model_dump()
    assert found["vocab_size"] == small_run.vocab_size
    assert found["special_tokens"] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert found["new_weights"] == []
    model = PretrainingModel(small_run.recipe.model, small_run.vocab_size)
    assert found["parameters"] == model.count_parameters()


@pytest.mark.parametrize("what", ["recipe", "store", "run", "model"])
def test_everything_is_plain_values(what, small_run, small_store):
    target = {
        "recipe": "tiny",
        "store": small_store.folder,
        "run": small_run.folder,
        "model": small_run.folder / "model",
    }[what]
    found = describe(target)
    assert json.loads(json.dumps(found)) == found


def test_pairs_show_their_masks(small_run):
    for pair in describe(small_run.folder, num_pairs=10)["pairs"]:
        tokens = pair["text"].split(" ")
        assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
        assert tokens.count("[SEP]") == 2
        assert len(tokens) <= small_run.recipe.pairs.max_length
        assert pair["is_next"] in (True, False)
        # round() of the published routine: 15 % of the sequence, at least one.
        assert sum(map(bool, map(SHOWN.fullmatch, tokens))) == max(1, round(0.15 * len(tokens)))


def test_pairs_show_both_kinds_of_pair_and_all_three_kinds_of_mask(small_run):
    pairs = describe(small_run.folder, num_pairs=60)["pairs"]
    assert {pair["is_next"] for pair in pairs} == {True, False}
    marked = SHOWN.findall(" ".join(pair["text"] for pair in pairs))
    hidden = sum(mark.startswith("[MASK](") for mark in marked)
    kept = sum(mark.endswith("(=)") for mark in marked)
    assert hidden > kept > 0
    assert len(marked) - hidden - kept > 0  # a random token stands there


def test_pairs_are_those_of_the_run(small_run):
    assert describe(small_run.folder, 2)["pairs"] == describe(small_run.folder, 5)["pairs"][:2]


def test_no_pairs_when_none_are_asked_for(small_store):
    assert describe(small_store.folder, 0)["pairs"] == []


def test_no_more_pairs_than_there_are(small_store):
    assert 0 < len(describe(small_store.folder, 10_000)["pairs"]) < 10_000


def test_a_store_of_a_single_document_can_be_inspected(tmp_path):
    """It cannot give pairs of two documents, but it is a good store for ``pairs.kind=none``."""
    text = tmp_path / "one.txt"
    text.write_text("The river crosses the valley. The old bridge follows the river.", "utf-8")
    recipe = load_recipe("tiny", ["text.held_out_fraction=0.0", "tokenizer.min_frequency=1"])
    prepare([str(text)], tmp_path / "store", recipe.text, recipe.tokenizer)
    found = describe(tmp_path / "store")
    assert found["splits"]["train"]["num_documents"] == 1


@pytest.mark.parametrize("name", ["not-there", "tinny"])
def test_nothing_there(name):
    with pytest.raises(InputError, match=r"does not exist; give a recipe .*tiny"):
        describe(name)


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(BertmillError, match=r"no config\.json"):
        describe(tmp_path)
