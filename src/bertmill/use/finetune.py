"""Fine-tuning: all weights learn a task from labeled examples; the best epoch is kept.

Devlin et al. 2019, section 4.1 and appendix A.3; the settings for small encoders are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmill.arrays import Ints
from bertmill.config import OptimizerSection, ScheduleSection
from bertmill.data.randomness import Permutation, make_key
from bertmill.errors import InputError, RunError
from bertmill.model.folder import LoadedModel
from bertmill.model.task import Task, TaskModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.optimizer import make_optimizer, update
from bertmill.train.schedule import StepSchedule
from bertmill.use.examples import Examples, targets_of
from bertmill.use.knobs import FinetuneKnobs
from bertmill.use.predict import TaskInputs, compute_outputs, text_inputs, word_inputs

_WARMUP_FRACTION = 0.1


@dataclass(frozen=True)
class DevScores:
    """Scores on the dev examples: means over texts, or over the words that fitted."""

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


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples."""

    epoch: int
    loss: float
    """Mean over the examples, with dropout on."""
    dev: DevScores


@dataclass(frozen=True)
class TunedModel:
    """A fine-tuned model and how it got there."""

    model: TaskModel
    """With the weights of the best epoch, in evaluation mode."""
    history: list[Epoch]
    num_cut: int
    """Examples that were longer than allowed and lost their ends."""


def learn_task(
    loaded: LoadedModel,
    task: Task,
    train: Examples,
    dev: Examples,
    knobs: FinetuneKnobs,
    device: torch.device,
    show: Callable[[str, float], None],
    after_epoch: Callable[[Epoch], None],
) -> TunedModel:
    """Fine-tune a copy of a model.

    Parameters
    ----------
    loaded : LoadedModel
        Is not changed.
    task : Task
    train, dev : Examples
    knobs : FinetuneKnobs
    device : torch.device
    show : callable
        Takes a line and the share of the epoch that is done.
    after_epoch : callable

    Raises
    ------
    InputError
        Dev examples of another kind or class, or a length that the model does not take.
    RunError
        Losses or gradients are not finite.
    """
    if dev.kind != task.kind:
        raise InputError(
            "`dev`", f"is {dev.kind}, but `train` is {task.kind}", "name the kind with `task`"
        )
    if (dev.second is None) != (train.second is None):
        own, other = ("one text", "two") if dev.second is None else ("two texts", "one")
        raise InputError("`dev`", f"has {own} per example, but `train` has {other}")
    max_length = knobs.length_for(loaded)
    learned, unseen = (
        LabeledInputs.read(examples, task, loaded.tokenizer, max_length, source)
        for examples, source in ((train, "`train`"), (dev, "`dev`"))
    )
    model = _new_task_model(loaded, task, train.second is not None, learned, knobs.seed).to(device)
    training = _Training(model, learned, knobs, knobs.lr_for(loaded), device)

    history: list[Epoch] = []
    best_quality, best_epoch = (-np.inf, -np.inf), 0
    best_weights: dict[str, Tensor] = {}
    for epoch in range(1, knobs.epochs + 1):
        loss = training.run_epoch(epoch, show)
        scores = _score(model, unseen, device)
        if loss is None or not math.isfinite(scores.loss):
            raise RunError(
                "finetune",
                f"the loss or its gradient is not finite in epoch {epoch}",
                "give a lower `lr`",
            )
        history.append(Epoch(epoch, loss, scores))
        after_epoch(history[-1])
        if scores.quality > best_quality:
            best_quality, best_epoch = scores.quality, epoch
            best_weights = {name: t.clone() for name, t in model.state_dict().items()}
        if epoch - best_epoch >= knobs.patience:
            break
    model.load_state_dict(best_weights)
    num_cut = learned.inputs.sequences.num_cut + unseen.inputs.sequences.num_cut
    return TunedModel(model.eval(), history, num_cut)


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


