"""`evaluate --minimal-pairs`: every answer against transformers, one masked copy at a time."""

import gzip
import json
import math
from dataclasses import asdict
from functools import cache

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

import bertmill as package
from bertmill.config import ModelSection
from bertmill.model.folder import load_model

logging.set_verbosity_error()
logging.disable_progress_bar()

SUBJECTS = ["the river", "a farmer", "my sister", "the sistering market"]
KEYS = ("sentence_good", "sentence_bad")
VERBS = ["crosses", "remembers", "follows"]


def make_pairs():
    """Three paradigms in turn, so that none is a block of its own."""
    pairs = []
    for n in range(12):
        subject, verb = SUBJECTS[n % 4], VERBS[n % 3]
        known = f"{subject} {verb} the valley"
        pairs += [
            ("agreement", known, f"{subject} {verb.rstrip('s')} the valley"),
            ("order", f"{known} in year {n}", f"{verb} {subject} the valley in {n} year"),
            ("length", known, f"{known} winter rain" if n % 2 else subject),
        ]
    return pairs


TIES = [
    ("ties", "the river crosses", "the river crosses"),
    ("ties", "the River  crosses", "the river crosses"),  # equal once they are tokens
    ("ties", "the 東 crosses", "the 京 crosses"),  # both unknown
    ("ties", "", ""),
    ("ties", "the river", "the 東"),
]


@pytest.fixture(scope="module")
def loaded(save_random_model, tmp_path_factory):
    section = ModelSection(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40,
    )  # fmt: skip
    return save_random_model(tmp_path_factory.mktemp("model") / "random", section)


def write(path, pairs, column="paradigm"):
    keys = (column, *KEYS)
    rows = [dict(zip(keys, pair, strict=True)) for pair in pairs]
    if column is None:
        rows = [{key: row[key] for key in keys[1:]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@cache
def open_slow(folder):
    return BertForMaskedLM.from_pretrained(folder).double().eval()


@torch.no_grad()
def score_slowly(loaded, text, mask_rest_of_word=False):
    """One copy at a time, in double precision; ids from the tokenizer's own library."""
    model = open_slow(loaded.folder)
    encoding = loaded.tokenizer.backend.encode(text, add_special_tokens=False)
    tokenizer = loaded.tokenizer
    ids = [tokenizer.cls_id, *encoding.ids, tokenizer.sep_id]
    words = [None, *encoding.word_ids, None]
    total = 0.0
    for i in range(1, len(ids) - 1):
        masked = list(ids)
        masked[i] = tokenizer.mask_id
        for j in range(i + 1, len(ids)):
            if mask_rest_of_word and words[j] == words[i]:
                masked[j] = tokenizer.mask_id
        logits = model(torch.tensor([masked])).logits[0, i]
        total += logits.log_softmax(-1)[ids[i]].item()
    return total


@pytest.mark.parametrize("mask_rest_of_word", [False, True])
def test_answers_are_those_of_transformers(mask_rest_of_word, loaded, tmp_path):
    pairs = make_pairs()
    found = package.evaluate_minimal_pairs(
        loaded.folder,
        write(tmp_path / "pairs.jsonl", pairs),
        mask_rest_of_word=mask_rest_of_word,
    )
    right, margins = {}, []
    for name, *both in pairs:
        good, bad = (score_slowly(loaded, text, mask_rest_of_word) for text in both)
        right.setdefault(name, []).append(good > bad)
        margins.append(abs(good - bad))
    assert min(margins) > 1e-3  # no answer hangs on the last digits
    assert list(found.paradigms) == ["agreement", "order", "length"]
    for name, answers in right.items():
        scores = found.paradigms[name]
        assert scores.accuracy == pytest.approx(sum(answers) / 12)
        assert (scores.num_pairs, scores.num_ties) == (12, 0)
    everything = sum(map(sum, right.values())) / 36
    assert 0.1 < everything < 0.9  # or the test would tell little
    assert found.accuracy == pytest.approx(everything)
    assert found.mean_paradigm_accuracy == pytest.approx(everything)
    assert (found.num_pairs, found.num_ties) == (36, 0)
    assert found.mask_rest_of_word is mask_rest_of_word


def test_the_means_are_over_pairs_and_over_paradigms(loaded, tmp_path):
    pairs = [("a", "the river", "the sistering"), *[("b", "the sistering", "the river")] * 3]
    pairs.insert(2, ("a", "", ""))
    found = package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "p.jsonl", pairs))
    is_right = score_slowly(loaded, pairs[0][1]) > score_slowly(loaded, pairs[0][2])
    a, b = (is_right + 0.5) / 2, float(not is_right)
    assert (found.paradigms["a"].accuracy, found.paradigms["b"].accuracy) == (a, b)
    assert found.mean_paradigm_accuracy == pytest.approx((a + b) / 2)
    assert found.accuracy == pytest.approx((2 * a + 3 * b) / 5)


