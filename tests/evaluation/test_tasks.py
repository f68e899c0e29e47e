"""`evaluate --tasks`: every measure, baseline and interval by hand, scikit-learn and SciPy."""

import csv
import gzip
import json
import math
import random
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import bertmill as package
from bertmill.config import ModelSection
from bertmill.errors import BertmillError, CorpusError, InputError
from bertmill.evaluation import tasks as judging
from bertmill.evaluation.probes import choosing_rows
from bertmill.model.folder import load_model, save_model

SECTION = ModelSection(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=48,
)  # fmt: skip
WORDS = ["river", "valley", "bridge", "market", "winter", "shadow", "year", "road", "horses"]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


def draw(task, count, seed):
    """Labels that the words tell, with some noise, so that no method is always right."""
    dice = random.Random(f"{task} {seed}")
    for _ in range(count):
        first, second = (dice.sample(WORDS, 4) for _ in range(2))
        points = ("river" in first) + ("road" in first) + dice.choice([0, 0, 0, 1])
        row = {"text": " ".join(first)}
        if task == "binary":
            yield row | {"label": int(points > 0)}
        elif task == "classes":
            yield row | {"label": ["zero", "one", "two, or 2"][min(points, 2)]}
        elif task == "mrpc":
            same = len(set(first) & set(second)) > 1
            label = int(same != (dice.random() < 0.1))
            yield {"sentence1": row["text"], "sentence2": " ".join(second), "label": label}
        else:
            yield row | {"label": points / 3 + dice.random() / 9}


TASKS = {"binary": ".jsonl.gz", "classes": ".csv", "mrpc": ".jsonl", "numbers": ".tsv"}


def write(path, rows):
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.name:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return
    with path.open("w", newline="", encoding="utf-8") as stream:
        more = {"delimiter": "\t", "lineterminator": "\n"} if path.suffix == ".tsv" else {}
        writer = csv.DictWriter(stream, list(rows[0]), **more)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def rows():
    return {
        name: {"train": list(draw(name, 90, 1)), "dev": list(draw(name, 41, 2))} for name in TASKS
    }


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks") / "tasks"
    for name, ending in TASKS.items():
        for split, content in rows[name].items():
            write(place / name / f"{split}{ending}", content)
    (place / "README.md").write_text("not a task", "utf-8")
    return place


@pytest.fixture(scope="module")
def model(save_random_model, small_run, tmp_path_factory):
    about = load_model(small_run.folder).about
    return save_random_model(tmp_path_factory.mktemp("model") / "one", SECTION, about).folder


def judge_and_spy(model, folder, **more):
    """The scores, and the answers and measures that each was computed of, by task and method."""
    names, answers, measures = [], {}, {}
    measure, answer = judging._TaskData.measure, judging._TaskData.predict

    def spy_answers(exam, method, *rest):
        if method == "majority":  # the first of each task
            names.append(len(names))
        spy_answers.method = method
        return answer(exam, method, *rest)

    def spy_measure(exam, found):
        key = names[-1], spy_answers.method
        answers.setdefault(key, []).append(found)
        measures.setdefault(key, []).append(measure(exam, found))
        return measures[key][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging._TaskData, "measure", spy_measure)
        patch.setattr(judging._TaskData, "predict", spy_answers)
        scores = package.evaluate_tasks(model, folder, **more)
    names = list(scores.tasks)
    return scores, *(
        {(names[n], method): each for (n, method), each in found.items()}
        for found in (answers, measures)
    )


@pytest.fixture(scope="module")
def judged(model, folder):
    return judge_and_spy(model, folder, seeds=3)


METHODS = ("majority", "tfidf", "probe_random", "probe", "finetune_random", "finetune")


def targets(rows, name, split):
    """Numbers of the classes, in the order of whole numbers or of their names."""
    labels = [row["label"] for row in rows[name][split]]
    if name == "numbers":
        return np.array(labels)
    classes = sorted({row["label"] for row in rows[name]["train"]})
    return np.array([float(classes.index(label)) for label in labels])


# --- the measures --------------------------------------------------------------------------------


