"""Answers in files, beside the rows' own values, the same numbers in every format."""

import csv
import datetime
import json
import shutil

import pyarrow.parquet as pq
import pytest

import bertmill as package
from bertmill.errors import InputError
from bertmill.model.folder import load_model
from bertmill.model.task import Task
from bertmill.use.predict import Prediction
from bertmill.use.predictions import with_answers, write_rows

NAMES = ('ja, "größer"', "line\nend", "")
CLASSES = [
    Prediction(name, share, (share, 1 / 3, 0.0))
    for name, share in zip(NAMES, (0.75, 1 / 3, 1.0), strict=True)
]
NUMBERS = [0.1, -2.0, 1e-7]
WORDS = [
    [Prediction("B-x", 0.5, ()), Prediction("O, ü", 1 / 3, ())],
    [],
    [Prediction("O", 0.9, ()), None, None],
    [None],
]
KINDS = {"classes": CLASSES, "numbers": NUMBERS, "words": WORDS}


def answers(predictions, rows=None):
    """The rows of a file, of which these are the answers."""
    return with_answers(
        rows or [{} for _ in predictions], predictions, Task("classification", NAMES)
    )


def read(path):
    """The rows, their values as Python has them."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as stream:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in stream]
        plain = {"probability": float, "value": float}
        read_value = {"labels": json.loads, "probabilities": json.loads} | plain
        return [
            {name: read_value.get(name, str)(value) for name, value in row.items()}
            for row in csv.DictReader(stream)
        ]


def wanted(predictions):
    if predictions is NUMBERS:
        return [{"value": number} for number in NUMBERS]
    if predictions is CLASSES:
        return [
            {
                "label": label,
                "probability": share,
                "probabilities": dict(zip(NAMES, shares, strict=True)),
            }
            for label, share, shares in CLASSES
        ]
    return [
        {
            "labels": [word and word[0] for word in words],
            "probabilities": [word and word[1] for word in words],
        }
        for words in WORDS
    ]


ENDINGS = [".jsonl", ".csv", ".parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("predictions", KINDS.values(), ids=KINDS)
def test_every_answer_comes_back(predictions, ending, tmp_path):
    out = tmp_path / "deep" / f"out{ending}"
    write_rows(out, answers(predictions))
    assert read(out) == wanted(predictions)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("first", [[], [None]], ids=["no-words", "no-answers"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_first_row_does_not_decide_the_types(first, ending, tmp_path):
    write_rows(tmp_path / f"out{ending}", answers([first, *WORDS]))
    assert read(tmp_path / f"out{ending}")[1:] == wanted(WORDS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_values_of_the_rows_are_kept(ending, tmp_path):
    """In the order in which they appear; an empty cell is what a row does not have."""
    rows = [{"id": "7", "text": "ü,\n"}, {"text": "b", "note": "x"}, {}]
    write_rows(tmp_path / f"out{ending}", answers(NUMBERS, rows))
    found = read(tmp_path / f"out{ending}")
    nothing = "" if ending == ".csv" else None
    assert [list(row) for row in found] == [["id", "text", "note", "value"]] * 3
    assert [list(row.values()) for row in found] == [
        ["7", "ü,\n", nothing, 0.1],
        [nothing, "b", "x", -2.0],
        [nothing, nothing, nothing, 1e-7],
    ]


def test_a_value_with_the_name_of_an_answer_gets_another():
    rows = [{"label": "gold", "value": 1, "input_label": 2}] * 3
    kept = {"input_label": "gold", "value": 1, "input_input_label": 2}
    assert answers(CLASSES, rows) == [kept | row for row in wanted(CLASSES)]
    assert answers(NUMBERS, rows)[0] == {
        **{"label": "gold", "input_value": 1, "input_label": 2, "value": 0.1}
    }


def test_values_of_any_type(tmp_path):
    """What JSON or a table cannot hold becomes text, or is refused in one line."""
    rows = [{"a": datetime.date(2026, 1, 2), "b": "\ud800"}, {"a": b"x", "b": [1, {"c": None}]}]
    for ending in (".jsonl", ".csv"):
        write_rows(tmp_path / f"out{ending}", answers(NUMBERS[:2], rows))
    first, second = read(tmp_path / "out.jsonl")
    assert (first["a"], first["b"], second["b"]) == ("2026-01-02", "\ud800", [1, {"c": None}])
    assert read(tmp_path / "out.csv")[1]["b"] == '[1, {"c": null}]'
    for name, values in (
        ("a", [1, "x"]),
        ("b", ["\ud800", ""]),
        ("c", [{}, {}]),
        ("d", [9**99, 1]),
    ):
        rows = [{name: value} for value in values]
        with pytest.raises(InputError, match=r"cannot hold these columns .*; write \.jsonl"):
            write_rows(tmp_path / "out.parquet", answers(NUMBERS[:2], rows))
    assert not (tmp_path / "out.parquet").exists()


# --- the verb ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(small_run, save_random_model, tmp_path_factory):
    """A folder for each kind; how good they are does not matter, but answers must differ."""
    place = tmp_path_factory.mktemp("tuned")
    small = load_model(small_run.folder)
    source = save_random_model(place / "source", small.model.section, small.about)
    examples = {
        "classification": [{"text": "river", "text_b": "a", "label": n % 2} for n in range(6)],
        "regression": [{"text": "river", "label": n / 2} for n in range(6)],
        "words": [{"words": ["river", "a"], "labels": ["R", "O"]} for _ in range(6)],
    }
    folders = {}
    for kind, rows in examples.items():
        path = place / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        folders[kind] = package.finetune(
            source.folder, path, path, place / kind, epochs=1, lr=0.003
        ).folder
    return folders


TEXTS = [f"{'river ' * (n * 7 % 11)}in year {n}" for n in range(300)]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_the_answers_are_in_the_order_of_the_texts(ending, tuned, tmp_path):
    """More texts than a batch has, of many lengths: the batches are not in their order."""
    source = tmp_path / "texts.csv"
    with source.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["note", "text"], *(["x", text] for text in TEXTS)])
    out = tmp_path / f"out{ending}"
    done = package.predict(tuned["regression"], source, out)
    values = [row["value"] for row in read(out)]
    assert (done.out, done.task, done.num_texts, done.num_cut) == (out, "regression", 300, 0)
    model = package.load(tuned["regression"])
    assert values == pytest.approx([model.predict([text])[0] for text in TEXTS], abs=1e-5)
    assert len({round(value, 4) for value in values}) > 200


def test_pairs_and_other_columns(tuned, tmp_path):
    rows = [{"q": text, "r": f"a crane {n}", "text": "no"} for n, text in enumerate(TEXTS[:5])]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    folder = shutil.copytree(tuned["classification"], tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["bertmill_is_pair"]  # as another program writes it
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    package.predict(folder, source, tmp_path / "out.jsonl", column="q", column_b="r")
    model = package.load(folder)
    answers = model.predict([row["q"] for row in rows], [row["r"] for row in rows])
    assert [row["label"] for row in read(tmp_path / "out.jsonl")] == [a.label for a in answers]
    shares = [list(row["probabilities"].values()) for row in read(tmp_path / "out.jsonl")]
    assert shares == [list(answer.probabilities) for answer in answers]
    assert answers != model.predict([row["q"] for row in rows])


def test_words_and_how_many_texts_were_cut(tuned, tmp_path):
    source = tmp_path / "words.jsonl"
    texts = [["river", "a"], [], ["river"] * 40]
    source.write_text("".join(json.dumps({"tokens": words}) + "\n" for words in texts), "utf-8")
    done = package.predict(tuned["words"], source, tmp_path / "out.csv")
    assert (done.task, done.num_texts, done.num_cut) == ("words", 3, 1)
    rows = read(tmp_path / "out.csv")
    assert [len(row["labels"]) for row in rows] == [2, 0, 40]
    assert rows[2]["labels"][30:] == rows[2]["probabilities"][30:] == [None] * 10
    assert None not in rows[2]["labels"][:30]


def test_lines_of_a_text_file(tuned, tmp_path):
    (tmp_path / "in.txt").write_text("river\n\na crane\n", "utf-8")
    assert package.predict(tuned["regression"], tmp_path / "in.txt", "out.csv").num_texts == 3


def test_a_file_with_labels_is_kept_beside_the_answers(tuned, tmp_path):
    lines = ["id,sentence1,sentence2,label", *(f"{n},river,a,{n % 2}" for n in range(4))]
    (tmp_path / "in.csv").write_text("\n".join(lines), "utf-8")
    package.predict(tuned["classification"], "in.csv", "out.csv")
    rows = read(tmp_path / "out.csv")
    names = ["id", "sentence1", "sentence2", "input_label", "label", "probability", "probabilities"]
    assert list(rows[0]) == names
    assert [row["input_label"] for row in rows] == ["0", "1", "0", "1"]
    for row in rows:
        assert list(row["probabilities"]) == ["0", "1"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["probability"] == row["probabilities"][row["label"]]
        assert row["probability"] == max(row["probabilities"].values())


def test_standard_output(tuned, bertmill, tmp_path):
    """The lines of the file that it would have written, and nothing else."""
    (tmp_path / "in.txt").write_text("the river\nü\n" + "river " * 40, "utf-8")
    status, out, err = bertmill("predict", tuned["regression"], "in.txt", "--out", "-")
    cut = "1 of 3 texts are too long and were cut\n"
    assert (status, err) == (0, cut)
    package.predict(tuned["regression"], "in.txt", "out.jsonl")
    assert out == (tmp_path / "out.jsonl").read_text("utf-8")
    assert [json.loads(line)["text"] for line in out.splitlines()][:2] == ["the river", "ü"]
    args = "predict", tuned["regression"], "in.txt", "--out", "-", "--json"
    status, one_object, err = bertmill(*args)
    assert (status, err) == (0, out + cut)
    assert json.loads(one_object)["num_texts"] == 3


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.txt", "out", "out.JSONL", "out.jsonl.gz", "out.npy"])
def test_an_unknown_ending(out, tuned, refused, tmp_path):
    (tmp_path / "in.txt").touch()
    refused(
        ["predict", tuned["regression"], "in.txt", "--out", out],
        *(f"{out}: does not end in ", ".jsonl, .csv or .parquet"),
    )


def test_an_out_that_exists(tuned, refused, tmp_path):
    (tmp_path / "in.txt").touch()
    (tmp_path / "out.csv").write_text("mine", "utf-8")
    refused(["predict", tuned["words"], "in.txt", "--out", "out.csv"], "out.csv: already exists")
    assert (tmp_path / "out.csv").read_text("utf-8") == "mine"


def test_models_and_files_that_are_none(tuned, small_run, refused, tmp_path):
    (tmp_path / "in.txt").write_text("river\n", "utf-8")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    out = ["--out", "out.csv"]
    refused(["predict", small_run.folder, "in.txt", *out], "was not fine-tuned for a task")
    refused(["predict", "gone", "in.txt", *out], "gone: does not exist", "; ")
    model = tuned["regression"]
    refused(["predict", model, "gone.txt", *out], "gone.txt", "; ")
    refused(["predict", model, "empty.txt", *out], "empty.txt: has no examples", "; ")
    refused(["predict", model, "", *out], "FILE: has no name", "; ")
    refused(["predict", model, "in.txt", "--out", ""], "--out: has no name", "; ")
    refused(["predict", model, "in.txt", *out, "--column", "b"], "no column 'b'", "; ")
    refused(["predict", tuned["words"], "in.txt", *out], "has no list in the column 'text'")
    refused(["predict", model, "in.txt", "--out", "in.txt/out.csv"], "cannot be written", "; ")
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "empty.txt"}


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(path, rows):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(write_rows.__globals__["_WRITERS"], ".csv", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_rows(tmp_path / "out.csv", answers(NUMBERS))
    assert list(tmp_path.iterdir()) == []
