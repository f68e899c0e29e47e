"""The verbs that use a model: what they print, where, and how they exit."""

import io
import json
import struct
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest

import bertmill as package

EMBED_KEYS = {"out", "num_texts", "hidden_size", "num_cut", "seconds", "texts_per_second"}
FINETUNE_KEYS = {
    *(
        "folder",
        "task",
        "labels",
        "num_train",
        "num_dev",
        "num_test",
        "num_cut",
        "best_epoch",
        "epochs",
        "test",
        "stopped_by",
        "seconds",
    ),
}
PREDICT_KEYS = {"out", "task", "num_texts", "num_cut"}
PARADIGM_KEYS = {"accuracy", "num_pairs", "num_ties"}
MINIMAL_PAIR_KEYS = PARADIGM_KEYS | {
    *("num_pairs_with_unknown", "mean_paradigm_accuracy", "mask_rest_of_word", "paradigms"),
}
TASK_KEYS = {"kind", "num_train", "num_dev", "main_measure", "methods"}
TEXTS = ["the river crosses", "", "my sister watches a grey crane", "long " * 40]


@pytest.fixture
def bertmill_json(bertmill):
    """Run a verb with --json: the one object on standard output, and standard error."""

    def run(*args):
        status, out, err = bertmill(*args, "--json")
        assert status == 0, err
        assert out.endswith("\n") and out.count("\n") == 1
        return json.loads(out, parse_constant=pytest.fail), err

    return run


@pytest.fixture
def pipe(monkeypatch):
    """Put bytes on standard input."""

    def pipe(text):
        stream = io.TextIOWrapper(io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stream)

    return pipe


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    place = tmp_path_factory.mktemp("examples")
    rows = [
        {"text": f"{'river' if n % 2 else 'road'} in year {n}", "label": n % 2} for n in range(16)
    ]
    return write(place / "train.jsonl", rows)


