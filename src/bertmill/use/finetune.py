"""Fine-tuning: all weights learn a task from labeled examples; the best epoch is kept.

Devlin et al. 2019, section 4.1 and appendix A.3; the settings for small encoders are ours.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.config import OptimizerSection, ScheduleSection
from bertmill.data.randomness import Permutation, make_key
from bertmill.errors import InputError, RunError
from bertmill.model.folder import LoadedModel, save_model
from bertmill.model.task import Task, TaskModel
from bertmill.storage import folder_that_appears_whole, write_json
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.optimizer import make_optimizer, update
from bertmill.train.progress import RunProgress
from bertmill.train.schedule import StepSchedule
from bertmill.train.signals import StopRequest, stop_signals
from bertmill.use.examples import (
    Columns,
    Examples,
    read_examples,
    read_similar,
    targets_of,
    task_of,
)
from bertmill.use.knobs import FinetuneKnobs
from bertmill.use.predict import TaskInputs, compute_outputs, make_inputs
from bertmill.use.sequences import device_of

_WARMUP_FRACTION = 0.1
_REPORT_FILE = "finetune.json"


@dataclass(frozen=True)
class DevScores:
    """Scores on dev or test examples: means over texts, or over the words that fitted."""

    loss: float
    """Cross entropy in nats, or squared error."""
    accuracy: float | None
    """None for regression."""
    pearson: float | None
    """Correlation of answers and labels; None for classes, and where either does not vary."""

    @property
    def quality(self) -> tuple[float, float]:
        """The criterion that chooses an epoch; higher is better."""
        return (-self.loss if self.accuracy is None else self.accuracy, -self.loss)

    def __str__(self) -> str:
        if self.accuracy is not None:
            return f"{self.loss:.3f}, {self.accuracy:.1%} right"
        correlation = "" if self.pearson is None else f", correlation {self.pearson:.3f}"
        return f"{self.loss:.4g}{correlation}"  # as small as the numbers are


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples."""

    epoch: int
    loss: float
    """Mean over the examples, with dropout on."""
    dev: DevScores

    def __str__(self) -> str:
        form = ".4g" if self.dev.accuracy is None else ".3f"
        return f"epoch {self.epoch}: loss {self.loss:{form}}, on dev {self.dev}"


@dataclass(frozen=True)
class FineTuned:
    """A model that was fine-tuned, and how it did."""

    folder: Path
    task: str
    labels: tuple[str, ...]
    num_train: int
    num_dev: int
    num_test: int
    num_cut: int
    """Examples of all these that were longer than allowed; their ends do not count."""
    best_epoch: int
    """Whose weights were kept: the one with the best score on the dev examples, which is therefore
    a little too good."""
    epochs: tuple[Epoch, ...]
    test: DevScores | None
    """Scores on the test examples, where there are any; they chose nothing."""
    stopped_by: int | None
    """Number of the signal that ended it early."""
    seconds: float


@dataclass(frozen=True)
class TunedModel:
    """A fine-tuned model and how it got there."""

    model: TaskModel
    """With the weights of the best epoch, in evaluation mode."""
    history: tuple[Epoch, ...]
    best_epoch: int
    test: DevScores | None
    stopped_by: int | None
    num_cut: int
    """Examples that were longer than allowed and lost their ends."""


