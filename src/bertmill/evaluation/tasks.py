"""What pretraining gained on labeled tasks, compared with what is reached without it.

Six methods predict each task, with the same examples and measures:

- ``majority``: the most frequent class, or the mean;
- ``tfidf``: a linear classifier over TF-IDF of words and pairs of words;
- ``probe_random``, ``probe``: the same classifier over sentence vectors of the frozen encoder, with
  random and with pretrained weights;
- ``finetune_random``, ``finetune``: all weights trained, starting from random or pretrained ones.

Nothing is chosen on the dev examples: a tenth of the training examples picks the classifier's
regularization and fine-tuning's best epoch.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertmill.data.randomness import make_key
from bertmill.errors import InputError
from bertmill.evaluation.probes import (
    Targets,
    choosing_rows,
    encoder_features,
    predict_constant,
    predict_linearly,
    refuse_without_scikit_learn,
    tfidf_features,
)
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.model.task import Task
from bertmill.text.files import COMPRESSIONS
from bertmill.text.rows import ROW_ENDINGS
from bertmill.train.progress import RunProgress
from bertmill.use.examples import (
    Columns,
    Examples,
    read_examples,
    read_similar,
    targets_of,
    task_of,
)
from bertmill.use.finetune import learn_task
from bertmill.use.knobs import FinetuneKnobs
from bertmill.use.pretrained import Pretrained
from bertmill.use.sequences import device_of

_METHODS = ("majority", "tfidf", "probe_random", "probe", "finetune_random", "finetune")
_MAIN_MEASURES = {"cola": "matthews", "mrpc": "f1"}
"""Tasks for which GLUE (Wang et al. 2019) reports another measure than accuracy."""
_EPOCHS = 4
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measure over several seeds."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval of the mean (Student's t). None with one seed; equal to the
    mean for methods without randomness."""
    high: float | None


@dataclass(frozen=True)
class TaskScores:
    """Scores on one task."""

    kind: str
    """``classification`` or ``regression``."""
    num_train: int
    num_dev: int
    main_measure: str
    methods: dict[str, dict[str, Estimate]]
    """For each method its measures: ``accuracy``, ``f1`` (of class 1 where there are 0 and 1, else
    the mean over the classes) and ``matthews``; or ``pearson`` and ``spearman``."""


@dataclass(frozen=True)
class AllTaskScores:
    """Scores on all tasks."""

    num_seeds: int
    tasks: dict[str, TaskScores]
    mean: dict[str, float]
    """For each method, the mean of the tasks' main measures."""


def evaluate_tasks(
    model: Pretrained,
    folder: str,
    num_seeds: int,
    with_finetuning: bool,
    say: Callable[[str], None],
) -> AllTaskScores:
    """Probe and fine-tune a model on every task of a folder.

    Parameters
    ----------
    model : Pretrained
    folder : str
        A folder for each task, with files ``train`` and ``dev`` as `read_examples` takes them.
    num_seeds : int
    with_finetuning : bool
    say : callable
        Takes a line for each method's scores.

    Raises
    ------
    InputError, CorpusError
        No tasks there, or a file that is missing or cannot be used.
    MissingExtraError
        scikit-learn is not installed.
    """
    refuse_without_scikit_learn()
    # All are read first: a damaged file is found before the long work begins.
    tasks = {name: _TaskData.read(*files) for name, files in _find_tasks(folder)}
    found = {}
    for name, data in tasks.items():
        main = _MAIN_MEASURES.get(name.lower(), "accuracy") if data.task.labels else "spearman"
        methods = {}
        for method in _METHODS if with_finetuning else _METHODS[:4]:
            measured = [data.measure(each) for each in data.predict(method, model, num_seeds)]
            is_fixed = method == "majority"
            methods[method] = {
                key: _estimate([values[key] for values in measured], is_fixed)
                for key in measured[0]
            }
            say(f"{name}, {method}: {main} {methods[method][main].mean:.3f}")
        found[name] = TaskScores(data.task.kind, len(data.train), len(data.dev), main, methods)
    mean = {
        method: float(np.mean([t.methods[method][t.main_measure].mean for t in found.values()]))
        for method in methods
    }
    return AllTaskScores(num_seeds, found, mean)