@pytest.fixture(scope="module")
def tuned(small_run, examples, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    return package.finetune(small_run.folder, examples, examples, out, epochs=1).folder


# --- embed ---------------------------------------------------------------------------------------


def test_embed(bertmill, small_run, lines, tmp_path):
    status, out, err = bertmill("embed", small_run.folder, "in.txt", "--out", "out.npy")
    assert (status, err) == (0, "")
    assert out.startswith("4 texts, 1 of them cut, ") and out.count("\n") == 1
    assert out.endswith(" texts/s: out.npy (4 x 16)\n")
    assert np.load(tmp_path / "out.npy").shape == (4, 16)


def test_embed_json(bertmill_json, small_run, lines, tmp_path):
    args = ["embed", small_run.folder, "in.txt", "--out", "out.parquet"]
    found, err = bertmill_json(*args, "--pool", "cls", "--normalize")
    assert found.keys() == EMBED_KEYS and err == ""
    assert found | {"seconds": 0, "texts_per_second": 0} == {
        "out": "out.parquet",
        "num_texts": 4,
        "hidden_size": 16,
        "num_cut": 1,
        "seconds": 0,
        "texts_per_second": 0,
    }
    vectors = np.array(pq.read_table(tmp_path / "out.parquet")["vector"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("dash", [["-"], []], ids=["dash", "nothing"])
def test_embed_reads_standard_input(dash, bertmill_json, small_run, pipe, tmp_path):
    pipe("".join(f"{text}\n" for text in TEXTS))
    found, _ = bertmill_json("embed", small_run.folder, *dash, "--out", "out.npy")
    assert found["num_texts"] == 4
    wanted = package.load(small_run.folder).embed(TEXTS)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_embed_of_nothing(refused, small_run, pipe, tmp_path):
    pipe("")
    refused(["embed", small_run.folder, "--out", "out.npy"], "-: holds no texts", "; ")
    refused(["embed", small_run.folder, "-"], "Missing option", "--out")
    assert list(tmp_path.iterdir()) == []


# --- similar-words -------------------------------------------------------------------------------


def size_of_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


AMONG = ["--among", "a river follows the road", "--among", "the market"]


def test_similar_words(bertmill, small_run):
    text = "the river crosses"
    args = ["similar-words", small_run.folder, text, "--word", "river", *AMONG]
    status, out, err = bertmill(*args)
    assert (status, err) == (0, "")
    found = package.similar_words(small_run.folder, text, "river", among=AMONG[1::2])
    assert out == "".join(f"{s.cosine:8.4f}  {s.word}  ({s.text})\n" for s in found)
    assert out.count("\n") == 7
    assert len(bertmill(*args, "--top", "2")[1].splitlines()) == 2


def test_similar_words_json(bertmill_json, small_run, tmp_path):
    write(tmp_path / "more.jsonl", [{"text": "old bridge"}, {"text": "the river"}])
    args = ["similar-words", small_run.folder, "the river", "--word", "river", *AMONG]
    found, err = bertmill_json(*args, "--among-file", "more.jsonl", "--top", 99)
    assert (found.keys(), err) == ({"text", "word", "similar"}, "")
    assert (found["text"], found["word"]) == ("the river", "river")
    assert {frozenset(each) for each in found["similar"]} == {frozenset(("word", "text", "cosine"))}
    assert len(found["similar"]) == 11
    cosines = [each["cosine"] for each in found["similar"]]
    assert cosines == sorted(cosines, reverse=True) and cosines[0] == pytest.approx(1, abs=1e-6)
    assert found["similar"][0]["text"] == "the river"


def test_the_picture_of_similar_words(bertmill, small_run, tmp_path):
    args = ["similar-words", small_run.folder, "the river", "--word", "river", *AMONG, "--figure"]
    sizes = {}
    for top in (2, 7):
        status, out, err = bertmill(*args, f"deep/{top}.png", "--top", top)
        assert (status, err) == (0, "") and out.count("\n") == top
        sizes[top] = size_of_png(tmp_path / "deep" / f"{top}.png")
    assert sizes[2][0] == sizes[7][0] == 1080
    assert sizes[7][1] - sizes[2][1] == pytest.approx(5 * 36, abs=2)  # 0.3 inches a bar
    assert (tmp_path / "deep" / "7.png").stat().st_size > 10_000
    assert bertmill(*args, "out.svg")[0] == bertmill(*args, "out.pdf")[0] == 0
    assert "<svg" in (tmp_path / "out.svg").read_text("utf-8")
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "out.pdf", "out.svg"]


@pytest.mark.parametrize("text", ["", "a $river_1$ & <b> 100 %", "a\nnew line"])
def test_pictures_of_any_text(text, small_run, tmp_path):
    package.similar_words(
        small_run.folder, "the river", "river", among=[text], figure=tmp_path / "out.png"
    )
    size_of_png(tmp_path / "out.png")


@pytest.mark.parametrize(
    "text", ["a river " * 60, "東京 the river", "a\tb\x07"], ids=["long", "asia", "bell"]
)
def test_pictures_of_odd_texts(text, small_run, tmp_path):
    test_pictures_of_any_text(text, small_run, tmp_path)


def test_what_similar_words_refuses(refused, small_run, tmp_path):
    args = ["similar-words", small_run.folder, "the river", "--word"]
    refused([*args, "river"], "has no texts to search", "--among-file", "; ")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    refused([*args, "river", "--among-file", "empty.txt"], "has no texts to search", "; ")
    refused([*args, "river", "--among-file", "gone.txt"], "gone.txt", "; ")
    refused([*args, "sea", *AMONG], "--word: 'sea' is not in the text")
    refused([*args, "river", *AMONG, "--top", 0], "--top")
    for name in ("out.jpg", "out", ".png"):
        refused([*args, "river", *AMONG, "--figure", name], "does not end in ", ".svg or ")
    (tmp_path / "out.png").write_text("mine", "utf-8")
    refused([*args, "river", *AMONG, "--figure", "out.png"], "out.png: already exists", "; ")
    refused([*args, "river", *AMONG, "--figure", "empty.txt/o.png"], "cannot be written", "; ")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "out.png"}


# --- fill-mask -----------------------------------------------------------------------------------


def test_fill_mask_of_targets(bertmill, bertmill_json, small_run):
    args = ["fill-mask", small_run.folder, "the [MASK] crosses", "--target", "sistering"]
    status, out, err = bertmill(*args, "--target", "river")
    assert (status, err) == (0, "")
    assert sorted(line.split()[1] for line in out.splitlines()[1:]) == ["river", "sistering"]
    found, err = bertmill_json(*args, "--target", "river")
    assert (found.keys(), err) == ({"text", "masks"}, "")
    assert [each["token"] for each in found["masks"][0]] == ["river", "sistering"]


def test_fill_mask_with_words_of_pieces(bertmill, bertmill_json, small_run):
    args = ["fill-mask", small_run.folder, "the [MASK] [MASK]", "--max-pieces", 2, "--top", 3]
    found, err = bertmill_json(*args)
    assert err == "" and [len(mask) for mask in found["masks"]] == [3, 3]
    assert set(found["masks"][0][0]) == {"token", "probability"}
    status, out, _ = bertmill(*args)
    assert status == 0 and out.count("%") == 6 and "mask 2:\n" in out and "##" not in out


def test_what_fill_mask_refuses(refused, small_run):
    args = ["fill-mask", small_run.folder, "the [MASK]"]
    refused([*args, "--max-pieces", 0], "--max-pieces: is 0", "give 1 to ")
    refused([*args, "--max-pieces", 99], "--max-pieces: is 99", "give 1 to ")
    refused([*args, "--target", "東京"], "--target: ", "東京")
    refused([*args, "--target", ""], "--target: ''")
    refused(["fill-mask", small_run.folder, "the river"], "TEXT: has no [MASK]", "; ")


# --- finetune and predict ------------------------------------------------------------------------


def test_finetune(bertmill, small_run, examples, tmp_path):
    args = ["finetune", small_run.folder, "--train", examples, "--dev", examples, "--epochs", 2]
    status, out, err = bertmill(*args, "--out", "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "classification: 16 examples, 2 classes"
    assert [line.partition(":")[0] for line in lines[1:3]] == ["epoch 1", "epoch 2"]
    assert "% right" in lines[1]
    assert lines[3].startswith("dev chose the epoch, so its score is a little too good; ")
    assert lines[4] in ("best: epoch 1: out", "best: epoch 2: out") and len(lines) == 5
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_finetune_scores_test_examples(bertmill, small_run, examples, tmp_path):
    """They are scored in the end, with the weights of the epoch that dev chose."""
    args = ["finetune", small_run.folder, "--train", examples, "--dev", examples, "--epochs", 2]
    status, out, err = bertmill(*args, "--test", examples, "--out", "out")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    best = int(lines[-1].split(": ")[1].removeprefix("epoch "))
    scores = lines[best].partition("on dev ")[2]
    assert lines[3] == f"on test {scores} (16 examples that chose nothing)"
    report = json.loads((tmp_path / "out" / "finetune.json").read_text("utf-8"))
    assert (report["num_test"], report["test"]) == (16, report["epochs"][best - 1]["dev"])
    assert "too good" not in out


def test_finetune_json(bertmill_json, small_run, examples, tmp_path):
    found, err = bertmill_json(
        *("finetune", small_run.folder, "--train", examples, "--dev", examples, "--out", "out"),
        *("--epochs", 1, "--batch-size", 4, "--lr", "1e-3", "--max-length", 16, "--seed", 5),
        *("--patience", 1, "--task", "regression", "--column", "text"),
        *("--label-column", "label"),
    )
    assert found.keys() == FINETUNE_KEYS
    assert (found["folder"], found["task"], found["labels"]) == ("out", "regression", [])
    assert (found["num_train"], found["num_dev"], found["best_epoch"]) == (16, 16, 1)
    assert set(found["epochs"][0]) == {"epoch", "loss", "dev"}
    assert set(found["epochs"][0]["dev"]) == {"loss", "accuracy", "pearson"}
    assert err.splitlines()[0] == "regression: 16 examples"
    assert "correlation" in err.splitlines()[1] and len(err.splitlines()) == 3
    report = json.loads((tmp_path / "out" / "finetune.json").read_text("utf-8"))
    assert report["knobs"] == {
        "epochs": 1,
        "patience": 1,
        "batch_size": 4,
        "lr": 1e-3,
        "max_length": 16,
        "seed": 5,
    }


def test_predict(bertmill, bertmill_json, tuned, lines, tmp_path):
    status, out, err = bertmill("predict", tuned, "in.txt", "--out", "out.csv")
    assert (status, out, err) == (0, "4 texts, 1 of them cut: out.csv\n", "")
    found, err = bertmill_json("predict", tuned, "in.txt", "--out", "out.jsonl")
    assert (found.keys(), err) == (PREDICT_KEYS, "")
    assert found == {"out": "out.jsonl", "task": "classification", "num_texts": 4, "num_cut": 1}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    model = package.load(tuned)
    assert rows == [
        {
            **{"text": text, "label": answer.label, "probability": answer.probability},
            "probabilities": dict(zip(model.task.labels, answer.probabilities, strict=True)),
        }
        for text, answer in zip(TEXTS, model.predict(TEXTS), strict=True)
    ]


@pytest.mark.parametrize("dash", [["-"], []], ids=["dash", "nothing"])
def test_predict_reads_standard_input(dash, bertmill, tuned, pipe, tmp_path):
    pipe("the river\nthe road\n")
    status, out, err = bertmill("predict", tuned, *dash, "--out", "out.csv")
    assert (status, out, err) == (0, "2 texts: out.csv\n", "")
    assert len((tmp_path / "out.csv").read_text("utf-8").splitlines()) == 3


def test_a_tuned_model_is_inspected_and_embeds(bertmill_json, tuned):
    found, _ = bertmill_json("inspect", tuned)
    assert found["kind"] == "model"
    assert "masked_token_head" in json.dumps(found["new_weights"])


# --- evaluate ------------------------------------------------------------------------------------


def test_minimal_pairs(bertmill, bertmill_json, small_run, tmp_path):
    rows = [
        {"sentence_good": "the river", "sentence_bad": "river the", "paradigm": "order"},
        {"sentence_good": "a crane", "sentence_bad": "a crane", "paradigm": "ties"},
    ]
    args = ["evaluate", small_run.folder, "--minimal-pairs", write(tmp_path / "p.jsonl", rows)]
    found, err = bertmill_json(*args)
    assert (found.keys(), err) == (MINIMAL_PAIR_KEYS, "")
    assert {frozenset(each) for each in found["paradigms"].values()} == {frozenset(PARADIGM_KEYS)}
    assert found["paradigms"]["ties"] == {"accuracy": 0.5, "num_pairs": 1, "num_ties": 1}
    assert found["mask_rest_of_word"] is False
    status, out, err = bertmill(*args, "--mask-rest-of-word")
    assert (status, err) == (0, "") and len(out.splitlines()) == 3
    assert "   50.0%  ties\n" in out and "all 2 pairs (1 ties, half a point each)\n" in out


def test_tasks(bertmill, bertmill_json, small_run, examples, tmp_path):
    (tmp_path / "tasks" / "two").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "tasks" / "two" / f"{split}.jsonl").write_bytes(examples.read_bytes())
    args = ["evaluate", small_run.folder, "--tasks", "tasks", "--seeds", 2]
    found, err = bertmill_json(*args)
    assert found.keys() == {"num_seeds", "tasks", "mean"}
    assert found["tasks"]["two"].keys() == TASK_KEYS
    methods = found["tasks"]["two"]["methods"]
    assert list(methods) == list(found["mean"]) and len(methods) == 6
    for measures in methods.values():
        assert measures.keys() == {"accuracy", "f1", "matthews"}
        assert {frozenset(each) for each in measures.values()} == {
            frozenset(("mean", "low", "high"))
        }
    assert [line.split(":")[0] for line in err.splitlines()] == [f"two, {each}" for each in methods]
    status, out, err = bertmill(*args, "--probe-only")
    assert (status, err) == (0, "") and "finetune" not in out
    assert out.splitlines()[-1].startswith("mean ") and " ± " in out.splitlines()[-2]


# --- export --------------------------------------------------------------------------------------


def test_a_license_says_nothing_on_standard_error(bertmill, small_run, tmp_path):
    args = ["export", small_run.folder, "--out", "out", "--license", "mit"]
    assert bertmill(*args) == (0, "huggingface: out\n", "")
    assert 'license: "mit"\n' in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_onnx(bertmill_json, small_run, corpus_file, tmp_path):
    args = ["export", small_run.folder, "--to", "onnx", "--out", "out", "--int8"]
    found, err = bertmill_json(*args, "--held-out", corpus_file, "--set", "pairs.max_length=16")
    assert found == {"folder": "out", "to": "onnx"} and "license" not in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "model.int8.onnx", "onnx.json", "config.json"} <= names
    assert "README.md" not in names
    report = json.loads((tmp_path / "out" / "onnx.json").read_text("utf-8"))
    assert report.keys() == {"largest_difference", "held_out"}
    assert report["held_out"].keys() == {"torch", "model.onnx", "model.int8.onnx"}


