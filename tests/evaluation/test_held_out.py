"""`evaluate --held-out`: the figures of the run's own validation, and of transformers."""

import io
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from rectangles import pad_batch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from transformers.utils import logging

import bertmill as package
from bertmill.config import MaskingSection, PairsSection, TextSection, TokenizerSection
from bertmill.data.batch import Batches
from bertmill.data.prepare import prepare
from bertmill.errors import BertmillError, InputError
from bertmill.model.folder import load_model

logging.set_verbosity_error()
logging.disable_progress_bar()

SETTINGS = [
    "tokenizer.vocab_size=200",
    "pairs.max_length=40",
    "masking.mask_fraction=0.2",
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.validation_pairs=1000000",
    "schedule.warmup_steps=2",
    "optimizer.lr=1e-3",
]
WHO = ["The river", "A crane", "My sister", "The old farmer", "Nobody"]
DOES = ["follows the valley", "remembers two horses", "crosses a long road", "feeds its shadow"]
DOCUMENTS = [
    " ".join(f"{WHO[(d + s) % 5]} {DOES[(d * s) % 4]} in year {d * 7 + s}." for s in range(12))
    for d in range(90)
]
YARDSTICKS = ["unigram_nats", "no_context_nats", "nsp_overlap_nats", "nsp_overlap_accuracy"]


@pytest.fixture(scope="module")
def held_out_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("held-out") / "held-out.txt"
    # More pairs than are scored at once, and none of the corpus's documents.
    path.write_text("\n\n".join(DOCUMENTS), "utf-8")
    return path


@pytest.fixture(scope="module")
def run(corpus_file, held_out_file, tmp_path_factory):
    """A run that validates on all of the file."""
    return package.pretrain(
        str(corpus_file),
        "tiny",
        held_out=held_out_file,
        out=tmp_path_factory.mktemp("runs") / "run",
        steps=6,
        settings=SETTINGS,
    )


@pytest.fixture(scope="module")
def scores(run, held_out_file):
    return package.evaluate_held_out(run.folder, held_out_file)


@pytest.fixture
def copied_model(run, tmp_path):
    return shutil.copytree(run.folder / "model", tmp_path / "copied-model")