def measure_by_hand(name, wanted, found):
    if name == "numbers":
        ranks = [stats.rankdata(values) for values in (wanted, found)]
        both = {"pearson": (wanted, found), "spearman": ranks}
        return {
            key: np.corrcoef(*values)[0, 1] if np.ptp(values[1]) else 0.0
            for key, values in both.items()
        }
    classes = sorted({*wanted.tolist(), *found.tolist()})
    f1 = {}
    for each in classes:
        hits = ((wanted == each) & (found == each)).sum()
        f1[each] = 2 * hits / ((wanted == each).sum() + (found == each).sum())
    # Matthews' coefficient of several classes (Gorodkin 2004), as a correlation of indicators.
    one, other = (
        np.array([[v == c for c in classes] for v in values]) for values in (wanted, found)
    )
    one, other = one - one.mean(0), other - other.mean(0)
    spread = math.sqrt((one**2).sum() * (other**2).sum())
    return {
        "accuracy": (wanted == found).mean(),
        "f1": np.mean(list(f1.values())) if name == "classes" else f1.get(1.0, 0.0),
        "matthews": (one * other).sum() / spread if spread else 0.0,
    }


def test_measures_are_those_of_the_answers(judged, rows):
    scores, answers, _ = judged
    assert list(scores.tasks) == sorted(TASKS)
    for name, task in scores.tasks.items():
        wanted = targets(rows, name, "dev")
        assert (task.num_train, task.num_dev) == (90, 41)
        assert task.kind == ("regression" if name == "numbers" else "classification")
        assert tuple(task.methods) == METHODS
        for method, measured in task.methods.items():
            by_hand = [measure_by_hand(name, wanted, found) for found in answers[name, method]]
            assert measured.keys() == by_hand[0].keys()
            for key, estimate in measured.items():
                mean = np.mean([values[key] for values in by_hand])
                assert estimate.mean == pytest.approx(mean, abs=1e-9), (name, method, key)


def test_intervals_are_those_of_student(judged):
    scores, _, measures = judged
    widths = []
    for name, task in scores.tasks.items():
        for method, measured in task.methods.items():
            assert len(measures[name, method]) == (1 if method == "majority" else 3)
            for key, estimate in measured.items():
                values = [each[key] for each in measures[name, method]]
                low = high = values[0]
                if len(set(values)) > 1:
                    low, high = stats.t.interval(
                        0.95, 2, loc=np.mean(values), scale=stats.sem(values)
                    )
                assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)
                widths.append(high - low)
    assert sum(width > 0.01 for width in widths) > 10


def test_the_main_measures_and_their_means(judged):
    scores, _, _ = judged
    main = {name: task.main_measure for name, task in scores.tasks.items()}
    assert main == {
        "binary": "accuracy",
        "classes": "accuracy",
        "mrpc": "f1",
        "numbers": "spearman",
    }
    assert scores.num_seeds == 3 and tuple(scores.mean) == METHODS
    for method in METHODS:
        found = [task.methods[method][task.main_measure].mean for task in scores.tasks.values()]
        assert scores.mean[method] == pytest.approx(np.mean(found))


def test_cola_is_measured_as_glue_does(rows, model, tmp_path):
    for split, content in rows["binary"].items():
        write(tmp_path / "cola" / f"{split}.jsonl", content)
    found = package.evaluate_tasks(model, tmp_path, probe_only=True, seeds=1)
    assert found.tasks["cola"].main_measure == "matthews"
    assert found.mean["tfidf"] == found.tasks["cola"].methods["tfidf"]["matthews"].mean


# --- the methods ---------------------------------------------------------------------------------


def test_the_majority_is_the_most_frequent_class_or_the_mean(judged, rows):
    _, answers, _ = judged
    for name in TASKS:
        known = targets(rows, name, "train")
        if name == "numbers":
            wanted = sum(known) / len(known)
        else:
            wanted = max(sorted(set(known)), key=known.tolist().count)
        assert answers[name, "majority"][0] == pytest.approx(np.full(41, wanted))