def test_onnx_for_people(bertmill, tuned):
    args = ["export", tuned, "--to", "onnx", "--out", "out"]
    assert bertmill(*args) == (0, "onnx: out\n", "")


def test_a_picture_of_too_many_words(refused, small_run):
    args = ["similar-words", small_run.folder, "the river", "--word", "river", *AMONG]
    refused([*args, "--top", "201", "--figure", "out.png"], "--top: is 201", "room for 200 words")


@pytest.mark.parametrize(
    ("option", "home"), [("--mask-rest-of-word", "--minimal-pairs"), ("--probe-only", "--tasks")]
)
def test_options_of_another_evaluation(option, home, refused, small_run, corpus_file):
    refused(
        ["evaluate", small_run.folder, "--held-out", corpus_file, option],
        f"bertmill: {option}: cannot be combined with --held-out; give it with {home}\n",
    )


def test_what_export_refuses(refused, small_run, tmp_path):
    def refuse(*more, part):
        refused(["export", small_run.folder, "--out", "out", *more], part, "; ")

    refuse("--to", "onnx", "--int8", part="--int8: needs --held-out; give text to measure what")
    wrong = "--license: cannot be combined with --to onnx; give it with --to huggingface"
    refuse("--to", "onnx", "--license", "mit", part=wrong)
    for option, *value in (["--int8"], ["--held-out", "x.txt"], ["--set", "pairs.kind=none"]):
        wrong = f"{option}: cannot be combined with --to huggingface; give it with --to onnx"
        refuse(option, *value, part=wrong)
    refuse("--to", "tflite", part="'--to': 'tflite' is not one of 'huggingface', 'onnx'; see: ")
    refuse("--license", "", part="--license: '' is not an identifier")
    refused(["export", small_run.folder, "--out", ""], "--out: has no name", "; ")
    assert list(tmp_path.iterdir()) == []