def theirs(kind, folder, tokenizer, seed=3, **changes):
    """A folder as transformers saves it, with our tokenizer and nothing about its training."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": tokenizer.size, "hidden_size": 16, "intermediate_size": 24}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    model = kind(BertConfig(**sizes | changes)).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder, model


# --- the figures ---------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_runs_last_validation(run, scores):
    assert asdict(scores) == asdict(run.outcome.held_out)
    assert scores.num_pairs > 128  # several batches of those that are scored at once
    assert None not in asdict(scores).values()


def test_run_model_folder_and_export_give_the_same_bytes(run, held_out_file, bertmill, tmp_path):
    assert bertmill("export", run.folder, "--to", "huggingface", "--out", "exported")[0] == 0
    printed = []
    for folder in (run.folder, run.folder / "model", tmp_path / "exported"):
        status, out, _ = bertmill("evaluate", folder, "--held-out", held_out_file, "--json")
        assert status == 0
        printed.append(out)
    assert len(set(printed)) == 1 and printed[0].count("\n") == 1
    assert json.loads(printed[0]) == asdict(run.outcome.held_out)


def test_the_figures_do_not_depend_on_where_the_text_lies(run, scores, held_out_file, tmp_path):
    elsewhere = shutil.copy(held_out_file, tmp_path / "other.txt")
    assert package.evaluate_held_out(str(run.folder), [str(elsewhere)]) == scores


def test_what_is_printed(run, scores, held_out_file, bertmill):
    status, out, err = bertmill("evaluate", run.folder, "--held-out", held_out_file)
    assert (status, err) == (0, "")
    assert f"MLM loss {scores.mlm_loss:.3f} (no context {scores.no_context_nats:.3f}; " in out
    assert f"of {scores.num_predictions:,} masks right" in out
    assert f"NSP loss {scores.nsp_loss:.3f}" in out and f"of {scores.num_pairs:,} pairs" in out


def by_transformers(model, batches):
    """Sums over padded rectangles, divided once: loss and accuracy of both tasks."""
    mlm, mlm_right, nsp, nsp_right = [], [], [], []
    for batch in batches:
        padded = pad_batch(batch, max(batch.lengths), 64, 0)
        tokens, positions = torch.tensor(padded.tokens), torch.tensor(padded.masked_positions)
        with torch.no_grad():
            out = model(
                input_ids=tokens,
                token_type_ids=torch.tensor(padded.segments),
                attention_mask=(
                    torch.arange(tokens.shape[1]) < torch.tensor(padded.valid_lengths)[:, None]
                ).long(),
            )
        real = torch.tensor(padded.mask_weights) > 0
        rows = torch.arange(len(tokens))[:, None].expand_as(positions)[real]
        logits = out.prediction_logits[rows, positions[real]]
        labels = torch.tensor(padded.masked_labels)[real]
        mlm.append(cross_entropy(logits, labels, reduction="none"))
        mlm_right.append(logits.argmax(-1) == labels)
        order = 1 - torch.tensor(padded.next_sentence_labels)  # theirs: 0 = the next sentence
        logits = out.seq_relationship_logits
        nsp.append(cross_entropy(logits, order, reduction="none"))
        nsp_right.append(logits.argmax(-1) == order)
    return tuple(
        torch.cat(parts).double().mean().item() for parts in (mlm, mlm_right, nsp, nsp_right)
    )


def pairs_of(folder, text_file, pairs, masking, place):
    """The held-out pairs of a text, in batches of another size than the judge's."""
    loaded = load_model(folder)
    tokenizer = TokenizerSection(path=str(loaded.folder))
    store = prepare([str(text_file)], place, TextSection(held_out_fraction=0.0), tokenizer)
    batches = Batches(store.train, loaded.tokenizer, pairs, masking, 7, 0, "text")
    return [
        batches.batch_of(np.arange(i, min(i + 7, batches.num_examples)))
        for i in range(0, batches.num_examples, 7)
    ]


def test_transformers_computes_the_same_from_a_run(run, scores, held_out_file, tmp_path):
    folder = run.folder / "model"
    about = load_model(folder).about
    batches = pairs_of(folder, held_out_file, about.pairs, about.masking, tmp_path / "store")
    model = BertForPreTraining.from_pretrained(folder).eval()
    expected = by_transformers(model, batches)
    found = (scores.mlm_loss, scores.mlm_accuracy, scores.nsp_loss, scores.nsp_accuracy)
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(len(batch.masked_labels) for batch in batches) == scores.num_predictions


# --- folders of other programs -------------------------------------------------------------------


def evaluate_and_listen(folder, held_out_file, **more):
    stream = io.StringIO()
    return package.evaluate_held_out(
        folder, held_out_file, stream=stream, **more
    ), stream.getvalue()


def test_a_folder_that_does_not_say_how_it_was_trained(run, held_out_file, tmp_path):
    tokenizer = load_model(run.folder).tokenizer
    folder, model = theirs(BertForPreTraining, tmp_path / "theirs", tokenizer)
    scores, said = evaluate_and_listen(folder, held_out_file)
    assert [getattr(scores, name) for name in YARDSTICKS] == [None] * 4
    line = next(line for line in said.splitlines() if "does not say how it was trained" in line)
    assert str(folder) in line
    for default in ("sentencex", "segments", "128 tokens", "15%"):
        assert default in line
    batches = pairs_of(folder, held_out_file, PairsSection(), MaskingSection(), tmp_path / "store")
    found = (scores.mlm_loss, scores.mlm_accuracy, scores.nsp_loss, scores.nsp_accuracy)
    assert found == pytest.approx(by_transformers(model, batches), abs=1e-5)
    shares = np.concatenate([batch.next_sentence_labels for batch in batches]).mean()
    chance = -sum(p * np.log(p) for p in (shares, 1 - shares))
    assert scores.nsp_chance_nats == pytest.approx(chance)