def choose_and_fit(name, known, features, dev_features, seed, scale):
    """A tenth of the training examples picks the strength; all of them are fitted with it."""
    learned, choosing = choosing_rows(len(known), seed)

    def fit(strength, rows):
        chosen = features[rows]
        scaler = StandardScaler().fit(chosen) if scale else None
        estimator = (
            Ridge(alpha=1 / strength, solver="svd" if scale else "auto")
            if name == "numbers"
            else LogisticRegression(C=strength, max_iter=300)
        )
        change = scaler.transform if scale else lambda values: values
        estimator.fit(change(chosen), known[rows])
        return estimator, change

    qualities = []
    for strength in STRENGTHS:
        estimator, change = fit(strength, learned)
        qualities.append(estimator.score(change(features[choosing]), known[choosing]))
    strength = STRENGTHS[qualities.index(max(qualities))]
    estimator, change = fit(strength, np.arange(len(known)))
    return estimator.predict(change(dev_features))


def texts_of(rows, name, split):
    keys = ["sentence1", "sentence2"] if name == "mrpc" else ["text"]
    return [[row[key] for row in rows[name][split]] for key in keys]


def combine(vectors):
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.hstack([u, v, abs(u - v), u * v])


@pytest.mark.parametrize("name", TASKS)
def test_tfidf_is_that_of_scikit_learn(name, judged, rows):
    _, answers, _ = judged
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True
    )
    vectorizer.fit([text for texts in texts_of(rows, name, "train") for text in texts])
    features, dev_features = (
        combine([vectorizer.transform(texts).toarray() for texts in texts_of(rows, name, split)])
        for split in ("train", "dev")
    )
    known = targets(rows, name, "train")
    for seed, found in enumerate(answers[name, "tfidf"], 1):
        wanted = choose_and_fit(name, known, features, dev_features, seed, scale=False)
        if name == "numbers":
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
        else:
            assert (found == wanted).mean() > 0.97  # dense and sparse end within one answer


@pytest.mark.parametrize("name", TASKS)
def test_probes_are_those_of_scikit_learn(name, judged, rows, model):
    """Over sentence vectors u, v, |u - v|, u * v, each feature scaled."""
    _, answers, _ = judged
    encoder = package.load(model)
    features, dev_features = (
        combine([encoder.embed(texts) for texts in texts_of(rows, name, split)])
        for split in ("train", "dev")
    )
    assert features.shape == (90, 64 if name == "mrpc" else 16)
    known = targets(rows, name, "train")
    for seed, found in enumerate(answers[name, "probe"], 1):
        wanted = choose_and_fit(name, known, features, dev_features, seed, scale=True)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("num_examples", [2, 7, 90, 1001])
def test_a_tenth_chooses(num_examples):
    parts = [choosing_rows(num_examples, seed) for seed in (1, 2)]
    for learned, choosing in parts:
        assert sorted([*learned, *choosing]) == list(range(num_examples))
        assert len(choosing) == max(1, round(num_examples / 10))
    if num_examples > 7:
        assert set(parts[0][1]) != set(parts[1][1])