def test_settings_without_text_to_judge_on(refused, small_run, tmp_path):
    args = ["export", small_run.folder, "--to", "onnx", "--out", "out"]
    refused([*args, "--set", "pairs.kind=none"], "--set pairs.kind=none: changes how --held-out")


# --- exit statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["embed"], "Missing argument"),
        (["predict", "x", "y"], "Missing option '--out'"),
        (["finetune", "x"], "Missing option"),
        (["similar-words", "x", "y"], "Missing option '--word'"),
        (["finetune", "x", "--epochs", "many"], "--epochs"),
        (["embed", "x", "--bogus"], "--bogus"),
    ],
)
def test_misuse_is_one_line(args, part, refused):
    refused(args, part, f"see: bertmill {args[0]} --help")


VERBS = ["embed", "similar-words", "finetune", "predict", "evaluate", "export"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, bertmill):
    status, out, err = bertmill(verb, "--help")
    assert (status, err) == (0, "") and f"bertmill {verb} " in out.splitlines()[0]
    assert "--json" in out and ("--device" in out or verb == "export")


def test_an_interrupt(bertmill, monkeypatch, small_run, lines, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(package.Pretrained, "embed_counted", interrupt)
    status, out, _ = bertmill("embed", small_run.folder, "in.txt", "--out", "out.npy")
    assert (status, out) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_interrupt_is_said_at_once():
    """A process of its own: what it does takes time to end, which it does not wait for."""
    code = """
import signal
from bertmill.train import signals
try:
    with signals.interrupts_said():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            print("cleaned", file=__import__("sys").stderr)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "bertmill: interrupted, ending ...\ncleaned\n"


def test_python_and_the_command_line_agree(bertmill_json, small_run, lines):
    found, _ = bertmill_json("embed", small_run.folder, "in.txt", "--out", "one.npy")
    again = asdict(package.embed(small_run.folder, "in.txt", "two.npy", stream=io.StringIO()))
    assert {key: found[key] for key in ("num_texts", "hidden_size", "num_cut")} == {
        key: again[key] for key in ("num_texts", "hidden_size", "num_cut")
    }