def test_the_defaults_give_way_to_the_models_positions(run, held_out_file, tmp_path):
    tokenizer = load_model(run.folder).tokenizer
    folder, _ = theirs(
        BertForPreTraining, tmp_path / "theirs", tokenizer, max_position_embeddings=24
    )
    _, said = evaluate_and_listen(folder, held_out_file)
    assert "24 tokens" in said
    with pytest.raises(BertmillError, match=r"max_length=25 .*max_position_embeddings=24"):
        package.evaluate_held_out(folder, held_out_file, settings=["pairs.max_length=25"])


def test_a_folder_without_yardsticks_is_printed(run, held_out_file, tmp_path, bertmill):
    folder, _ = theirs(BertForPreTraining, tmp_path / "theirs", load_model(run.folder).tokenizer)
    status, out, err = bertmill("evaluate", folder, "--held-out", held_out_file)
    assert (status, err) == (0, "")
    assert "no context" not in out and "shared words" not in out and "label frequencies" in out
    status, out, err = bertmill("evaluate", folder, "--held-out", held_out_file, "--json")
    assert status == 0 and "does not say how it was trained" in err
    assert json.loads(out)["unigram_nats"] is json.loads(out)["no_context_nats"] is None


def test_a_masked_lm_folder_has_no_nsp_loss(run, held_out_file, tmp_path):
    tokenizer = load_model(run.folder).tokenizer
    folder, model = theirs(BertForMaskedLM, tmp_path / "theirs", tokenizer)
    scores, said = evaluate_and_listen(folder, held_out_file)
    assert scores.nsp_loss is scores.nsp_accuracy is None
    assert "no next-sentence head" in said
    whole = BertForPreTraining(model.config).eval()
    missing, unexpected = whole.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all("pooler" in key or "seq_rel" in key for key in missing)
    batches = pairs_of(folder, held_out_file, PairsSection(), MaskingSection(), tmp_path / "store")
    expected = by_transformers(whole, batches)
    assert (scores.mlm_loss, scores.mlm_accuracy) == pytest.approx(expected[:2], abs=1e-5)


def test_a_masked_lm_folder_is_printed_without_nsp(run, held_out_file, tmp_path, bertmill):
    folder, _ = theirs(BertForMaskedLM, tmp_path / "theirs", load_model(run.folder).tokenizer)
    status, out, _ = bertmill("evaluate", folder, "--held-out", held_out_file, "--json")
    assert status == 0
    assert json.loads(out)["nsp_loss"] is json.loads(out)["nsp_accuracy"] is None
    assert "NSP loss" not in bertmill("evaluate", folder, "--held-out", held_out_file)[1].replace(
        "no NSP loss", ""
    )


def test_a_folder_without_the_masked_token_head(run, held_out_file, tmp_path, refused):
    folder, _ = theirs(BertModel, tmp_path / "theirs", load_model(run.folder).tokenizer)
    refused(["evaluate", folder, "--held-out", held_out_file], folder, "no masked-token head", "; ")


def test_a_model_of_the_quick_recipe_is_judged_too(corpus_file, held_out_file, tmp_path):
    """Rotary positions: not for transformers, but its own validation tells."""
    run = package.pretrain(
        str(corpus_file),
        "quick",
        held_out=held_out_file,
        out=tmp_path / "run",
        steps=2,
        settings=[*SETTINGS[:6], "train.batch_size=8", "train.validation_pairs=1000000"],
    )
    found = package.evaluate_held_out(run.folder, held_out_file)
    assert asdict(found) == asdict(run.outcome.held_out)


def test_a_model_without_pairs(corpus_file, held_out_file, tmp_path):
    run = package.pretrain(
        str(corpus_file),
        "tiny",
        held_out=held_out_file,
        out=tmp_path / "run",
        steps=2,
        settings=[*SETTINGS, "pairs.kind=none"],
    )
    found = package.evaluate_held_out(run.folder, held_out_file)
    assert asdict(found) == asdict(run.outcome.held_out)
    assert found.num_pairs == 0 and found.nsp_loss is None and found.nsp_chance_nats is None