def test_fine_tuning_sees_nine_tenths_and_chooses_on_the_tenth(model, folder, monkeypatch):
    seen = []
    learn = judging.learn_task

    def spy(loaded, task, train, dev, knobs, *rest, **more):
        seen.append((loaded, train, dev, knobs))
        return learn(loaded, task, train, dev, knobs, *rest, **more)

    monkeypatch.setattr(judging, "learn_task", spy)
    package.evaluate_tasks(model, folder, seeds=2)
    assert len(seen) == 4 * 2 * 2
    for n, (loaded, train, dev, knobs) in enumerate(seen):
        seed = n % 2 + 1
        assert (len(train), len(dev), knobs.seed, knobs.epochs) == (81, 9, seed, 4)
        same = torch.equal(loaded.model.pooler.weight, load_model(model).model.pooler.weight)
        assert same == (n // 2 % 2 == 1)  # random weights first, then the pretrained ones


def test_the_answers_of_fine_tuning(judged, rows, model, folder):
    """What finetune and predict would have answered, with the same examples."""
    _, answers, _ = judged
    for name in ("classes", "numbers"):
        content = rows[name]["train"]
        learned, choosing = choosing_rows(90, 2)
        place = folder.parent / f"own-{name}"
        for split, part in (("train", learned), ("dev", choosing)):
            write(place / f"{split}.jsonl", [content[row] for row in part])
        tuned = package.finetune(
            *(model, place / "train.jsonl", place / "dev.jsonl", place / "tuned"),
            epochs=4,
            seed=2,
        )
        found = package.load(tuned.folder).predict(texts_of(rows, name, "dev")[0])
        if name == "classes":
            found = [float(sorted(tuned.labels).index(each.label)) for each in found]
        np.testing.assert_allclose(answers[name, "finetune"][1], found, rtol=1e-6)


# --- what each method depends on -----------------------------------------------------------------


def same_answers(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_is_chosen_on_the_dev_examples(judged, rows, model, tmp_path):
    """With other labels there, every answer is the same to the bit."""
    for name, ending in TASKS.items():
        write(tmp_path / name / f"train{ending}", rows[name]["train"])
        dev = rows[name]["dev"]
        labels = [row["label"] for row in dev][::-1]
        other = [row | {"label": label} for row, label in zip(dev, labels, strict=True)]
        write(tmp_path / name / f"dev{ending}", other)
    scores, answers, _ = judge_and_spy(model, tmp_path, seeds=3)
    assert scores.tasks != judged[0].tasks
    assert answers.keys() == judged[1].keys()
    assert all(same_answers(each, judged[1][key]) for key, each in answers.items())


def test_only_the_pretrained_methods_depend_on_the_weights(judged, model, folder, tmp_path):
    loaded = load_model(model)
    with torch.no_grad():
        for tensor in loaded.model.encoder.parameters():
            tensor += 0.3 * torch.randn(
                tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())
            )
    other = tmp_path / "other"
    other.mkdir()
    save_model(other, loaded.model, loaded.tokenizer, loaded.about)
    _, answers, _ = judge_and_spy(other, folder, seeds=1)
    for method in METHODS:
        same = [
            np.array_equal(answers[name, method][0], judged[1][name, method][0]) for name in TASKS
        ]
        if method in ("probe", "finetune"):
            assert not all(same)
        else:
            assert all(same)


def test_random_weights_are_drawn_anew_for_each_seed(judged):
    _, answers, _ = judged
    for method in ("probe_random", "finetune_random", "finetune"):
        one, two, three = answers["numbers", method]
        assert not np.allclose(one, two) and not np.allclose(two, three)


def test_a_probe_tells_what_pretraining_gave(model, tmp_path):
    """Words of two sorts, apart in the embeddings; no word of the dev examples is trained on."""
    loaded = load_model(model)
    vocabulary = loaded.tokenizer.tokens(range(loaded.tokenizer.size))
    words = [word for word in vocabulary if word.isalpha() and len(word) > 2][:24]
    sorts = [words[::2], words[1::2]]
    assert min(map(len, sorts)) == 12
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        axis = torch.randn(16, generator=generator)
        for sign, sort in zip((-1, 1), sorts, strict=True):
            for word in sort:
                noise = torch.randn(16, generator=generator)
                place = vocabulary.index(word)
                loaded.model.encoder.embeddings.word.weight[place] = sign * 2 * axis + 0.3 * noise
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", loaded.model, loaded.tokenizer, loaded.about)
    dice = random.Random(1)
    for split, known in (("train", slice(0, 6)), ("dev", slice(6, 12))):
        examples = [
            {"text": " ".join(dice.sample(sorts[n % 2][known], 3)), "label": n % 2}
            for n in range(60)
        ]
        write(tmp_path / "tasks" / "sorts" / f"{split}.jsonl", examples)
    found = package.evaluate_tasks(tmp_path / "model", tmp_path / "tasks", seeds=3)
    assert found.mean["majority"] == 0.5
    assert found.mean["probe"] > 0.95 and found.mean["finetune"] > 0.95
    assert max(found.mean[each] for each in ("tfidf", "probe_random", "finetune_random")) < 0.75


def test_the_unit_of_numbers_does_not_matter(model, tmp_path):
    """Fine-tuning and probes find as much in thousands as in ones."""
    found = []
    for scale in (1, 1000, 0.001):
        rows = [{"text": WORDS[n % 9], "label": (n % 9 + 0.5) * scale} for n in range(45)]
        for split in ("train", "dev"):
            write(tmp_path / str(scale) / "one" / f"{split}.jsonl", rows)
        scores = package.evaluate_tasks(model, tmp_path / str(scale), seeds=1)
        methods = scores.tasks["one"].methods
        found.append({name: measures["pearson"].mean for name, measures in methods.items()})
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3)