def finetune_on_files(
    loaded: LoadedModel,
    sources: Sequence[str],
    out: Path,
    kind: str | None,
    columns: Columns,
    knobs: FinetuneKnobs,
    progress: RunProgress,
) -> FineTuned:
    """Fine-tune on the examples of two files and write the folder; see `bertmill.finetune`.

    `sources` are the examples to learn from, those that choose the epoch and, if there are any,
    those to score it on; `kind` is that of the task, None: as the labels are.

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    started = time.monotonic()
    # All of the work is inside: a second process with this `out` is refused before it begins.
    with folder_that_appears_whole(out, InputError) as folder:
        train = read_examples(sources[0], columns, kind)
        task = task_of(train, sources[0])
        dev, *tests = (read_similar(source, columns, train) for source in sources[1:])
        test = tests[0] if tests else None
        classes = f", {len(task.labels)} classes" if task.labels else ""
        progress.say(f"{task.kind}: {len(train):,} examples{classes}")
        with stop_signals(progress.say, "then keeping the best epoch") as stop:
            tuned = learn_task(loaded, task, train, dev, knobs, progress, test, stop)
        if tuned.num_cut:
            progress.say(f"{tuned.num_cut:,} examples are longer than allowed and were cut")
        if test is None:
            progress.say(
                "dev chose the epoch, so its score is a little too good; test examples give a "
                "fair one"
            )
        else:
            progress.say(f"on test {tuned.test} ({len(test):,} examples that chose nothing)")
        result = FineTuned(
            folder=out,
            task=task.kind,
            labels=task.labels,
            num_train=len(train),
            num_dev=len(dev),
            num_test=0 if test is None else len(test),
            num_cut=tuned.num_cut,
            best_epoch=tuned.best_epoch,
            epochs=tuned.history,
            test=tuned.test,
            stopped_by=tuned.stopped_by,
            seconds=time.monotonic() - started,
        )
        knobs = replace(knobs, lr=knobs.lr_for(loaded), max_length=knobs.length_for(loaded))
        save_model(folder, tuned.model, loaded.tokenizer, loaded.about, max_length=knobs.max_length)
        report = {**asdict(result), "folder": str(out), "knobs": asdict(knobs)}
        write_json(folder / _REPORT_FILE, report)
        return result


def learn_task(
    loaded: LoadedModel,
    task: Task,
    train: Examples,
    dev: Examples,
    knobs: FinetuneKnobs,
    progress: RunProgress,
    test: Examples | None = None,
    stop: StopRequest = StopRequest(),  # noqa: B008 - one that nobody makes
) -> TunedModel:
    """Fine-tune a copy of a model, where that one is.

    Parameters
    ----------
    loaded : LoadedModel
        Is not changed.
    task : Task
    train, dev, test : Examples
        Of the same kind, with as many texts each. The epoch that is best on `dev` is kept, and
        scored on `test`.
    knobs : FinetuneKnobs
    progress : RunProgress
        Shows each epoch.
    stop : StopRequest
        Ends it with the best epoch so far.

    Raises
    ------
    InputError
        A class of dev or test examples that is not among the task's, or a length that the model
        does not take.
    RunError
        Losses or gradients are not finite.
    """
    max_length = knobs.length_for(loaded)
    splits = {"`train`": train, "`dev`": dev, "`test`": test}
    read = [
        LabeledInputs.read(examples, task, loaded.tokenizer, max_length, source)
        for source, examples in splits.items()
        if examples is not None
    ]
    mean, unit = 0.0, 1.0
    if is_number := task.kind == "regression":
        # Numbers are learned in units of their deviation from their mean, whatever their size.
        mean, unit = read[0].targets.mean(), read[0].targets.std() or 1.0
        read = [replace(each, targets=(each.targets - mean) / unit) for each in read]
    learned, unseen, *tests = read
    model = _new_task_model(loaded, task, knobs.seed)
    history: list[Epoch] = []
    best: Epoch | None = None
    best_weights: dict[str, Tensor] = {}
    losses = _learn(model, learned, knobs, knobs.lr_for(loaded), progress, stop)
    for number, loss in enumerate(losses, 1):
        scores = _score(model, unseen, unit)
        if loss is None or not math.isfinite(scores.loss):
            raise RunError(
                "finetune",
                f"the loss or its gradient is not finite in epoch {number}",
                "give a lower `lr`",
            )
        history.append(Epoch(number, loss * unit**2, scores))
        progress.say(str(history[-1]))
        if best is None or scores.quality > best.dev.quality:
            best = history[-1]
            best_weights = {name: t.clone() for name, t in model.state_dict().items()}
        if number - best.epoch >= knobs.patience:
            break
    if best is None:  # stopped in the first epoch
        raise KeyboardInterrupt
    model.load_state_dict(best_weights)
    test_scores = _score(model, tests[0], unit) if tests else None
    if is_number:
        with torch.no_grad():
            model.task_head.weight.mul_(unit)
            model.task_head.bias.mul_(unit).add_(mean)
    num_cut = sum(each.inputs.sequences.num_cut for each in read)
    is_stopped = len(history) < knobs.epochs and number - best.epoch < knobs.patience
    stopped_by = stop.signal if is_stopped else None
    return TunedModel(model.eval(), tuple(history), best.epoch, test_scores, stopped_by, num_cut)


@dataclass(frozen=True)
class LabeledInputs:
    """Examples as the model reads them, with their labels as numbers."""

    inputs: TaskInputs
    targets: npt.NDArray[np.float64]
    """Shape (A,)."""

    @classmethod
    def read(
        cls, examples: Examples, task: Task, tokenizer: Tokenizer, max_length: int, source: str
    ) -> LabeledInputs:
        """Tokenize examples and look their labels up; `source` names them in an error."""
        inputs = make_inputs(tokenizer, examples, max_length)
        targets = np.array(targets_of(examples, task, source))
        if inputs.words is not None:
            targets = targets[inputs.words]  # of the words that fitted
        if not len(targets):
            raise InputError(source, "has no labeled words", "give examples with words")
        return cls(inputs, targets)


def _learn(
    model: TaskModel,
    learned: LabeledInputs,
    knobs: FinetuneKnobs,
    lr: float,
    progress: RunProgress,
    stop: StopRequest,
) -> Iterator[float | None]:
    """Learn from all examples, epoch after epoch; yield the mean loss of each until `stop`.

    It is None where no update was made. The order of examples and dropout are keyed by the seed and
    by epoch or step.
    """
    inputs, optimizer = learned.inputs, make_optimizer(model, OptimizerSection(lr=lr))
    num_examples = len(inputs.sequences)
    starts = range(0, num_examples, knobs.batch_size)
    num_steps = len(starts) * knobs.epochs
    warmup = ScheduleSection(warmup_steps=int(_WARMUP_FRACTION * num_steps))
    schedule = StepSchedule(warmup, num_steps)
    for epoch in range(1, knobs.epochs + 1):
        model.train()
        order = Permutation(num_examples, make_key(knobs.seed, "examples", epoch))
        shuffled = order(np.arange(num_examples))
        total, num_answers = 0.0, 0
        for number, start in enumerate(starts):
            step = (epoch - 1) * len(starts) + number
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.scale(step)
            torch.manual_seed(make_key(knobs.seed, "dropout", step))
            rows = shuffled[start : start + knobs.batch_size]
            rows = rows[np.argsort(-inputs.sequences.lengths[rows], kind="stable")]
            answers = inputs.answers_of(rows)
            if len(answers):  # not only texts without words
                outputs = inputs.outputs(model, rows)
                targets = torch.from_numpy(learned.targets[answers]).to(outputs.device)
                loss = task_loss(model.task, outputs, targets) / len(answers)
                loss.backward()  # type: ignore[no-untyped-call]
                # Reading whether it was skipped waits for the device; these runs are short.
                if not update(optimizer, loss, OptimizerSection().clip_norm):
                    total += loss.item() * len(answers)
                    num_answers += len(answers)
            progress.show(f"epoch {epoch}", (number + 1) / len(starts))
            if stop.signal is not None:
                return
        yield total / num_answers if num_answers else None


def _new_task_model(loaded: LoadedModel, task: Task, seed: int) -> TaskModel:
    """Copy the encoder and draw a head."""
    model = TaskModel(copy.deepcopy(loaded.model), task)
    generator = torch.Generator().manual_seed(make_key(seed, "task head"))
    std = loaded.model.section.initializer_range
    nn.init.normal_(model.task_head.weight, std=std, generator=generator)
    nn.init.zeros_(model.task_head.bias)
    return model.to(device_of(loaded.model))


def task_loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross entropies (nats) or squared errors of the answers, [A, C] and [A]."""
    if task.kind == "regression":
        return F.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
    return F.cross_entropy(outputs, targets.long(), reduction="sum")


def _score(model: TaskModel, labeled: LabeledInputs, unit: float) -> DevScores:
    """Score the model; a squared error is that of numbers in this unit."""
    outputs = compute_outputs(model, labeled.inputs)
    targets = labeled.targets
    loss = task_loss(model.task, torch.from_numpy(outputs), torch.from_numpy(targets)).item()
    mean = loss / len(targets)
    if model.task.kind != "regression":
        return DevScores(mean, float((outputs.argmax(-1) == targets).mean()), None)
    varies = np.ptp(outputs) > 0 and np.ptp(targets) > 0
    pearson = float(np.corrcoef(outputs[:, 0], targets)[0, 1]) if varies else None
    return DevScores(mean * unit**2, None, pearson)