@dataclass(frozen=True)
class _TaskData:
    """A task's examples, with their labels as numbers."""

    train: Examples
    dev: Examples
    task: Task
    train_targets: Targets
    dev_targets: Targets

    @classmethod
    def read(cls, train_file: str, dev_file: str) -> _TaskData:
        train = read_examples(train_file, Columns(), None)
        if train.kind == "words":
            raise InputError(train_file, "labels words", "tasks here label texts or pairs of texts")
        texts = [*train.first, *(train.second or [])]
        if len(train) < 2 or not any(str(text).strip() for text in texts):
            raise InputError(train_file, "has fewer than 2 examples, or none with words")
        dev = read_similar(dev_file, Columns(), train)
        task = task_of(train, train_file)
        train_targets = np.array(targets_of(train, task, train_file))
        dev_targets = np.array(targets_of(dev, task, dev_file))
        return cls(train, dev, task, train_targets, dev_targets)

    def predict(self, method: str, model: Pretrained, num_seeds: int) -> Iterator[Targets]:
        """Predict the dev examples once per seed, or once for a method without randomness."""
        if method == "majority":
            yield predict_constant(self.task, self.train_targets, len(self.dev))
            return
        fixed = None
        if method == "tfidf":
            fixed = tfidf_features(self.train, self.dev)
        elif method == "probe":
            fixed = self._encoder_features(model)
        for seed in range(1, num_seeds + 1):
            chosen = _with_random_weights(model, seed) if method.endswith("_random") else model
            if method.startswith("finetune"):
                yield self._fine_tuned(chosen, seed)
            else:
                train, dev = fixed or self._encoder_features(chosen)
                yield predict_linearly(self.task, train, self.train_targets, dev, seed)

    def measure(self, predicted: Targets) -> dict[str, float]:
        """Compare predictions with the labels."""
        from scipy import stats
        from sklearn import metrics

        true = self.dev_targets
        if self.task.kind == "regression":
            # Not by standard deviation, which rounding may leave above 0.
            varies = np.ptp(predicted) > 0 and np.ptp(true) > 0
            return {
                "pearson": float(stats.pearsonr(predicted, true)[0]) if varies else 0.0,
                "spearman": float(stats.spearmanr(predicted, true)[0]) if varies else 0.0,
            }
        average = "binary" if self.task.labels == ("0", "1") else "macro"
        with warnings.catch_warnings():
            # Dev examples of a single class are measured too.
            warnings.filterwarnings("ignore", "A single label was found", UserWarning)
            return {
                "accuracy": float(metrics.accuracy_score(true, predicted)),
                "f1": float(metrics.f1_score(true, predicted, average=average, zero_division=0.0)),
                "matthews": float(metrics.matthews_corrcoef(true, predicted)),
            }

    def _encoder_features(self, model: Pretrained) -> tuple[object, object]:
        return encoder_features(model, self.train), encoder_features(model, self.dev)

    def _fine_tuned(self, model: Pretrained, seed: int) -> Targets:
        learned, choosing = (rows.tolist() for rows in choosing_rows(len(self.train), seed))
        tuned = learn_task(
            model.loaded,
            self.task,
            self.train.select(learned),
            self.train.select(choosing),
            FinetuneKnobs(epochs=_EPOCHS, seed=seed),
            RunProgress(io.StringIO()),
        )
        loaded = dataclasses.replace(model.loaded, task_model=tuned.model)
        opened = Pretrained(loaded, device_of(model.model))
        answers: list[Any] = opened.predict(self.dev.first, self.dev.second)
        labels = answers if self.task.kind == "regression" else [each.label for each in answers]
        return np.array(targets_of(dataclasses.replace(self.dev, labels=labels), self.task, ""))


def _find_tasks(folder: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each task's name and files, in the order of their names."""
    folders = sorted(path for path in Path(folder).glob("[!.]*") if path.is_dir())
    if not folders:
        raise InputError(
            f"`tasks` {folder}", "is not a folder of tasks", "put a folder for each task into it"
        )
    for task in folders:
        yield task.name, (_find_split(task, "train"), _find_split(task, "dev"))


def _find_split(task: Path, split: str) -> str:
    for ending, compression in itertools.product(ROW_ENDINGS, ("", *COMPRESSIONS)):
        path = task / f"{split}{ending}{compression}"
        if path.is_file():
            return str(path)
    raise InputError(task, f"has no {split} examples", f"add {split}.jsonl, .csv, .tsv or .parquet")


def _with_random_weights(pretrained: Pretrained, seed: int) -> Pretrained:
    """Return the same network and tokenizer with random weights, as pretraining starts from."""
    section = pretrained.model.section
    model = PretrainingModel(section, pretrained.model.vocab_size)
    initialize(model, section, torch.Generator().manual_seed(make_key(seed, "weights")))
    loaded = dataclasses.replace(pretrained.loaded, model=model.eval(), task_model=None)
    return Pretrained(loaded, device_of(pretrained.model))


def _estimate(values: Sequence[float], is_fixed: bool) -> Estimate:
    from scipy import stats

    mean = float(np.mean(values))
    if is_fixed:
        return Estimate(mean, mean, mean)
    if len(values) == 1:
        return Estimate(mean, None, None)
    quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
    spread = float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - spread, mean + spread)