def test_ties_are_half_a_point_and_told(loaded, tmp_path):
    found = package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "p.jsonl", TIES))
    river, unknown = (score_slowly(loaded, text) for text in ("the river", "the 東"))
    assert found.num_ties == found.paradigms["ties"].num_ties == 4
    assert found.accuracy == pytest.approx((4 * 0.5 + (river > unknown)) / 5)
    assert found.num_pairs_with_unknown == 2


def test_pairs_are_answered_alike_in_any_company(loaded, tmp_path):
    """Batches are cut by length over the whole file; equal sentences must not differ by them."""
    pairs = make_pairs()
    both = [
        package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "p.jsonl", rows))
        for rows in (pairs, [*TIES, *reversed(pairs)])
    ]
    for name in ("agreement", "order", "length"):
        assert both[0].paradigms[name] == both[1].paradigms[name]
    twins = [("a", text, text) for _, text, _ in pairs]
    found = package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "t.jsonl", twins))
    assert (found.num_ties, found.accuracy) == (36, 0.5)


def test_unknown_words_are_counted_once_a_pair(loaded, tmp_path):
    pairs = [("a", "the river", "a river"), ("a", "東 京", "the river"), ("a", "the", "東")]
    pairs += [("a", "東", "京 東"), ("a", "", "")]
    found = package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "p.jsonl", pairs))
    assert (found.num_pairs, found.num_pairs_with_unknown) == (5, 3)


# --- files ---------------------------------------------------------------------------------------


def test_names_of_paradigms(loaded, tmp_path):
    pairs = make_pairs()
    wanted = package.evaluate_minimal_pairs(loaded.folder, write(tmp_path / "p.jsonl", pairs))
    as_blimp = write(tmp_path / "blimp.jsonl", pairs, "UID")
    assert package.evaluate_minimal_pairs(loaded.folder, as_blimp) == wanted
    without = write(tmp_path / "all.jsonl", pairs, None)
    found = package.evaluate_minimal_pairs(loaded.folder, without)
    assert list(found.paradigms) == ["all"]
    assert found.accuracy == found.paradigms["all"].accuracy == wanted.accuracy
    table = tmp_path / "pairs.tsv"
    lines = ["sentence_bad\tnote\tsentence_good\tUID\tparadigm"]
    lines += [f"{bad}\tx\t{good}\tno\t{name}" for name, good, bad in pairs]
    table.write_text("\n".join(lines), "utf-8")
    assert package.evaluate_minimal_pairs(loaded.folder, str(table)) == wanted


def test_what_is_printed(loaded, bertmill, tmp_path):
    path = write(tmp_path / "p.jsonl", [*make_pairs(), *TIES])
    found = package.evaluate_minimal_pairs(loaded.folder, path)
    status, out, err = bertmill("evaluate", loaded.folder, "--minimal-pairs", path)
    assert (status, err) == (0, "")
    for name, scores in found.paradigms.items():
        assert f"{scores.accuracy:8.1%}  {name}\n" in out
    assert f"{found.accuracy:8.1%}  all 41 pairs (4 ties, half a point each)\n" in out
    assert f"{found.num_pairs_with_unknown} pairs have a word that the vocabulary lacks\n" in out
    args = ["evaluate", loaded.folder, "--minimal-pairs", path, "--mask-rest-of-word", "--json"]
    status, out, err = bertmill(*args)
    assert (status, err) == (0, "")
    assert json.loads(out) == asdict(
        package.evaluate_minimal_pairs(loaded.folder, path, mask_rest_of_word=True)
    )
    assert math.isfinite(json.loads(out)["accuracy"])