# --- settings ------------------------------------------------------------------------------------


def test_masking_settings_apply(run, scores, held_out_file):
    found = package.evaluate_held_out(
        run.folder, held_out_file, settings=["masking.mask_fraction=0.4"]
    )
    assert found.num_pairs == scores.num_pairs
    assert found.num_predictions == pytest.approx(2 * scores.num_predictions, rel=0.05)


def test_pairs_settings_apply(run, scores, held_out_file):
    found = package.evaluate_held_out(
        run.folder, held_out_file, settings=["pairs.max_length=20", "pairs.kind=none"]
    )
    assert found.nsp_loss is None and found.num_pairs == 0 and found.mlm_loss > 0
    always = package.evaluate_held_out(
        run.folder,
        held_out_file,
        settings=["pairs.kind=sentences", "pairs.next_fraction=1"],
    )
    assert always.nsp_chance_nats == 0.0 < scores.nsp_chance_nats


def test_text_settings_apply(run, scores, held_out_file, tmp_path):
    rows = [{"body": text} for text in held_out_file.read_text("utf-8").split("\n\n")]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = package.evaluate_held_out(run.folder, lines, settings=["text.field=body"])
    assert found == scores
    with pytest.raises(BertmillError, match="has no column 'text'"):
        package.evaluate_held_out(run.folder, lines)


@pytest.mark.parametrize(
    "setting",
    [
        "tokenizer.vocab_size=50",
        "model.hidden_size=32",
        "train.batch_size=4",
        "optimizer.lr=1",
        "name=other",
        "textfield=body",
    ],
)
def test_other_settings_are_refused(setting, run, held_out_file, refused):
    refused(
        ["evaluate", run.folder, "--held-out", held_out_file, "--set", setting],
        f"--set {setting}",
        "text, pairs or masking",
    )


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("masking.mask_fraction=2", "masking.mask_fraction"),
        ("pairs.max_len=32", "max_length"),
        ("text.sentences=none", "text.sentences"),
        ("pairs.max_length=4096", "max_position_embeddings"),
    ],
)
def test_wrong_values_are_refused(setting, part, run, held_out_file, refused):
    refused(["evaluate", run.folder, "--held-out", held_out_file, "--set", setting], part, "; ")


# --- what is refused -----------------------------------------------------------------------------


def test_one_of_the_options(run, held_out_file, refused):
    refused(["evaluate", run.folder], "--held-out, --minimal-pairs, --tasks")
    both = ["--held-out", held_out_file, "--minimal-pairs", "pairs.jsonl"]
    refused(["evaluate", run.folder, *both], "--held-out, --minimal-pairs, --tasks")
    with pytest.raises(InputError, match="`held_out`: is missing"):
        package.evaluate_held_out(run.folder, [])


def test_text_and_models_that_are_not_there(run, held_out_file, refused, tmp_path):
    refused(["evaluate", run.folder, "--held-out", "gone.txt"], "gone.txt: does not exist")
    refused(["evaluate", "gone", "--held-out", held_out_file], "gone: does not exist")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    refused(["evaluate", run.folder, "--held-out", "empty.txt"], "empty.txt", "; ")
    with pytest.raises(BertmillError, match="is not a device"):
        package.evaluate_held_out(run.folder, held_out_file, device="nonsense")


def test_a_single_document_is_refused_as_a_corpus_would_be(run, bertmill, tmp_path):
    (tmp_path / "one.txt").write_text("The river crosses the valley. It is wide. " * 9, "utf-8")
    status, _, err = bertmill("evaluate", run.folder, "--held-out", "one.txt")
    assert status == 2 and err.count("\n") == 1
    assert "one.txt: is a single document" in err
    args = ["--held-out", "one.txt", "--set", "pairs.kind=none"]
    assert bertmill("evaluate", run.folder, *args)[0] == 0