# --- the verb ------------------------------------------------------------------------------------


def test_without_fine_tuning(judged, model, folder, monkeypatch):
    monkeypatch.setattr(judging, "learn_task", None)
    scores = package.evaluate_tasks(model, folder, probe_only=True)
    assert tuple(scores.mean) == METHODS[:4]
    assert scores.num_seeds == 3
    for name, task in scores.tasks.items():
        assert task.methods == {
            method: judged[0].tasks[name].methods[method] for method in METHODS[:4]
        }


def test_what_is_printed(bertmill, model, folder):
    args = ["evaluate", model, "--tasks", folder, "--probe-only", "--seeds", 2]
    scores = package.evaluate_tasks(model, folder, probe_only=True, seeds=2)
    status, out, err = bertmill(*args)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for line, (name, task) in zip(lines[-5:-1], scores.tasks.items(), strict=True):
        assert line.split()[:2] == [name, task.main_measure]
        for measures in task.methods.values():
            found = measures[task.main_measure]
            assert f"{found.mean:.3f} ± {found.high - found.mean:.3f}" in line
    assert lines[-1].split() == ["mean", *(f"{mean:.3f}" for mean in scores.mean.values())]
    assert lines[-6].split() == list(METHODS[:4])
    first = scores.tasks["binary"].methods["majority"]["accuracy"].mean
    assert lines[0] == f"binary, majority: accuracy {first:.3f}"
    status, out, err = bertmill(*args, "--json")
    assert status == 0 and json.loads(out) == asdict(scores)
    assert len(err.splitlines()) == 4 * 4


# --- what is refused -----------------------------------------------------------------------------

ROWS = [{"text": word, "label": n % 2} for n, word in enumerate(WORDS)]


def test_folders_without_tasks(refused, model, tmp_path):
    args = ["evaluate", model, "--tasks"]
    refused([*args, "gone"], "--tasks gone: is not a folder; put a")
    (tmp_path / "file").write_text("", "utf-8")
    refused([*args, "file"], "--tasks file: is not a folder; put a")
    refused([*args, ""], "--tasks: has no name", "; ")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "notes.txt").write_text("", "utf-8")
    refused([*args, "tasks"], "--tasks tasks: is not a folder of tasks", "; ")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_split_that_is_missing(split, refused, model, tmp_path):
    write(tmp_path / "tasks" / "one" / f"{split}.jsonl", ROWS)
    other = "dev" if split == "train" else "train"
    wanted = f"tasks/one: has no {other} examples; add {other}.jsonl"
    refused(["evaluate", model, "--tasks", "tasks"], wanted)


@pytest.mark.parametrize("seeds", [0, -1])
def test_seeds_that_are_none(seeds, model, folder, refused):
    with pytest.raises(InputError, match=f"`seeds`: is {seeds}; give 1 or more"):
        package.evaluate_tasks(model, folder, seeds=seeds)
    refused(["evaluate", model, "--tasks", folder, "--seeds", seeds], "--seeds")


def test_labels_of_words(refused, model, tmp_path):
    rows = [{"words": ["a", "b"], "labels": ["X", "O"]}]
    for split in ("train", "dev"):
        write(tmp_path / "tasks" / "ner" / f"{split}.jsonl", rows)
    refused(["evaluate", model, "--tasks", "tasks"], "train.jsonl: labels words", "; ")