@pytest.mark.parametrize("mask_rest_of_word", [False, True])
def test_real_pairs(mask_rest_of_word, shared_data, small_run, tmp_path):
    """The first of Zorro, each against one masked copy at a time."""
    with gzip.open(shared_data / "zorro" / "zorro.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [next(stream) for _ in range(200)]
    path = tmp_path / "zorro.jsonl"
    path.write_text("".join(lines), "utf-8")
    found = package.evaluate_minimal_pairs(
        small_run.folder, path, mask_rest_of_word=mask_rest_of_word
    )
    assert found.num_pairs == 200
    assert sum(each.num_pairs for each in found.paradigms.values()) == 200
    model = package.load(small_run.folder)
    rows = [json.loads(line) for line in lines]
    both = [
        model.score([row[key] for row in rows], mask_rest_of_word=mask_rest_of_word) for key in KEYS
    ]
    slow = load_model(small_run.folder)
    ids = [[slow.tokenizer.encode_words(row[key])[0] for row in rows] for key in KEYS]
    ties = [good == bad for good, bad in zip(*ids, strict=True)]  # a vocabulary of 200 entries
    assert found.num_ties == sum(ties) and 0 < sum(ties) < 100
    assert found.accuracy == pytest.approx(((both[0] > both[1]).sum() + sum(ties) / 2) / 200)
    unknown = [slow.tokenizer.unk_id in good + bad for good, bad in zip(*ids, strict=True)]
    assert found.num_pairs_with_unknown == sum(unknown)
    for n in (0, 77, 199):
        for key, scores in zip(KEYS, both, strict=True):
            wanted = score_slowly(slow, rows[n][key], mask_rest_of_word)
            assert scores[n] == pytest.approx(wanted, rel=1e-5)


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refuse(refused, loaded, tmp_path):
    def refuse(content, *parts, name="p.jsonl"):
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(content, "utf-8")
        refused(["evaluate", loaded.folder, "--minimal-pairs", name], *parts, "; ")

    return refuse


GOOD = {"sentence_good": "the river", "sentence_bad": "river the", "paradigm": "order"}


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_pairs(content, refuse):
    refuse(content, "p.jsonl: has no pairs", "one pair per line")
    refuse("sentence_good,sentence_bad\n", "p.csv: has no pairs", name="p.csv")


@pytest.mark.parametrize("key", KEYS)
def test_sentences_that_are_none(key, refuse):
    without = {name: value for name, value in GOOD.items() if name != key}
    refuse([GOOD, without], "p.jsonl, line 2: has no column", key)
    for value in (None, 3, ["a"]):
        refuse([GOOD, GOOD | {key: value}], f"p.jsonl, line 2: column '{key}' is ", "not text")
    refuse([GOOD, GOOD | {key: "\ud800"}], "p.jsonl, line 2", "surrogate")
    refuse([GOOD, GOOD | {key: "river " * 39}], "1 of 4 have more tokens than the model takes, 40")


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_a_paradigm_that_is_none(value, refuse):
    refuse([GOOD, GOOD | {"paradigm": value}], "line 2: column 'paradigm' is ", "not text")


def test_files_and_names_that_are_none(refused, loaded, refuse):
    refuse("{", "p.jsonl, line 1: is not JSON")
    refused(["evaluate", loaded.folder, "--minimal-pairs", "gone.jsonl"], "gone.jsonl", "; ")
    refused(["evaluate", loaded.folder, "--minimal-pairs", ""], "--minimal-pairs: has no name")
    more = ["--minimal-pairs", "p.jsonl"]
    refused(["evaluate", loaded.folder, *more, "--set", "pairs.kind=none"], "--held-out", "; ")
    refused(["evaluate", loaded.folder, *more, "--tasks", "x"], "takes one of ", "--tasks", "; ")
    refused(["evaluate", loaded.folder], "takes one of ", "--minimal-pairs", "; ")


def test_a_folder_without_the_masked_token_head(refused, loaded, tmp_path):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=loaded.tokenizer.size, num_hidden_layers=1, **sizes)
    BertModel(config).save_pretrained(tmp_path / "theirs")
    loaded.tokenizer.save(tmp_path / "theirs")
    write(tmp_path / "p.jsonl", TIES)
    refused(["evaluate", "theirs", "--minimal-pairs", "p.jsonl"], "no masked-token head", "; ")
