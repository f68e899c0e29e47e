"""Labeled examples: what is asked of them, where they stand, and what is refused."""

import csv
import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertmill as package
from bertmill.errors import CorpusError, InputError
from bertmill.model.task import Task
from bertmill.use.examples import (
    Columns,
    Examples,
    _texts,
    read_all,
    read_examples,
    targets_of,
    task_of,
    texts_of,
)
from small import some

NONE = Columns()


@pytest.fixture
def write(tmp_path):
    """Write rows as the ending says; return the file's name."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return str(path)

    return write


def labeled(*labels):
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


# --- what is asked -------------------------------------------------------------------------------

KINDS = {
    "whole-numbers": ([0, 1, 0], "classification", ["0", "1", "0"]),
    "numbers": ([0.5, 2.0, 1.25], "regression", [0.5, 2.0, 1.25]),
    "a-fraction-among-whole-numbers": ([1, 2, 2.5], "regression", [1.0, 2.0, 2.5]),
    "whole-floats": ([1.0, 2.0], "regression", [1.0, 2.0]),
    "texts": (["a", "b"], "classification", ["a", "b"]),
    "texts-of-whole-numbers": (["0", "-1"], "classification", ["0", "-1"]),
    "texts-of-numbers": (["0.5", "2"], "regression", [0.5, 2.0]),
    "texts-some-numbers": (["0.5", "b"], "classification", ["0.5", "b"]),
    "true-and-false": ([True, False], "classification", ["True", "False"]),
}


@pytest.mark.parametrize("label", [float("inf"), float("nan"), "nan", "9" * 400])
def test_a_label_without_a_value_is_no_class_among_numbers(label, write):
    with pytest.raises(CorpusError, match="is not a number"):
        read_examples(write(labeled("1.5", label)), NONE, None)


@pytest.mark.parametrize(("labels", "kind", "read"), KINDS.values(), ids=KINDS)
def test_labels_say_what_is_asked(labels, kind, read, write):
    examples = read_examples(write(labeled(*labels)), NONE, None)
    assert (examples.kind, examples.labels) == (kind, read)
    assert examples.first == [f"text {n}" for n in range(len(labels))]
    assert examples.second is None and len(examples) == len(labels)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "kind"),
    [((1, 0), "classification"), ((1.5, 0.0), "regression"), (("x", "y"), "classification")],
)
def test_files_of_every_kind_are_read_alike(labels, kind, ending, write):
    examples = read_examples(write(labeled(*labels), f"rows{ending}"), NONE, None)
    assert examples.kind == kind
    wanted = list(labels) if kind == "regression" else [str(label) for label in labels]
    assert examples.labels == wanted


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_lists_are_labels_of_words(ending, write):
    rows = [
        {"words": ["a", "b"], "labels": ["X", "O"]},
        {"words": [], "labels": []},
        {"words": ["c"], "labels": ["O"]},
    ]
    examples = read_examples(write(rows, f"rows{ending}"), NONE, None)
    assert (examples.kind, examples.second) == ("words", None)
    assert examples.first == [["a", "b"], [], ["c"]]
    assert examples.labels == [["X", "O"], [], ["O"]]
    task = task_of(examples, "it")
    assert task == Task("words", ("O", "X"), is_pair=False)
    assert targets_of(examples, task, "it") == [1.0, 0.0, 0.0]


def test_numbers_are_classes_where_the_task_says_so(write):
    path = write(labeled(1.5, 2.5, 1.5))
    assert read_examples(path, NONE, "classification").labels == ["1.5", "2.5", "1.5"]
    assert read_examples(write(labeled(1, 2)), NONE, "regression").labels == [1.0, 2.0]


def test_labels_of_words_that_are_numbers_are_names(write):
    path = write([{"tokens": ["a", "b", "c"], "labels": [10, 9, 9]}])
    examples = read_examples(path, NONE, None)
    assert examples.labels == [["10", "9", "9"]]
    assert task_of(examples, path).labels == ("9", "10")


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["text", "sentence1", "sentence", "words", "tokens"])
@pytest.mark.parametrize("text_b", ["text_b", "sentence2", None])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_usual_names_are_found(text, text_b, label, write):
    rows = [{"id": str(n), label: n, text_b or "note": f"b{n}", text: f"a{n}"} for n in range(2)]
    examples = read_examples(write(rows), NONE, None)
    assert examples.first == ["a0", "a1"]
    assert examples.second == (["b0", "b1"] if text_b else None)
    assert examples.labels == ["0", "1"]


def test_the_first_usual_name_counts():
    found = {"tokens": "e", "words": "d", "sentence": "c", "sentence1": "b", "text": "a"}
    for name in ("text", "sentence1", "sentence", "words"):
        rows = [("row 1", {**found, "label": 1})]
        assert _texts(rows, NONE, "classification").first == [found.pop(name)]


def test_other_names_are_given(write):
    rows = [
        {"text": "no", "text_b": "no", "label": "no", "q": f"q{n}", "r": "r", "y": n}
        for n in (0, 1)
    ]
    path = write(rows)
    examples = read_examples(path, Columns("q", "r", "y"), None)
    assert (examples.first, examples.second) == (["q0", "q1"], ["r", "r"])
    assert examples.labels == ["0", "1"]
    texts = texts_of(read_all(path), Columns("q"), Task("classification", ("0", "1")))
    assert texts == Examples("classification", ["q0", "q1"], ["no", "no"])


def test_texts_need_no_labels(write):
    path = write([{"sentence1": "a", "sentence2": "b"}])
    task = Task("regression", ())
    assert texts_of(read_all(path), NONE, task) == Examples("regression", ["a"], ["b"])
    alone = task._replace(is_pair=False)
    assert texts_of(read_all(path), NONE, alone) == Examples("regression", ["a"], None)
    words = texts_of(read_all(write([{"tokens": ["a"]}])), NONE, Task("words", ("O",)))
    assert words == Examples("words", [["a"]], None)


def test_some_of_the_examples(write):
    rows = [{"text": f"a{n}", "text_b": f"b{n}", "label": str(n)} for n in range(4)]
    some = read_examples(write(rows), NONE, None).select([3, 1])
    assert (some.first, some.second, some.labels) == (["a3", "a1"], ["b3", "b1"], ["3", "1"])


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 2, 9], ("2", "9", "10")),
        ([1, -1, 0], ("-1", "0", "1")),
        (["b", "a", "B"], ("B", "a", "b")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["10", "9", "²"], ("10", "9", "²")),
    ],
)
def test_the_order_of_classes(labels, classes, write):
    path = write(labeled(*labels))
    examples = read_examples(path, NONE, "classification")
    task = task_of(examples, path)
    assert task == Task("classification", classes, is_pair=False)
    targets = targets_of(examples, task, path)
    assert [task.labels[int(target)] for target in targets] == [str(label) for label in labels]


def test_the_order_of_names_of_the_same_number_is_always_the_same(write):
    """Sets of texts have another order in each process."""
    path = write(labeled("01", "1", "001", "0001", "2"))
    program = (
        "import sys; from bertmill.use.examples import *;"
        "e = read_examples(sys.argv[1], Columns(), 'classification'); print(task_of(e, '').labels)"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", program, path],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            check=True,
        ).stdout
        for seed in some(range(1, 6))
    }
    assert orders == {"('0001', '001', '01', '1', '2')\n"}


def test_regression_has_no_classes(write):
    examples = read_examples(write(labeled(0.5, 3)), NONE, None)
    task = task_of(examples, "it")
    assert task == Task("regression", (), is_pair=False) and task.num_outputs == 1
    assert targets_of(examples, task, "it") == [0.5, 3.0]


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refuse(refused, small_run, write):
    """Fine-tune on these rows, which must fail with one line."""

    def refuse(rows, *parts, more=(), dev=None, fix="; "):
        train = write(rows) if isinstance(rows, list) else rows
        dev = train if dev is None else write(dev, "dev.jsonl")
        args = ["--train", train, "--dev", dev, "--out", "out", *more]
        refused(["finetune", small_run.folder, *args], *parts, fix)

    return refuse


@pytest.mark.parametrize("task", ["ranking", ""])
def test_an_unknown_task(task, refuse, small_run, write):
    refuse(labeled(0, 1), f"'--task': {task!r} is not one of", "'words'", more=["--task", task])
    examples = write(labeled(0, 1))
    with pytest.raises(InputError, match=f"{task!r} is not known"):
        package.finetune(small_run.folder, examples, examples, "out", task=task)


def test_no_examples(refuse, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n", "utf-8")
    refuse("empty.jsonl", "empty.jsonl: has no examples")
    (tmp_path / "empty.csv").write_text("text,label\n", "utf-8")
    refuse("empty.csv", "empty.csv: has no examples")


def test_columns_that_are_missing(refuse):
    rows = [{"review": "a", "stars": n} for n in (0, 1)]
    refuse(rows, "rows.jsonl, line 1: has no column named label or labels", "--label-column")
    refuse(rows, "text or sentence1", "--column", more=["--label-column", "stars"])
    refuse(labeled(0, 1), "has no column 'body'", more=["--column", "body"])
    refuse(labeled(0, 1), "has no column 'body'", more=["--column-b", "body"])
    refuse(labeled(0, 1), "no label in the column 'stars'", more=["--label-column", "stars"])


@pytest.mark.parametrize("label", [None, ["x"], {"a": 1}])
def test_a_label_that_is_none(label, refuse):
    refuse(labeled("x", "y", label), "line 3: has no label in the column 'label'")


@pytest.mark.parametrize("text", [None, 3, ["a"]])
def test_a_text_that_is_none(text, refuse):
    rows = [*labeled(0, 1), {"text": text, "label": 0}]
    refuse(rows, "line 3: column 'text' is ", "not text")


def test_a_row_without_its_text_or_label(refuse):
    refuse([*labeled(0, 1), {"label": 0}], "line 3: has no column 'text'")
    refuse([*labeled(0, 1), {"text": "a"}], "line 3: has no label")


@pytest.mark.parametrize("label", ["good", None, "", "nan", float("nan"), True, [1.5]])
def test_a_label_that_is_no_number(label, refuse):
    more = ["--task", "regression"]
    refuse(labeled(0.5, label), f"line 2: label {label!r} is not a number", more=more)


def test_a_number_whose_square_is_beyond_32_bits(refuse):
    refuse(labeled(0.5, 1e19), "line 2: label 1e+19 is too large; scale the labels down")


@pytest.mark.parametrize("words", [None, "a b", 3, {"a": 1}])
def test_words_that_are_no_list(words, refuse):
    rows = [{"words": ["a", "b"], "labels": ["X", "O"]}, {"words": words, "labels": ["X"]}]
    refuse(rows, "line 2: has no list in the column 'words'")
    rows[1] = {"words": ["a"], "labels": words}
    refuse(rows, "line 2: has no list in the column 'labels'")


def test_not_as_many_labels_as_words(refuse):
    rows = [{"words": ["a", "b"], "labels": ["X", "O"]}, {"words": ["a", "b"], "labels": ["X"]}]
    refuse(rows, "line 2: has 2 words but 1 labels", fix="")


def test_words_that_are_not_text(small_run, write):
    path = write([{"words": ["a", 3], "labels": ["X", "O"]}])
    with pytest.raises(InputError, match="3 is not text"):
        package.finetune(small_run.folder, path, path, "out")


@pytest.mark.parametrize(
    "rows", [labeled(1, 1), labeled("x"), [{"words": ["a"], "labels": ["1"]}]], ids=str
)
def test_one_class_only(rows, refuse):
    refuse(rows, "rows.jsonl: has only one class, ", fix="")


def test_no_class_at_all(refuse):
    refuse([{"words": [], "labels": []}], "has only one class, ''", fix="")


def test_a_class_that_only_dev_has(small_run, write):
    train, dev = write(labeled("a", "b")), write(labeled("a", "c"), "dev.jsonl")
    with pytest.raises(InputError, match=r"`dev`: has the label 'c', but only a, b are learned; "):
        package.finetune(small_run.folder, train, dev, "out")
    many = Task("classification", tuple(f"class {n}" for n in range(5000)))
    with pytest.raises(InputError) as caught:
        targets_of(read_examples(dev, NONE, None), many, dev)
    assert len(str(caught.value)) < 400


def test_dev_of_another_kind(refuse):
    rows = [{"words": ["a", "b"], "labels": ["X", "O"]}]
    refuse(rows, "dev.jsonl, line 1: has no list", dev=labeled("X", "O"))
    refuse(labeled(0.5, 1.5), "label 'x' is not a number", dev=labeled("x"))


def test_a_words_label_that_is_none(write):
    with pytest.raises(CorpusError):
        read_examples(write([{"words": ["a", "b"], "labels": ["X", None]}]), NONE, None)


def test_an_empty_label(write):
    with pytest.raises(CorpusError):
        read_examples(write(labeled("x", ""), "rows.csv"), NONE, None)


def test_half_a_character_in_a_label(write):
    with pytest.raises(CorpusError):
        read_examples(write(labeled("x", "\ud800")), NONE, None)