class _Training:
    """The updates of a model: its order of examples and its dropout are keyed by seed and step."""

    def __init__(
        self,
        model: TaskModel,
        learned: LabeledInputs,
        knobs: FinetuneKnobs,
        lr: float,
        device: torch.device,
    ) -> None:
        self._model, self._learned, self._knobs = model, learned, knobs
        self._lr, self._device = lr, device
        self._optimizer = make_optimizer(model, OptimizerSection(lr=lr))
        self._num_examples = len(learned.inputs.sequences)
        self._num_batches = -(-self._num_examples // knobs.batch_size)
        num_steps = self._num_batches * knobs.epochs
        warmup = ScheduleSection(warmup_steps=int(_WARMUP_FRACTION * num_steps))
        self._schedule = StepSchedule(warmup, num_steps)

    def run_epoch(self, epoch: int, show: Callable[[str, float], None]) -> float | None:
        """Learn from all examples once; return their mean loss, None where no update was made."""
        self._model.train()
        order = Permutation(self._num_examples, make_key(self._knobs.seed, "examples", epoch))
        shuffled = order(np.arange(self._num_examples))
        total, num_answers = 0.0, 0
        for number in range(self._num_batches):
            rows = shuffled[number * self._knobs.batch_size :][: self._knobs.batch_size]
            loss, count = self._take_step((epoch - 1) * self._num_batches + number, rows)
            total, num_answers = total + loss * count, num_answers + count
            show(f"epoch {epoch}", (number + 1) / self._num_batches)
        return total / num_answers if num_answers else None

    def _take_step(self, step: int, rows: Ints) -> tuple[float, int]:
        """Update the weights; return the mean loss and its number of answers, 0 where skipped."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * self._schedule.scale(step)
        torch.manual_seed(make_key(self._knobs.seed, "dropout", step))
        inputs = self._learned.inputs
        rows = rows[np.argsort(-inputs.sequences.lengths[rows], kind="stable")]
        answers = inputs.answers_of(rows)
        if not len(answers):
            return 0.0, 0  # texts without words
        targets = torch.from_numpy(self._learned.targets[answers]).to(self._device)
        outputs = inputs.outputs(self._model, rows, self._device)
        loss = task_loss(self._model.task, outputs, targets) / len(answers)
        loss.backward()  # type: ignore[no-untyped-call]
        # Reading whether it was skipped waits for the device in each step; these runs are short.
        if update(self._optimizer, loss, OptimizerSection().clip_norm):
            return 0.0, 0
        return loss.item(), len(answers)


def _new_task_model(
    loaded: LoadedModel, task: Task, is_pair: bool, learned: LabeledInputs, seed: int
) -> TaskModel:
    """Copy the encoder and draw a head."""
    model = TaskModel(copy.deepcopy(loaded.model), task._replace(is_pair=is_pair))
    generator = torch.Generator().manual_seed(make_key(seed, "task head"))
    std = loaded.model.section.initializer_range
    nn.init.normal_(model.task_head.weight, std=std, generator=generator)
    # Numbers start at their mean: a small encoder would take long to get there.
    mean = float(learned.targets.mean()) if task.kind == "regression" else 0.0
    nn.init.constant_(model.task_head.bias, mean)
    return model


def make_inputs(tokenizer: Tokenizer, examples: Examples, max_length: int) -> TaskInputs:
    """Tokenize examples according to their kind."""
    if examples.kind == "words":
        return word_inputs(tokenizer, examples.first, max_length)
    return text_inputs(
        tokenizer, [str(text) for text in examples.first], examples.second, max_length
    )


def task_loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross entropies (nats) or squared errors of the answers, [A, C] and [A]."""
    if task.kind == "regression":
        return F.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
    return F.cross_entropy(outputs, targets.long(), reduction="sum")


def _score(model: TaskModel, labeled: LabeledInputs, device: torch.device) -> DevScores:
    outputs = compute_outputs(model, labeled.inputs, device)
    targets = labeled.targets
    loss = task_loss(model.task, torch.from_numpy(outputs), torch.from_numpy(targets)).item()
    mean = loss / len(targets)
    if model.task.kind != "regression":
        return DevScores(mean, float((outputs.argmax(-1) == targets).mean()), None)
    varies = np.ptp(outputs) > 0 and np.ptp(targets) > 0
    pearson = float(np.corrcoef(outputs[:, 0], targets)[0, 1]) if varies else None
    return DevScores(mean, None, pearson)
