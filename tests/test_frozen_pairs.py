"""`benchmarks/frozen_pairs.py`: every figure against transformers, one pair at a time."""

import gzip
import json
import math
import random
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from transformers.utils import logging

import bertmill as package
from bertmill.config import ModelSection, TokenizerSection, load_recipe
from bertmill.errors import CorpusError, InputError
from bertmill.model.folder import load_model, save_model
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.text.vocabulary import train_tokenizer
from small import examples

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from frozen_pairs import evaluate_frozen_pairs, main

logging.set_verbosity_error()
logging.disable_progress_bar()

POSITIONS = 48
SETTINGS = [
    "tokenizer.kind=word",
    "tokenizer.vocab_size=70",
    "tokenizer.min_frequency=1",
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.initializer_range=0.3",
    f"model.max_position_embeddings={POSITIONS}",
    "train.batch_size=8",
    "train.precision=fp32",
]
SPECIALS = {"<pad>": "[PAD]", "<unk>": "[UNK]", "<cls>": "[CLS]", "<sep>": "[SEP]"}
SPECIALS["<mask>"] = "[MASK]"


@pytest.fixture
def bertmill(monkeypatch, capsys, tmp_path):
    """Run the script in this process and folder: status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["frozen_pairs.py", *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run(corpus_file, tmp_path_factory):
    """Its words are those of the corpus, its special tokens are named as in no frozen file."""
    out = tmp_path_factory.mktemp("runs") / "words"
    return package.pretrain(str(corpus_file), "tiny", out=out, steps=4, settings=SETTINGS).folder


@pytest.fixture(scope="module")
def vocabulary(run):
    lines = (run / "model" / "vocab.txt").read_text("utf-8").splitlines()
    return {word: i for i, word in enumerate(lines)}


def make_records(count, known, unknown, seed=1):
    """Pairs of all kinds, lengths and labels; replacements are known words."""
    draw, words = random.Random(seed), [*known, *unknown]
    records = []
    for n in range(count):
        lengths = draw.randint(1, 9), draw.randint(1, 30)
        first, second = ([draw.choice(words) for _ in range(length)] for length in lengths)
        tokens = ["<cls>", *first, "<sep>", *second, "<sep>"]
        places = [i for i, word in enumerate(tokens) if word not in ("<cls>", "<sep>")]
        masked_at = sorted(draw.sample(places, draw.randint(1, min(7, len(places)))))
        labels = [tokens[i] for i in masked_at]
        kinds = [draw.choice(["mask", "mask", "keep", "random"]) for _ in masked_at]
        for i, kind in zip(masked_at, kinds, strict=True):
            if kind == "mask":
                tokens[i] = "<mask>"
            elif kind == "random":
                tokens[i] = draw.choice(known)
        records.append(
            {
                "tokens": tokens,
                "second_starts": len(first) + 2,
                "masked_at": masked_at,
                "labels": labels,
                "kinds": kinds,
                "is_next": n * 7 % 3 % 2,
            }
        )
    return records


@pytest.fixture(scope="module")
def records(vocabulary):
    words = [word for word in vocabulary if word not in SPECIALS.values()][:20]
    return make_records(150, words, ["zebra", "Ünbekannt", "<unk>"])


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture(scope="module")
def pairs_file(records, tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", records)


# --- the figures ---------------------------------------------------------------------------------


def one_pair_at_a_time(model, vocabulary, records):
    """What transformers answers to each pair alone, and the means over all answers."""

    def look_up(word):
        return vocabulary.get(SPECIALS.get(word, word), vocabulary["[UNK]"])

    everything, at_mask, known, right, nsp, nsp_right = [], [], [], [], [], []
    for record in records:
        tokens = [look_up(word) for word in record["tokens"]]
        segments = [int(i >= record["second_starts"]) for i in range(len(tokens))]
        with torch.no_grad():
            out = model(torch.tensor([tokens]), token_type_ids=torch.tensor([segments]))
        for place, word, kind in zip(
            record["masked_at"], record["labels"], record["kinds"], strict=True
        ):
            scores = out.prediction_logits[0, place].double()
            nats = -scores.log_softmax(0)[look_up(word)].item()
            everything.append(nats)
            right.append(scores.argmax().item() == look_up(word))
            if kind == "mask":
                at_mask.append(nats)
                if word in vocabulary:
                    known.append(nats)
        scores = out.seq_relationship_logits[0].double()
        answer = 0 if record["is_next"] else 1  # theirs: 0 is "follows"
        nsp.append(-scores.log_softmax(0)[answer].item())
        nsp_right.append(scores.argmax().item() == answer)

    def mean(values):
        return sum(values) / len(values)

    return {
        "mlm_loss": mean(everything),
        "mlm_accuracy": mean(right),
        "mlm_loss_at_mask": mean(at_mask),
        "mlm_loss_at_mask_known": mean(known),
        "nsp_loss": mean(nsp),
        "nsp_accuracy": mean(nsp_right),
        "num_predictions": len(everything),
        "num_at_mask": len(at_mask),
        "num_at_mask_known": len(known),
        "num_pairs": len(records),
    }


def as_expected(scores, expected):
    found = {name: getattr(scores, name) for name in expected}
    return found == pytest.approx(expected, abs=1e-5)


def test_every_figure_is_that_of_transformers(run, vocabulary, records, pairs_file):
    model = BertForPreTraining.from_pretrained(run / "model").eval()
    expected = one_pair_at_a_time(model, vocabulary, records)
    losses = [value for name, value in expected.items() if "mlm_loss" in name]
    assert len({round(loss, 3) for loss in losses}) == 3  # no two of them are one by chance
    assert 0 < expected["nsp_accuracy"] < 1 and expected["mlm_accuracy"] > 0
    scores = evaluate_frozen_pairs(run, pairs_file)
    assert as_expected(scores, expected)
    share = sum(record["is_next"] for record in records) / len(records)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert scores.nsp_chance_nats == pytest.approx(entropy)


def test_the_unigram_yardstick(run, vocabulary, records, pairs_file):
    counts = [n + 1 for n in load_model(run).about.token_counts]
    nats = [
        -math.log(counts[vocabulary.get(word, vocabulary["[UNK]"])] / sum(counts))
        for record in records
        for word in ("[UNK]" if label == "<unk>" else label for label in record["labels"])
    ]
    scores = evaluate_frozen_pairs(run, pairs_file)
    assert scores.unigram_nats == pytest.approx(sum(nats) / len(nats))
    assert scores.no_context_nats < scores.unigram_nats
    assert scores.nsp_overlap_nats > 0 and 0 <= scores.nsp_overlap_accuracy <= 1


def test_the_order_of_lines_does_not_matter(run, records, pairs_file, tmp_path):
    shuffled = random.Random(2).sample(records, len(records))
    assert shuffled != records
    one = evaluate_frozen_pairs(run, pairs_file)
    two = evaluate_frozen_pairs(run, write(tmp_path / "other.jsonl", shuffled))
    assert asdict(one) == pytest.approx(asdict(two), abs=1e-6)


def test_compressed_with_blank_lines(run, records, pairs_file, tmp_path):
    lines = "\n\n".join(json.dumps(record) for record in records)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    found = evaluate_frozen_pairs(run, tmp_path / "pairs.jsonl.gz")
    assert found == evaluate_frozen_pairs(run, str(pairs_file))


def test_a_word_that_is_not_known_is_the_unknown_token(run, records, tmp_path):
    def spell(word):
        def say_it(text):
            return word if text in ("zebra", "Ünbekannt", "<unk>") else text

        return [
            record | {key: [say_it(text) for text in record[key]] for key in ("tokens", "labels")}
            for record in records
        ]

    scores = [
        evaluate_frozen_pairs(run, write(tmp_path / f"{i}.jsonl", spell(word)))
        for i, word in enumerate(["<unk>", "giraffe"])
    ]
    assert scores[0] == scores[1]
    assert 0 < scores[0].num_at_mask_known < scores[0].num_at_mask < scores[0].num_predictions


GOOD = {
    "tokens": ["<cls>", "the", "<mask>", "<sep>", "river", "crosses", "<sep>"],
    "second_starts": 4,
    "masked_at": [2],
    "labels": ["valley"],
    "kinds": ["mask"],
    "is_next": 1,
}


def test_the_yardsticks_are_finite_where_an_unknown_word_is_shown(run, vocabulary, tmp_path):
    """A random word of the file's vocabulary need not be one of the model's."""
    shown = ["zebra" if word == "<mask>" else word for word in GOOD["tokens"]]
    assert GOOD["labels"][0] in vocabulary
    pairs = write(tmp_path / "pairs.jsonl", [GOOD | {"tokens": shown, "kinds": ["random"]}])
    scores = evaluate_frozen_pairs(run, pairs)
    assert math.isfinite(scores.no_context_nats)


def test_a_name_of_the_models_own_special_token_is_a_word_that_is_not_known(run, tmp_path):
    """As in any text: spelling a special token out does not make one."""
    scores = []
    for word in ("[MASK]", "[SEP]", "zebra"):
        record = GOOD | {"tokens": [word if t == "river" else t for t in GOOD["tokens"]]}
        scores.append(evaluate_frozen_pairs(run, write(tmp_path / "p.jsonl", [record])))
    assert scores[0].mlm_loss == scores[1].mlm_loss == scores[2].mlm_loss


def test_figures_without_any_answer_are_none(run, tmp_path):
    tokens = [word.replace("<mask>", "valley") for word in GOOD["tokens"]]
    kept = GOOD | {"tokens": tokens, "kinds": ["keep"]}
    scores = evaluate_frozen_pairs(run, write(tmp_path / "kept.jsonl", [kept]))
    assert scores.mlm_loss_at_mask is scores.mlm_loss_at_mask_known is None
    assert (scores.num_predictions, scores.num_at_mask) == (1, 0)
    unknown = GOOD | {"labels": ["zebra"]}
    scores = evaluate_frozen_pairs(run, write(tmp_path / "unknown.jsonl", [unknown]))
    assert scores.mlm_loss_at_mask == scores.mlm_loss
    assert scores.mlm_loss_at_mask_known is None and scores.num_at_mask_known == 0


def test_what_is_printed(run, pairs_file, bertmill):
    scores = evaluate_frozen_pairs(run, pairs_file)
    status, out, err = bertmill(run, pairs_file)
    assert (status, err) == (0, "")
    assert f"MLM loss {scores.mlm_loss:.3f}" in out
    assert f"MLM loss {scores.mlm_loss_at_mask:.3f} at the mask token" in out
    assert f"{scores.mlm_loss_at_mask_known:.3f} without unknown words" in out
    assert f"NSP loss {scores.nsp_loss:.3f}" in out
    status, out, err = bertmill(run, pairs_file, "--json")
    assert (status, err) == (0, "") and json.loads(out) == asdict(scores)


def test_model_folder_and_export_give_the_same(run, pairs_file, tmp_path):
    exported = package.export_huggingface(run, tmp_path / "exported")
    scores = evaluate_frozen_pairs(run, pairs_file)
    assert evaluate_frozen_pairs(run / "model", pairs_file) == scores
    assert evaluate_frozen_pairs(exported, pairs_file) == scores


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM])
def test_folders_of_transformers(kind, run, vocabulary, records, pairs_file, tmp_path):
    torch.manual_seed(4)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    model = kind(BertConfig(**sizes, num_hidden_layers=1, initializer_range=0.3))
    model.save_pretrained(tmp_path / "theirs")
    load_model(run).tokenizer.save(tmp_path / "theirs")
    whole = BertForPreTraining(model.config).eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    expected = one_pair_at_a_time(whole, vocabulary, records)
    if kind is BertForMaskedLM:
        expected |= {"nsp_loss": None, "nsp_accuracy": None}
    expected |= {"unigram_nats": None, "no_context_nats": None, "nsp_overlap_nats": None}
    assert as_expected(evaluate_frozen_pairs(tmp_path / "theirs", pairs_file), expected)


# --- what is refused -----------------------------------------------------------------------------


def test_pieces_of_words_are_refused(small_run, pairs_file, refused):
    args = [small_run.folder, pairs_file]
    refused(args, small_run.folder, "pieces", "tokenizer.kind is word", "`held_out`")


def test_a_folder_without_the_masked_token_head_is_refused(run, pairs_file, refused, tmp_path):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    tokenizer = load_model(run).tokenizer
    BertModel(BertConfig(vocab_size=tokenizer.size, num_hidden_layers=1, **sizes)).save_pretrained(
        "theirs"
    )
    tokenizer.save(tmp_path / "theirs")
    refused(["theirs", pairs_file], "no masked-token head")


@pytest.mark.parametrize("content", ["", "\n", " \n\n\n"])
def test_an_empty_file_is_refused(content, run, refused, tmp_path):
    (tmp_path / "empty.jsonl").write_text(content, "utf-8")
    refused([run, "empty.jsonl"], "empty.jsonl: has no pairs", "; ")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("pairs.txt", b"the river", "is not a pair with masks"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() * 99)[:-9], "cannot be read"),
        ("latin.jsonl", b'{"tokens": ["\xe9"]}\n', "UTF-8"),
    ],
)
def test_files_that_are_none(name, content, part, run, refused, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused([run, name], name, part, "; ")


def test_longer_than_the_models_positions(run, refused, tmp_path):
    fits = GOOD | {"tokens": [*GOOD["tokens"][:-1], *["river"] * (POSITIONS - 7), "<sep>"]}
    assert len(fits["tokens"]) == POSITIONS
    evaluate_frozen_pairs(run, write(tmp_path / "fits.jsonl", [fits]))
    long = GOOD | {"tokens": [*fits["tokens"][:-1], "river", "<sep>"]}
    write(tmp_path / "long.jsonl", [fits, long])
    refused(
        [run, "long.jsonl"],
        f"long.jsonl, line 2: has {POSITIONS + 1} tokens, but the model takes {POSITIONS}",
    )


T = GOOD["tokens"]
MALFORMED = {
    "empty": {"tokens": []},
    "no-cls": {"tokens": ["the", *T[1:]]},
    "no-middle-sep": {"tokens": [*T[:3], "the", *T[4:]]},
    "no-last-sep": {"tokens": [*T[:-1], "the"]},
    "numbers": {"tokens": [1, 2, 3, 4, 5, 6, 7]},
    "a-number": {"tokens": [*T[:5], 5, "<sep>"]},
    "null-word": {"tokens": [*T[:5], None, "<sep>"]},
    "nested": {"tokens": [*T[:5], ["x"], "<sep>"]},
    "tokens-text": {"tokens": " ".join(T)},
    "tokens-null": {"tokens": None},
    "tokens-object": {"tokens": dict.fromkeys(T, 1)},
    "half-a-character": {"tokens": [*T[:5], "\ud800", "<sep>"]},
    "second-0": {"second_starts": 0},
    "second-1": {"second_starts": 1},
    "second-negative": {"second_starts": -3},
    "second-behind": {"second_starts": 7},
    "second-elsewhere": {"second_starts": 3},
    "second-real": {"second_starts": 4.0},
    "second-text": {"second_starts": "4"},
    "second-true": {"second_starts": True},
    "second-huge": {"second_starts": 2**80},
    "masks-none": {"masked_at": [], "labels": [], "kinds": []},
    "masks-too-few": {"masked_at": []},
    "masks-too-many": {"masked_at": [1, 2]},
    "mask-at-cls": {"masked_at": [0]},
    "mask-at-last-sep": {"masked_at": [6]},
    "mask-at-middle-sep": {"masked_at": [3]},
    "mask-behind": {"masked_at": [70]},
    "mask-negative": {"masked_at": [-2]},
    "mask-real": {"masked_at": [2.0]},
    "mask-number": {"masked_at": 2},
    "mask-object": {"masked_at": {"2": 2}},
    "mask-huge": {"masked_at": [2**80]},
    "masks-falling": {"masked_at": [4, 2], "labels": ["a", "b"], "kinds": ["keep", "mask"]},
    "masks-twice": {"masked_at": [2, 2], "labels": ["a", "b"], "kinds": ["mask", "mask"]},
    "labels-too-many": {"labels": ["crane", "river"]},
    "labels-number": {"labels": [3]},
    "labels-text": {"labels": "x"},
    "labels-object": {"labels": {"crane": 1}},
    "labels-null": {"labels": None},
    "label-half-a-character": {"labels": ["\udfff"]},
    "kinds-unknown": {"kinds": ["hide"]},
    "kinds-list": {"kinds": [["mask"]]},
    "kinds-text": {"kinds": "mask"},
    "kinds-object": {"kinds": {"mask": 1}},
    "kinds-null": {"kinds": [None]},
    "next-2": {"is_next": 2},
    "next-text": {"is_next": "1"},
    "next-null": {"is_next": None},
    "next-list": {"is_next": [1]},
    "next-nan": {"is_next": float("nan")},
}
LINES = {
    "no-json": "{",
    "text": "the river",
    "list": "[1, 2]",
    "number": "3",
    "null": "null",
    "object": "{}",
    "deep": "[" * 100_000,
    "long-number": "9" * 10_000,
    **{f"without-{key}": json.dumps({k: GOOD[k] for k in GOOD if k != key}) for key in GOOD},
    **{name: json.dumps(GOOD | changes) for name, changes in MALFORMED.items()},
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_malformed_line_is_refused_by_its_number(line, run, refused, tmp_path):
    good = json.dumps(GOOD)
    (tmp_path / "pairs.jsonl").write_text(f"{good}\n\n{line}\n{good}\n", "utf-8")
    refused([run, "pairs.jsonl"], "pairs.jsonl, line 3: ", "; ")


words = st.sampled_from(["<cls>", "<sep>", "<mask>", "<unk>", "[SEP]", "river", "zebra", "keep"])
json_values = words | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


places = [(key, None) for key in GOOD]
places += [(key, i) for key in GOOD if isinstance(GOOD[key], list) for i in range(len(GOOD[key]))]


@examples(200)
@given(place=st.sampled_from(places), value=json_values)
def test_any_change_is_scored_or_refused_by_its_line(run, tmp_path_factory, place, value):
    """Change a whole field, or one item of it: no traceback, no number that is none."""
    key, i = place
    if i is not None:
        value = [*GOOD[key][:i], value, *GOOD[key][i + 1 :]]
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    write(path, [GOOD | {key: value}])
    refused = ""
    try:
        scores = evaluate_frozen_pairs(run, path)
    except (InputError, CorpusError) as error:
        refused = str(error)
    if refused:
        assert "mutated.jsonl, line 1: " in refused
    else:
        assert scores.num_predictions == scores.num_pairs == 1
        assert all(math.isfinite(x) for x in asdict(scores).values() if x is not None)


# --- the real file -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_file_is_read_whole(shared_data, tmp_path):
    """An untrained model knows nothing: every word of the vocabulary is as likely."""
    path = shared_data / "judge" / "wikitext-2-valid.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        words = {word for line in stream for word in json.loads(line)["labels"]}
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = train_tokenizer(
        [" ".join(sorted(words))], TokenizerSection(kind="word", min_frequency=1, **special)
    )
    shape = load_recipe("tiny").model.model_dump() | {"hidden_size": 16, "num_hidden_layers": 1}
    section = ModelSection(**shape | {"intermediate_size": 32})
    model = PretrainingModel(section, tokenizer.size)
    initialize(model, section, torch.Generator().manual_seed(1))
    save_model(tmp_path, model, tokenizer, None)
    scores = evaluate_frozen_pairs(tmp_path, path)
    assert (scores.num_predictions, scores.num_pairs) == (31_803, 4_609)
    assert scores.num_at_mask < scores.num_predictions
    assert scores.mlm_loss == pytest.approx(math.log(tokenizer.size), abs=0.1)
    assert scores.nsp_loss == pytest.approx(math.log(2), abs=0.02)
