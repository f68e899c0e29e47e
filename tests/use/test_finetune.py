"""Fine-tuning: it learns what can be learned, as transformers would, and says what it did."""

import io
import json
import random
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, BertForTokenClassification
from transformers.utils import logging

import bertmill as package
from bertmill.config import ModelSection
from bertmill.errors import InputError, RunError
from bertmill.model.folder import load_model, save_model
from bertmill.model.pooling import longest_text
from bertmill.model.task import Task, TaskModel
from bertmill.train.progress import RunProgress
from bertmill.train.signals import StopRequest
from bertmill.use import finetune as tuning
from bertmill.use.examples import (
    Columns,
    Examples,
    read_examples,
    read_similar,
    targets_of,
    task_of,
)
from bertmill.use.finetune import learn_task, task_loss
from bertmill.use.knobs import FinetuneKnobs
from bertmill.use.predict import compute_outputs, make_inputs

logging.set_verbosity_error()
logging.disable_progress_bar()

PLAIN = ["valley", "bridge", "market", "winter", "shadow", "year"]
KNOBS = {"lr": 0.01, "batch_size": 16, "epochs": 6}


def draw_rows(kind, count, seed):
    """Four words, of which one decides: `river` in two of five, else `road`."""
    draw = random.Random(seed)
    for _ in range(count):
        wet = draw.random() < 0.4
        words = [*draw.sample(PLAIN, 3), "river" if wet else "road"]
        draw.shuffle(words)
        if kind == "words":
            # `sistering` is three pieces and is always T, so a word has more pieces than labels.
            words.insert(draw.randrange(5), "sistering")
            names = {"river": "R", "sistering": "T"}
            yield {"words": words, "labels": [names.get(word, "O") for word in words]}
        elif kind == "regression":
            yield {"text": " ".join(words), "label": 4.5 + 2 * wet}
        else:
            yield {"text": " ".join(words), "label": "wet" if wet else "dry"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Names of the files of each kind, for training and to choose by."""
    place = tmp_path_factory.mktemp("examples")
    names = {}
    for kind in ("classification", "regression", "words"):
        for split, count in (("train", 128), ("dev", 48)):
            path = place / f"{kind}-{split}.jsonl"
            rows = draw_rows(kind, count, split)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            names[kind, split] = str(path)
    return names


@pytest.fixture
def tune(small_run, files, tmp_path):
    def tune(kind="classification", name="tuned", **knobs):
        both = files[kind, "train"], files[kind, "dev"]
        return package.finetune(small_run.folder, *both, tmp_path / name, **(KNOBS | knobs))

    return tune


@pytest.fixture
def loaded(small_run):
    return load_model(small_run.folder)


def learn(loaded, task, train, dev, test=None, **knobs):
    silent = RunProgress(io.StringIO())
    tuned = learn_task(loaded, task, train, dev, FinetuneKnobs(**knobs), silent, test)
    return tuned.model, tuned.history


def read(files, kind, split):
    return read_examples(files[kind, split], Columns(), None)


# --- what is learned -----------------------------------------------------------------------------


def test_classes_are_learned(tune, files):
    tuned = tune()
    dev = read(files, "classification", "dev")
    predicted = [p.label for p in package.load(tuned.folder).predict(dev.first)]
    right = np.mean([one == other for one, other in zip(predicted, dev.labels, strict=True)])
    majority = max(dev.labels.count(name) for name in ("wet", "dry")) / len(dev)
    assert right > 0.95 > 0.8 > majority
    assert right == max(epoch.dev.accuracy for epoch in tuned.epochs)
    assert (tuned.task, tuned.labels, tuned.num_train, tuned.num_dev) == (
        "classification",
        ("dry", "wet"),
        128,
        48,
    )


def test_numbers_are_learned(tune, files):
    tuned = tune("regression")
    dev = read(files, "regression", "dev")
    values = np.array(package.load(tuned.folder).predict(dev.first))
    error = np.mean((values - dev.labels) ** 2)
    assert error < 0.1 < 0.5 < np.var(dev.labels)
    best = tuned.epochs[tuned.best_epoch - 1].dev
    assert best.loss == pytest.approx(error, rel=1e-4) and best.accuracy is None
    assert best.pearson == pytest.approx(np.corrcoef(values, dev.labels)[0, 1], rel=1e-4)
    assert best.loss == min(epoch.dev.loss for epoch in tuned.epochs)


@pytest.mark.parametrize(("scale", "shift"), [(1000, 0), (0.001, 0), (1e12, 0), (1, -5000)])
def test_numbers_of_any_size_are_learned(scale, shift, small_run, files, tmp_path):
    """The same numbers in another unit are learned as well, and scored in that unit."""
    names = []
    for split in ("train", "dev"):
        labels = read(files, "regression", split)
        rows = [
            {"text": text, "label": label * scale + shift}
            for text, label in zip(labels.first, labels.labels, strict=True)
        ]
        names.append(tmp_path / f"{split}.jsonl")
        names[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tuned = package.finetune(small_run.folder, *names, tmp_path / "tuned", **KNOBS)
    dev = read_examples(str(names[1]), Columns(), None)
    values = np.array(package.load(tuned.folder).predict(dev.first))
    error = np.mean((values - dev.labels) ** 2)
    assert error < 0.1 * np.var(dev.labels)
    best = tuned.epochs[tuned.best_epoch - 1]
    assert best.dev.loss == pytest.approx(error, rel=1e-2)
    assert tuned.epochs[0].loss == pytest.approx(np.var(dev.labels), rel=0.5)


def test_words_are_learned(tune, files):
    tuned = tune("words")
    dev = read(files, "words", "dev")
    predicted = package.load(tuned.folder).predict(dev.first)
    pairs = [
        (p.label, label)
        for answers, labels in zip(predicted, dev.labels, strict=True)
        for p, label in zip(answers, labels, strict=True)
    ]
    assert np.mean([one == other for one, other in pairs]) > 0.95
    assert {one for one, _ in pairs} == {"O", "R", "T"}


def test_pairs_are_learned(small_run, tmp_path):
    """Only the second text tells; a model that reads the first alone answers at random."""
    rows = [
        {"sentence1": row["text"], "sentence2": other["text"], "label": other["label"]}
        for row, other in zip(
            draw_rows("classification", 128, 1), draw_rows("classification", 128, 2), strict=True
        )
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tuned = package.finetune(
        small_run.folder, path, path, tmp_path / "out", **KNOBS | {"epochs": 15, "patience": 15}
    )
    assert max(epoch.dev.accuracy for epoch in tuned.epochs) > 0.9
    model = package.load(tuned.folder)
    assert model.is_pair and len(model.predict(["a"], ["b"])) == 1
    with pytest.raises(InputError, match=r"fine-tuned on pairs; name .*`column_b`"):
        model.predict(["a"])


def test_a_model_of_single_texts_is_given_no_pairs(tune, tmp_path):
    folder = tune(epochs=1).folder
    with pytest.raises(InputError, match="fine-tuned on single texts"):
        package.load(folder).predict(["a"], ["b"])
    texts = tmp_path / "rows.jsonl"
    texts.write_text('{"text": "the river", "text_b": "a column like any other"}\n', "utf-8")
    assert package.predict(folder, texts, tmp_path / "one.jsonl").num_texts == 1
    with pytest.raises(InputError, match="single texts"):
        package.predict(folder, texts, tmp_path / "two.jsonl", column_b="text_b")


# --- repeatable ----------------------------------------------------------------------------------


def test_the_seed_decides_every_bit(tune):
    files = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(files))  # what the caller did with torch's own seed is nothing to it
        folder = tune(name=name, seed=seed, epochs=2).folder
        files[name] = (folder / "model.safetensors").read_bytes()
    assert files["one"] == files["again"] != files["other"]


def test_the_source_stays_as_it_is(loaded, files):
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    train = read(files, "classification", "train")
    model, _ = learn(loaded, task_of(train, ""), train, train, lr=0.01, epochs=1)
    after = loaded.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not loaded.model.training and not model.training
    state = model.state_dict()
    moved = [
        name for name in before if name in state and not torch.equal(before[name], state[name])
    ]
    assert {"encoder.embeddings.word.weight", "pooler.weight"} <= set(moved)
    assert all("encoder" in name or "pooler" in name for name in moved)


# --- the best epoch ------------------------------------------------------------------------------


def scored(model, loaded, task, examples):
    """Loss and accuracy by hand, in double precision."""
    inputs = make_inputs(loaded.tokenizer, examples, longest_text(loaded))
    logits = torch.tensor(compute_outputs(model, inputs)).double()
    targets = torch.tensor(targets_of(examples, task, "")).long()
    nats = -logits.log_softmax(-1)[torch.arange(len(targets)), targets].mean().item()
    return nats, (logits.argmax(-1) == targets).double().mean().item()


@pytest.mark.parametrize("lr", [0.01, 0.06])
def test_the_weights_are_those_of_the_best_epoch(lr, loaded, files):
    train, dev = (read(files, "classification", split) for split in ("train", "dev"))
    task = task_of(train, "")
    model, history = learn(
        loaded, task, train, dev, lr=lr, batch_size=8, epochs=8, patience=8, seed=3
    )
    qualities = [(epoch.dev.accuracy, -epoch.dev.loss) for epoch in history]
    best = history[qualities.index(max(qualities))]
    found = scored(model, loaded, task, dev)
    # Losses near 0 are differences of 32-bit numbers near 1.
    assert found == pytest.approx((best.dev.loss, best.dev.accuracy), rel=1e-5, abs=1e-7)
    others = [epoch.dev.loss for epoch in history if epoch is not best]
    assert min(abs(found[0] - loss) for loss in others) > 1e-9  # or the test would tell nothing


def scripted(monkeypatch, scores):
    """Let the dev examples be answered so well after each epoch; list the weights of each."""
    weights = []

    def score(model, *_):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return scores[len(weights) - 1]

    monkeypatch.setattr(tuning, "_score", score)
    return weights


@pytest.mark.parametrize(
    ("accuracies", "patience", "num_epochs", "best"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.7], 2, 4, 2),
        ([0.5, 0.6, 0.6, 0.7, 0.6], 2, 5, 4),
        ([0.5, 0.4, 0.4, 0.4, 0.9], 1, 2, 1),
        ([0.5, 0.4, 0.4, 0.4, 0.9], 4, 5, 5),
        ([0.9, 0.4, 0.4, 0.4, 0.4], 9, 5, 1),
    ],
)
def test_patience(accuracies, patience, num_epochs, best, monkeypatch, tune):
    scores = [tuning.DevScores(1.0, accuracy, None) for accuracy in accuracies]
    weights = scripted(monkeypatch, scores)
    tuned = tune(epochs=5, patience=patience)
    assert [epoch.epoch for epoch in tuned.epochs] == list(range(1, num_epochs + 1))
    assert tuned.best_epoch == best
    saved = load_model(tuned.folder).task_model.state_dict()
    same = [all(torch.equal(t, saved[name]) for name, t in state.items()) for state in weights]
    assert same == [epoch == best for epoch in range(1, num_epochs + 1)]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.6, 0.5, None), (0.5, 0.5, None), (0.55, 0.5, None)], 2),
        ([(0.6, None, 0.9), (0.5, None, None), (0.55, None, 0.99)], 2),
        ([(0.5, 0.5, None), (0.9, 0.6, None), (0.4, 0.5, None)], 2),
    ],
)
def test_what_is_better(scores, best, monkeypatch, tune):
    """Accuracy, then loss; of numbers, the loss alone."""
    scripted(monkeypatch, [tuning.DevScores(*values) for values in scores])
    assert tune(epochs=3, patience=3).best_epoch == best


@pytest.mark.parametrize("kind", ["classification", "regression", "words"])
def test_test_examples_choose_nothing(kind, tune, files, tmp_path):
    """What is trained is the same without them; their scores are those of the saved model."""
    with_test = tune(kind, test=files[kind, "dev"])
    without = tune(kind, name="other")
    one, other = (load_model(each.folder).task_model.state_dict() for each in (with_test, without))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (with_test.epochs, with_test.best_epoch) == (without.epochs, without.best_epoch)
    assert with_test.test == with_test.epochs[with_test.best_epoch - 1].dev
    assert (with_test.num_test, without.num_test, without.test) == (48, 0, None)


# --- as transformers does ------------------------------------------------------------------------


@pytest.fixture
def without_dropout(save_random_model, tmp_path):
    section = ModelSection(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return save_random_model(tmp_path / "source", section)


TEXTS = ["the river crosses the valley", "a market", "my sister remembers", "winter rain in year 7"]
OTHERS = ["a farmer feeds two horses", "the old bridge", "it", "its own shadow"]


@pytest.mark.parametrize("second", [None, OTHERS], ids=["singles", "pairs"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_loss_and_gradients_are_those_of_transformers(kind, second, without_dropout, tmp_path):
    labels = [0.5, 3.0, -1.0, 2.0] if kind == "regression" else ["b", "a", "c", "a"]
    examples = Examples(kind, TEXTS, second, labels)
    task = task_of(examples, "")
    model = TaskModel(without_dropout.model, task)
    torch.nn.init.normal_(model.task_head.weight, generator=torch.Generator().manual_seed(2))
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", model, without_dropout.tokenizer, None)
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "ours").train()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    batch = tokenizer(TEXTS, second, padding=True, return_tensors="pt")
    targets = torch.tensor(targets_of(examples, task, ""))
    wanted = theirs(**batch, labels=targets if kind == "regression" else targets.long()).loss
    wanted.backward()

    model.train()
    inputs = make_inputs(without_dropout.tokenizer, Examples(kind, TEXTS, second), 64)
    found = task_loss(task, inputs.outputs(model, np.arange(4)), targets) / 4
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    norms = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for ours, name in (
        ("task_head.weight", "classifier.weight"),
        ("pooler.weight", "bert.pooler.dense.weight"),
        ("encoder.embeddings.word.weight", "bert.embeddings.word_embeddings.weight"),
        (
            "encoder.blocks.0.feed_forward.input.weight",
            "bert.encoder.layer.0.intermediate.dense.weight",
        ),
    ):
        gradient = model.get_parameter(ours).grad
        assert gradient.abs().max() > 1e-4
        np.testing.assert_allclose(gradient.numpy(), norms[name].numpy(), rtol=1e-3, atol=1e-5)


def test_one_step_is_adamw_on_the_loss_of_transformers(without_dropout, tmp_path):
    """All examples in one batch, one epoch, no warm-up: the whole of what is learned."""
    examples = Examples("classification", TEXTS, OTHERS, ["b", "a", "b", "a"])
    task = task_of(examples, "")
    lr = 1e-3
    tuned, history = learn(without_dropout, task, examples, examples, epochs=1, lr=lr, batch_size=4)

    start = TaskModel(load_model(without_dropout.folder).model, task)
    (tmp_path / "start").mkdir()
    save_model(tmp_path / "start", start, without_dropout.tokenizer, None)
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "start").train()
    key = tuning.make_key(1, "task head")
    drawn = torch.empty(2, 24).normal_(std=0.02, generator=torch.Generator().manual_seed(key))
    with torch.no_grad():
        theirs.classifier.weight.copy_(drawn)
        theirs.classifier.bias.zero_()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    batch = tokenizer(TEXTS, OTHERS, padding=True, return_tensors="pt")
    loss = theirs(**batch, labels=torch.tensor([1, 0, 1, 0])).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    before = theirs.bert.pooler.dense.weight.detach().clone()
    torch.optim.AdamW(theirs.parameters(), lr=lr, weight_decay=0.01, eps=1e-6).step()
    assert history[0].loss == pytest.approx(loss.item(), rel=1e-5)
    after = theirs.bert.pooler.dense.weight.detach()
    assert (after - before).abs().max() > lr / 2
    np.testing.assert_allclose(tuned.pooler.weight.detach(), after, rtol=0, atol=lr / 50)
    np.testing.assert_allclose(
        tuned.task_head.weight.detach(), theirs.classifier.weight.detach(), rtol=0, atol=lr / 50
    )


def test_the_first_piece_has_the_label(small_run, tune):
    """Which tokens the loss is taken at, against the word_ids of transformers."""
    folder = tune("words", epochs=1).folder
    loaded = load_model(folder)
    texts = [["the", "sistering", "bridgeing"], [], ["river"], ["sistering"]]
    inputs = make_inputs(loaded.tokenizer, Examples("words", texts, None), 32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted, at = [], 0
    for words in texts:
        encoded = tokenizer(words, is_split_into_words=True)
        owners = encoded.word_ids()
        wanted += [at + owners.index(n) for n in range(len(words))]
        assert len(owners) > len(words) + 2 or len(words) < 2
        at += len(owners)
    assert inputs.answer_at.tolist() == wanted
    assert inputs.words.tolist() == list(range(5))
    assert inputs.answer_starts.tolist() == [0, 3, 3, 4, 5]

    targets = torch.tensor([0, 1, 2, 2, 0])
    theirs = BertForTokenClassification.from_pretrained(folder).eval()
    nats = 0.0
    with torch.no_grad():
        model = loaded.task_model
        found = task_loss(model.task, inputs.outputs(model, np.arange(4)), targets).item()
        for words, own in zip(texts, targets.split([3, 0, 1, 1]), strict=True):
            encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
            labels = torch.full_like(encoded["input_ids"], -100)  # as their examples do
            for n, label in enumerate(own):
                labels[0, encoded.word_ids().index(n)] = label
            if len(own):
                nats += theirs(**encoded, labels=labels).loss.item() * len(own)
    assert found == pytest.approx(nats, rel=1e-5)


# --- lengths -------------------------------------------------------------------------------------


def test_words_that_do_not_fit_have_no_answer(tune):
    model = package.load(tune("words", max_length=8, epochs=1).folder)
    words = ["river", "sistering", "road", "year", "valley"]  # 1 + 3 + 1 + 1 pieces fill 8 tokens
    answers, num_cut = model.predict_counted(Examples("words", [words, words[:4], []], None))
    assert [answer is not None for answer in answers[0]] == [True] * 4 + [False]
    assert None not in answers[1] and len(answers[1]) == 4
    assert (answers[2], num_cut) == ([], 1)
    assert [a.label for a in answers[0][:4]] == [a.label for a in answers[1]]
    # Of a word whose later pieces do not fit, the first one answers.
    assert None not in model.predict([["road"] * 5 + ["sistering"]])[0]


def test_the_length_of_the_examples_goes_with_the_folder(tune):
    folder = tune(max_length=10, epochs=1).folder
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 10
    model = package.load(folder)
    long, cut = " ".join(["road"] * 8 + ["river"] * 9), " ".join(["road"] * 8)
    found, num_cut = model.predict_counted(Examples("classification", [long, cut], None))
    assert num_cut == 1
    assert found[0].probability == pytest.approx(found[1].probability, rel=1e-6)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 10


def test_examples_are_as_long_as_those_of_pretraining(tune, loaded):
    folder = tune(epochs=1).folder
    assert longest_text(loaded) == longest_text(load_model(folder)) == 32
    texts = Examples("classification", ["road " * 30, "road " * 31], None)
    _, num_cut = package.load(folder).predict_counted(texts)
    assert num_cut == 1


def test_a_folder_that_does_not_say_takes_the_positions_of_the_model(without_dropout):
    assert longest_text(without_dropout) == 512
    assert FinetuneKnobs(max_length=512).length_for(without_dropout) == 512


def test_words_behind_the_end_of_an_example_are_not_learned(loaded):
    """Their labels would be asked of other words."""
    texts, labels = [["road"] * 40, ["river"]], [["O"] * 30 + ["X"] * 10, ["R"]]
    examples = Examples("words", texts, None, labels)
    task = task_of(examples, "")
    model, history = learn(loaded, task, examples, examples, lr=0.03, epochs=20, patience=20)
    outputs = compute_outputs(model, make_inputs(loaded.tokenizer, examples, 32))
    assert len(outputs) == 31
    assert [task.labels[i] for i in outputs.argmax(-1)] == ["O"] * 30 + ["R"]
    assert history[-1].dev.accuracy == 1


def test_texts_without_words_are_skipped(loaded):
    examples = Examples(
        "words", [[], ["road"], [], ["river"], []], None, [[], ["O"], [], ["R"], []]
    )
    _, history = learn(loaded, task_of(examples, ""), examples, examples, batch_size=1, epochs=1)
    assert np.isfinite(history[0].loss)


# --- what it writes ------------------------------------------------------------------------------


def test_the_report(tune, small_run, tmp_path):
    tuned = tune(epochs=2, seed=7)
    report = json.loads((tuned.folder / "finetune.json").read_text())
    knobs = report.pop("knobs")
    assert knobs == asdict(FinetuneKnobs(2, 2, 16, 0.01, 32, 7))
    wanted = json.loads(json.dumps(asdict(replace(tuned, folder=str(tuned.folder)))))
    assert report == wanted
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    names = {path.name for path in tuned.folder.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "bertmill.json", "finetune.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    }
    assert list(tmp_path.iterdir()) == [tuned.folder]


def test_the_rate_is_higher_the_narrower_the_encoder(monkeypatch, loaded, files):
    rates = []
    make = tuning.make_optimizer
    monkeypatch.setattr(
        tuning, "make_optimizer", lambda m, section: rates.append(section.lr) or make(m, section)
    )
    train = read(files, "classification", "train").select(range(8))
    for lr in (None, 1e-4):
        learn(loaded, task_of(train, ""), train, train, epochs=1, lr=lr)
    assert rates == pytest.approx([5e-5 * 768 / 16, 1e-4])


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refuse(refused, small_run, files):
    def refuse(*more, parts, kind="classification", model=small_run.folder):
        args = ["--train", files[kind, "train"], "--dev", files[kind, "dev"], "--out", "out"]
        refused(["finetune", model, *args, *more], *parts, "; ")

    return refuse


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "-1"),
        ("--patience", "0"),
        ("--batch-size", "0"),
        ("--lr", "0"),
        ("--lr", "-1e-3"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--max-length", "0"),
    ],
)
def test_knobs_that_are_no_number_above_0(option, value, refuse):
    refuse(option, value, parts=[f"{option}: is ", "above 0"])


@pytest.mark.parametrize("length", [1, 7, 513, 10**12])
def test_lengths_that_do_not_fit(length, small_run, files, tmp_path):
    with pytest.raises(InputError, match=f"`max_length`: is {length}; .* 512"):
        package.finetune(
            *(small_run.folder, files["words", "train"], files["words", "dev"]),
            tmp_path / "out",
            max_length=length,
        )


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("kind", ["classification", "regression", "words"])
def test_a_rate_at_which_answers_are_not_finite(epochs, kind, tune, tmp_path):
    with pytest.raises(RunError, match="not finite in epoch 1; give a lower `lr`"):
        tune(kind, lr=1e30, epochs=epochs)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_exists(refuse, tmp_path):
    (tmp_path / "out").mkdir()
    refuse(parts=["out: already exists", "--out"])


def test_files_that_are_missing(refuse, files, small_run, refused):
    refuse(parts=["gone: does not exist"], model="gone")
    train = files["classification", "train"]
    for args in (["gone.csv", train], [train, "gone.csv"]):
        names = dict(zip(("--train", "--dev"), args, strict=True))
        more = [part for pair in names.items() for part in pair]
        refused(["finetune", small_run.folder, *more, "--out", "out"], "gone.csv", "; ")
    for option in ("--train", "--dev", "--test", "--out"):
        more = {"--train": train, "--dev": train, "--out": "out", option: ""}
        args = [part for pair in more.items() for part in pair]
        refused(["finetune", small_run.folder, *args], f"{option}: has no name", "; ")


def test_dev_of_another_kind_or_with_another_number_of_texts(files, refuse, tmp_path):
    """Dev and test examples are read as those for training are."""
    for option in ("--dev", "--test"):
        refuse(option, files["words", "dev"], parts=["column", "is list, not text"])
    one, two = {"text": "a", "label": "x"}, {"text": "a", "text_b": "b", "label": "x"}
    for train, dev in ((one, two), (two, one)):
        (tmp_path / "dev.jsonl").write_text(json.dumps(dev) + "\n", "utf-8")
        examples = Examples("classification", [train["text"]], [train.get("text_b")], ["x"])
        others = examples if "text_b" in train else replace(examples, second=None)
        with pytest.raises(InputError, match=r"dev\.jsonl: does not have as many texts per row"):
            read_similar(str(tmp_path / "dev.jsonl"), Columns(), others)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_words(split, loaded):
    some = Examples("words", [["road", "river"]], None, [["O", "R"]])
    none = Examples("words", [[], []], None, [[], []])
    splits = {"train": some, "dev": some, split: none}
    with pytest.raises(InputError, match=f"`{split}`: has no labeled words; "):
        learn(loaded, Task("words", ("O", "R")), **splits)


# --- predict -------------------------------------------------------------------------------------


def test_what_predict_refuses(tune, small_run):
    model = package.load(tune(epochs=1).folder)
    with pytest.raises(InputError, match="texts: 2 second texts for 1 first ones"):
        model.predict(["a"], ["a", "b"])
    assert model.predict([]) == []
    with pytest.raises(InputError, match="half a character"):
        model.predict(["\ud800"])
    words = package.load(tune("words", name="words", epochs=1).folder)
    with pytest.raises(InputError, match="3 is not text"):
        words.predict([["a", 3]])
    with pytest.raises(InputError, match="are pairs, but the model was fine-tuned on single texts"):
        words.predict([["a"]], ["b"])
    assert words.predict([]) == [] and words.predict([[]]) == [[]]


@pytest.mark.parametrize("texts", [[None], [3], [["a"]], [b"a"]], ids=str)
def test_predict_refuses_what_is_not_text(texts, tune):
    with pytest.raises(InputError, match="is not text"):
        package.load(tune(epochs=1).folder).predict(texts)


@pytest.mark.parametrize(("kind", "texts"), [("classification", "a text"), ("words", ["a text"])])
def test_predict_refuses_a_text_in_the_place_of_a_list(kind, texts, tune):
    with pytest.raises(InputError):
        package.load(tune(kind, epochs=1).folder).predict(texts)


# --- interrupted ---------------------------------------------------------------------------------


class Interrupting(io.StringIO):
    """Presses Ctrl-C when a line with this word is written."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def write(self, text):
        if self.word in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_an_interrupt_keeps_the_best_epoch_so_far(small_run, files, tmp_path):
    both = files["classification", "train"], files["classification", "dev"]
    stream, knobs = Interrupting("epoch 2"), KNOBS | {"epochs": 9, "patience": 9}
    tuned = package.finetune(small_run.folder, *both, tmp_path / "out", stream=stream, **knobs)
    assert tuned.stopped_by == signal.SIGINT and len(tuned.epochs) == 2
    assert "finishing this step ..., then keeping the best epoch" in stream.getvalue()
    assert load_model(tmp_path / "out").task_model is not None


def test_an_interrupt_in_the_first_epoch_leaves_nothing(small_run, files, tmp_path):
    both = files["classification", "train"], files["classification", "dev"]
    loaded, stop = load_model(small_run.folder), StopRequest()
    stop.signal = signal.SIGINT
    train, dev = (read_examples(path, Columns(), None) for path in both)
    task, silent = task_of(train, both[0]), RunProgress(io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        learn_task(loaded, task, train, dev, FinetuneKnobs(**KNOBS), silent, stop=stop)