def test_a_store_is_not_read_for_its_vocabulary(run, corpus_file, refused):
    """A prepared store is a folder with a text file in it, which is not the text it was made of."""
    settings = ["tokenizer.vocab_size=100"]
    package.prepare(str(corpus_file), "store", "tiny", settings=settings)
    args = ["evaluate", run.folder, "--held-out", "store", "--set", "pairs.kind=none"]
    refused(args, "store", "; ")


def about_with(**changes):
    """Edit ``bertmill.json``; a dotted name goes one level down, ``drop`` takes a key out."""

    def edit(text):
        about = json.loads(text)
        for name, value in changes.items():
            *above, key = name.split("__")
            owner = about[above[0]] if above else about
            if value == "drop":
                del owner[key]
            else:
                owner[key] = value(owner.get(key)) if callable(value) else value
        return json.dumps(about)

    return edit


HOSTILE = {
    "empty": lambda text: "",
    "no-json": lambda text: "{",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: "[]",
    "null": lambda text: "null",
    "empty-object": lambda text: "{}",
    "deep": lambda text: "[" * 100_000,
    "counts-short": about_with(token_counts=lambda counts: counts[:-1]),
    "counts-long": about_with(token_counts=lambda counts: [*counts, 1]),
    "counts-none": about_with(token_counts=None),
    "counts-empty": about_with(token_counts=[]),
    "counts-text": about_with(token_counts=lambda counts: ["1"] * len(counts)),
    "counts-real": about_with(token_counts=lambda counts: [0.5] * len(counts)),
    "counts-negative": about_with(token_counts=lambda counts: [-5, *counts[1:]]),
    "counts-huge": about_with(token_counts=lambda counts: [2**70, *counts[1:]]),
    "counts-nan": about_with(token_counts=lambda counts: [float("nan"), *counts[1:]]),
    "weights-nan": about_with(overlap_weights=lambda weights: [float("nan"), *weights[1:]]),
    "weights-infinite": about_with(overlap_weights=lambda weights: [float("inf"), *weights[1:]]),
    "weights-short": about_with(overlap_weights=lambda weights: weights[:-1]),
    "weights-empty": about_with(overlap_weights=[]),
    "weights-huge": about_with(overlap_weights=lambda weights: [1e308] * len(weights)),
    "weights-text": about_with(overlap_weights="eight"),
    "unknown-key": about_with(surprise=1),
    "unknown-key-below": about_with(pairs__surprise=1),
    "text-missing": about_with(text="drop"),
    "masking-list": about_with(masking=[]),
    "mask-fraction-nan": about_with(masking__mask_fraction=float("nan")),
    "mask-fraction-2": about_with(masking__mask_fraction=2.0),
    "mask-shares": about_with(masking__mask_token_fraction=0.9, masking__random_token_fraction=0.9),
    "max-length-text": about_with(pairs__max_length="40"),
    "max-length-1": about_with(pairs__max_length=1),
    "kind": about_with(pairs__kind="triples"),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE)
def test_hostile_about_is_refused(edit, copied_model, held_out_file, refused):
    path = copied_model / "bertmill.json"
    text = edit(path.read_text("utf-8"))
    path.write_text(text, "utf-8")
    refused(["evaluate", copied_model, "--held-out", held_out_file], path, "; ")


def test_about_that_is_not_utf8_is_refused(copied_model, held_out_file, refused):
    (copied_model / "bertmill.json").write_bytes(b'{"text": "\xff"}')
    refused(["evaluate", copied_model, "--held-out", held_out_file], "bertmill.json", "; ")


def test_a_longer_max_length_than_the_models_positions_is_fitted(copied_model, held_out_file):
    """As where nothing is said: the folder, not the user, asks for more than there is."""
    path = copied_model / "bertmill.json"
    path.write_text(about_with(pairs__max_length=4096)(path.read_text("utf-8")), "utf-8")
    assert package.evaluate_held_out(copied_model, held_out_file).num_pairs > 0