def test_examples_that_do_not_fit(model, tmp_path):
    def judge(train, dev):
        write(tmp_path / "tasks" / "one" / "train.jsonl", train)
        write(tmp_path / "tasks" / "one" / "dev.jsonl", dev)
        return package.evaluate_tasks(model, tmp_path / "tasks", probe_only=True, seeds=1)

    with pytest.raises(InputError, match=r"dev\.jsonl: has the label '7'"):
        judge(ROWS, [{"text": "a", "label": 7}])
    with pytest.raises(InputError, match=r"train\.jsonl: has only one class"):
        judge(ROWS[:1] * 2, ROWS)
    with pytest.raises(InputError, match=r"dev\.jsonl: has no examples"):
        judge(ROWS, [])
    with pytest.raises(InputError, match=r"dev\.jsonl: does not have as many texts per row"):
        judge(ROWS, [row | {"text_b": "a"} for row in ROWS])
    with pytest.raises(CorpusError, match="is not a number"):
        judge([{"text": "a", "label": 0.5}] * 2, [{"text": "a", "label": "x"}])


def test_one_seed_has_no_interval_and_names_are_of_any_case(bertmill, model, tmp_path):
    for split in ("train", "dev"):
        write(tmp_path / "tasks" / "CoLA" / f"{split}.jsonl", ROWS * 2)
    options = {"tasks": tmp_path / "tasks", "probe_only": True, "seeds": 1}
    scores = package.evaluate_tasks(model, **options).tasks["CoLA"]
    assert scores.main_measure == "matthews"
    assert scores.methods["probe"]["matthews"].low is None
    assert scores.methods["majority"]["matthews"].low == 0.0
    args = ["evaluate", model, "--tasks", "tasks", "--probe-only", "--seeds", "1"]
    [line] = [line for line in bertmill(*args)[1].splitlines() if line.startswith("CoLA  ")]
    assert line.count("±") == 1  # of the majority class


def test_without_scikit_learn(refused, monkeypatch, model, folder):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(
        ["evaluate", model, "--tasks", folder],
        *("--tasks: needs scikit-learn", "pip install 'bertmill[evaluate]'"),
    )


# --- small tasks ---------------------------------------------------------------------------------


def scored_or_refused(model, place, train, dev, seeds=1):
    """Neither a traceback nor a warning, and no number that is none."""
    write(place / "tasks" / "one" / "train.jsonl", train)
    write(place / "tasks" / "one" / "dev.jsonl", dev)
    try:
        scores = package.evaluate_tasks(model, place / "tasks", probe_only=True, seeds=seeds)
    except BertmillError:
        return
    assert all(math.isfinite(mean) for mean in scores.mean.values())


def test_a_class_that_only_the_choosing_examples_have(model, tmp_path):
    _, choosing = choosing_rows(12, 1)
    rows = [{"text": WORDS[n % 9], "label": int(n in choosing)} for n in range(12)]
    scored_or_refused(model, tmp_path, rows, rows)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_numbers(count, model, tmp_path):
    rows = [{"text": word, "label": n + 0.5} for n, word in enumerate(WORDS[:count])]
    scored_or_refused(model, tmp_path, rows, rows)


def test_dev_examples_of_one_class(model, tmp_path):
    rows = [{"text": WORDS[n % 9], "label": n % 3 // 2} for n in range(30)]
    scored_or_refused(model, tmp_path, rows, [row for row in rows if row["label"] == 0])


def test_dev_numbers_that_do_not_vary(model, tmp_path):
    rows = [{"text": WORDS[n % 9], "label": n % 9 + 0.1} for n in range(30)]
    for count in range(1, 8):  # rounding leaves a deviation with some of them
        scored_or_refused(model, tmp_path, rows, [row | {"label": 0.1} for row in rows[:count]])
        scored_or_refused(model, tmp_path, rows, rows[:count])


def test_texts_without_words(model, tmp_path):
    rows = [{"text": " " * n, "label": n % 2} for n in range(30)]
    scored_or_refused(model, tmp_path, rows, rows)


def test_folders_that_are_hidden_are_no_tasks(model, tmp_path):
    write(tmp_path / "tasks" / "one" / "train.jsonl", ROWS * 3)
    write(tmp_path / "tasks" / "one" / "dev.jsonl", ROWS)
    (tmp_path / "tasks" / ".ipynb_checkpoints").mkdir()
    found = package.evaluate_tasks(model, tmp_path / "tasks", probe_only=True, seeds=1)
    assert list(found.tasks) == ["one"]
