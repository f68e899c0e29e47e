"""Fine-tuned folders: what transformers makes of ours, and what we make of its own."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from transformers.utils import logging

import bertmill as package
from bertmill.config import ModelSection, load_recipe
from bertmill.errors import ModelError
from bertmill.model.folder import load_model, save_model
from bertmill.model.task import Task, TaskModel
from bertmill.use.examples import Examples
from bertmill.use.predict import compute_outputs, make_inputs

logging.set_verbosity_error()
logging.disable_progress_bar()

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "hidden_dropout_prob": 0.1,
}
SHAPES = {
    "published": ModelSection(**SIZES),
    "quick": load_recipe("quick").model.model_copy(update=SIZES),
}
FIRST = ["The river crosses the valley.", "my sister", "", "Ünbekannte horses in year 7!", "a"]
SECOND = ["A farmer", "remembers two horses in year 7.", "the old bridge", "", "a crane"]
WORDS = [["the", "sistering", "river"], [], ["Ünbekannt", "", "a-b", "winter"]]
CLASSES = {"no": "nein", "yes": "ja, größer", "0": "LABEL_1"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows_of(kind, with_second):
    for n in range(12):
        first, second = FIRST[n % 5], SECOND[n % 5]
        if kind == "words":
            yield {"words": ["a", "sistering", "river"], "labels": ["O", "B-x", "O"]}
            continue
        label = n / 3 if kind == "regression" else list(CLASSES.values())[n % 3]
        yield {"text": first, "label": label} | ({"text_b": second} if with_second else {})


@pytest.fixture(scope="module")
def sources(save_random_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {
        name: save_random_model(place / name, section).folder for name, section in SHAPES.items()
    }


def tune(source, place, kind, with_second=False, **knobs):
    path = write(place / "examples.jsonl", rows_of(kind, with_second))
    return package.finetune(source, path, path, place / "tuned", epochs=1, **knobs).folder


def answers(loaded, first, second=None):
    """Logits as bertmill computes them."""
    examples = Examples(loaded.task_model.task.kind, first, second)
    longest = loaded.model.section.max_position_embeddings
    return compute_outputs(loaded.task_model, make_inputs(loaded.tokenizer, examples, longest))


def open_whole(kind, folder):
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def their_answers(folder, first, second=None):
    """Logits as transformers computes them, one text at a time."""
    model, tokenizer = open_whole(BertForSequenceClassification, folder)
    # Lists of one: a bare empty second text would be none to transformers.
    texts = [[[text] for text in part] for part in ([first] if second is None else [first, second])]
    rows = zip(*texts, strict=True)
    return np.stack([model(**tokenizer(*row, return_tensors="pt")).logits[0] for row in rows])


# --- ours in transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("with_second", [False, True], ids=["singles", "pairs"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_logits_of_texts_are_those_of_transformers(kind, with_second, sources, tmp_path):
    folder = tune(sources["published"], tmp_path, kind, with_second)
    loaded = load_model(folder)
    texts = (FIRST, SECOND) if with_second else (FIRST,)
    found, wanted = answers(loaded, *texts), their_answers(folder, *texts)
    assert found.shape == (5, 1 if kind == "regression" else 3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 1e-3  # or the texts would tell nothing
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == (
        "regression" if kind == "regression" else "single_label_classification"
    )
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_logits_of_words_are_those_of_transformers_at_their_first_pieces(sources, tmp_path):
    folder = tune(sources["published"], tmp_path, "words")
    model, tokenizer = open_whole(BertForTokenClassification, folder)
    wanted = []
    with torch.no_grad():
        for words in WORDS:
            inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
            logits, owners = model(**inputs).logits[0], inputs.word_ids()
            wanted += [logits[owners.index(n)] for n, word in enumerate(words) if word]
    loaded = load_model(folder)
    assert len(loaded.tokenizer.encode_batch(["sistering"])[0]) > 1
    # The empty word is none to transformers, and an unknown token to us.
    texts = [[word for word in words if word] for words in WORDS]
    np.testing.assert_allclose(answers(loaded, texts), np.stack(wanted), rtol=0, atol=1e-5)


def test_names_of_classes_are_kept(sources, tmp_path):
    folder = tune(sources["published"], tmp_path, "classification")
    model, _ = open_whole(BertForSequenceClassification, folder)
    names = sorted(CLASSES.values())
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    assert load_model(folder).task_model.task == Task("classification", tuple(names), False)
    predicted = package.load(folder).predict(FIRST)
    logits = their_answers(folder, FIRST)
    assert [p.label for p in predicted] == [names[i] for i in logits.argmax(1)]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose([p.probability for p in predicted], shares.max(1), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["classification", "regression", "words"])
def test_every_weight_comes_back(kind, shape, sources, tmp_path):
    source = load_model(sources[shape])
    task = Task(kind, () if kind == "regression" else ("b", "a"))
    model = TaskModel(source.model, task).eval()
    with torch.no_grad():
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(3))
        model.task_head.bias.normal_(generator=torch.Generator().manual_seed(4))
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", model, source.tokenizer, None)
    again = load_model(tmp_path / "saved")
    assert again.task_model.task == task
    state = again.task_model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    lacking = {"masked_token_head", "next_sentence_head"} | (
        {"pooler"} if kind == "words" else set()
    )
    assert set(again.new_parts) == lacking
    with pytest.raises(ModelError, match="masked-token head"):
        package.load(tmp_path / "saved").fill_mask("the [MASK]")


def test_the_quick_shape_predicts_the_same_when_opened_again(sources, tmp_path):
    folder = tune(sources["quick"], tmp_path, "classification", True)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertmillForSequenceClassification"]
    loaded = load_model(folder)
    found = answers(loaded, FIRST, SECOND)
    alone = [answers(loaded, [a], [b])[0] for a, b in zip(FIRST, SECOND, strict=True)]
    np.testing.assert_allclose(found, np.stack(alone), rtol=0, atol=1e-5)


# --- exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression", "words"])
def test_an_export_keeps_the_classifier(kind, sources, tmp_path):
    folder = tune(sources["published"], tmp_path, kind)
    out = package.export_huggingface(folder, tmp_path / "out")
    one, two = (load_file(path / "model.safetensors") for path in (folder, out))
    assert one.keys() == two.keys() and "classifier.weight" in two
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, out)]
    assert configs[0] == configs[1]
    texts = [["the", "river"]] if kind == "words" else FIRST
    assert package.load(out).predict(texts) == package.load(folder).predict(texts)


def test_an_export_keeps_the_length_of_examples(small_run, tmp_path):
    folder = tune(small_run.folder, tmp_path, "classification", max_length=12)
    text = " ".join(["river"] * 9 + ["horses"] * 9 + ["winter"] * 9)
    out = package.export_huggingface(folder, tmp_path / "out")
    texts = Examples("classification", [text], None)
    counted = [package.load(path).predict_counted(texts) for path in (folder, out)]
    assert counted[0] == counted[1]
    assert counted[1][1] == 1


# --- theirs in bertmill --------------------------------------------------------------------------


@pytest.fixture
def theirs(small_run, tmp_path):
    """Save a random network of transformers, with a tokenizer beside it."""
    tokenizer = load_model(small_run.folder).tokenizer

    def save(kind=BertForSequenceClassification, **more):
        torch.manual_seed(5)
        config = BertConfig(vocab_size=tokenizer.size, initializer_range=0.4, **SIZES | more)
        kind(config).save_pretrained(tmp_path / "theirs")
        tokenizer.save(tmp_path / "theirs")
        return tmp_path / "theirs"

    return save


NAMES = {0: "zebra", 1: "crane", 2: "horse"}


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        ({"id2label": NAMES}, ("zebra", "crane", "horse")),
        (
            {"id2label": NAMES, "problem_type": "single_label_classification"},
            ("zebra", "crane", "horse"),
        ),
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 12}, tuple(f"LABEL_{i}" for i in range(12))),
    ],
)
def test_classifiers_of_transformers(more, labels, theirs):
    folder = theirs(**more)
    model = package.load(folder)
    assert model.task == Task("classification", labels)
    logits = their_answers(folder, FIRST, SECOND)
    np.testing.assert_allclose(answers(load_model(folder), FIRST, SECOND), logits, atol=1e-5)
    predicted = model.predict(FIRST, SECOND)
    assert [p.label for p in predicted] == [labels[i] for i in logits.argmax(1)]


@pytest.mark.parametrize("more", [{}, {"problem_type": "regression"}], ids=["untold", "told"])
def test_regressors_of_transformers(more, theirs):
    folder = theirs(num_labels=1, **more)
    model = package.load(folder)
    assert model.task == Task("regression", ())
    np.testing.assert_allclose(
        model.predict(FIRST), their_answers(folder, FIRST)[:, 0], rtol=0, atol=1e-5
    )


def test_token_classifiers_of_transformers(theirs):
    folder = theirs(BertForTokenClassification, id2label=NAMES)
    model = package.load(folder)
    assert model.task == Task("words", ("zebra", "crane", "horse"))
    network, tokenizer = open_whole(BertForTokenClassification, folder)
    inputs = tokenizer(WORDS[0], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        best = network(**inputs).logits[0].argmax(-1)
    wanted = [NAMES[best[inputs.word_ids().index(n)].item()] for n in range(3)]
    assert [p.label for p in model.predict([WORDS[0]])[0]] == wanted


def opens_as_an_encoder(folder, refused):
    model = package.load(folder)
    assert model.task is None
    assert np.isfinite(model.embed(FIRST)).all()
    write(folder.parent / "in.jsonl", [{"text": "a"}])
    refused(["predict", folder, "in.jsonl", "--out", "o.csv"], folder, "not fine-tuned")


def test_several_labels_at_once_are_no_task_of_ours(theirs, refused):
    folder = theirs(num_labels=3, problem_type="multi_label_classification")
    opens_as_an_encoder(folder, refused)


def test_several_numbers_at_once_are_no_task_of_ours(theirs, refused):
    opens_as_an_encoder(theirs(num_labels=3, problem_type="regression"), refused)


# --- damaged folders -----------------------------------------------------------------------------


DAMAGED = {
    "null": None,
    "empty": {},
    "list": ["a", "b"],
    "text": "ab",
    "number": 2,
    "from-1": {"1": "a", "2": "b"},
    "gap": {"0": "a", "2": "b"},
    "numbers": {"0": 1, "1": 2},
    "nested": {"0": ["a"], "1": ["b"]},
    "null-name": {"0": "a", "1": None},
}


@pytest.mark.parametrize("labels", DAMAGED.values(), ids=DAMAGED)
def test_damaged_names_of_classes(labels, theirs, refused):
    path = theirs() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": labels}), "utf-8")
    refused(["inspect", path.parent], path, "id2label does not name the classes", "; ")


def test_more_names_than_outputs(theirs, refused):
    path = theirs() / "config.json"
    labels = {str(i): f"L{i}" for i in range(5)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": labels}), "utf-8")
    refused(["inspect", path.parent], "classifier.weight has shape (2, 24)", "(5, 24)", "; ")


def without(folder, *names):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(names)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias"])
def test_a_classifier_that_is_missing(name, theirs, refused):
    refused(["inspect", without(theirs(), name)], "model.safetensors", f"{name} is missing", "; ")


def test_a_pooler_that_is_missing_under_a_classifier(theirs, refused):
    refused(["inspect", without(theirs(), "bert.pooler")], "bert.pooler", "is missing", "; ")
