"""Fine-tuning: all weights learn a task from labeled examples, and the best epoch is kept.

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
    """Answers to the dev examples: means over texts, or over the words that fitted."""

    loss: float
    """Cross entropy in nats, or squared error."""
    accuracy: float | None
    """None for regression."""
    pearson: float | None
    """Correlation of answers and labels; None for classes, and where either does not vary."""

    @property
    def quality(self) -> tuple[float, float]:
        """What is compared between epochs; more is better."""
        return (-self.loss if self.accuracy is None else self.accuracy, -self.loss)


@dataclass(frozen=True)
class Epoch:
    """A pass over the examples."""

    epoch: int
    loss: float
    """Mean over the examples, with dropout on."""
    dev: DevScores


@dataclass(frozen=True)
class Tuned:
    """What came of fine-tuning."""

    model: TaskModel
    """That of the best epoch, in evaluation mode."""
    history: list[Epoch]
    num_cut: int
    """Examples that were longer than allowed; their ends are missing."""


def learn_task(
    loaded: LoadedModel,
    task: Task,
    train: Examples,
    dev: Examples,
    knobs: FinetuneKnobs,
    device: torch.device,
    show: Callable[[str, float], None],
    after_epoch: Callable[[Epoch], None],
) -> Tuned:
    """Fine-tune a copy of a model.

    Parameters
    ----------
    loaded : LoadedModel
        Stays as it is.
    task : Task
    train, dev : Examples
    knobs : FinetuneKnobs
    device : torch.device
    show : callable
        Takes a line and the share of an epoch that is done.
    after_epoch : callable

    Raises
    ------
    InputError
        Dev examples of another kind or class, or a length that the model does not take.
    RunError
        Losses or gradients are not finite.
    """
    if dev.kind != task.kind:
        raise InputError("--dev", f"is {dev.kind}, --train is {task.kind}", "give --task")
    if (dev.second is None) != (train.second is None):
        raise InputError("--dev", "has one text where --train has two", "give both the same")
    max_length = knobs.length_for(loaded)
    learned, unseen = (
        _Answered.of(examples, task, loaded.tokenizer, max_length, source)
        for examples, source in ((train, "--train"), (dev, "--dev"))
    )
    model = _new_task_model(loaded, task, train.second is not None, learned, knobs.seed).to(device)
    lr = knobs.lr_for(loaded)
    optimizer = make_optimizer(model, OptimizerSection(lr=lr))
    batches = -(-len(train) // knobs.batch_size)
    num_steps = batches * knobs.epochs
    warmup = ScheduleSection(warmup_steps=int(_WARMUP_FRACTION * num_steps))
    schedule = StepSchedule(warmup, num_steps)

    history: list[Epoch] = []
    best_quality, best_epoch = (-np.inf, -np.inf), 0
    best_weights: dict[str, Tensor] = {}
    for epoch in range(1, knobs.epochs + 1):
        model.train()
        order = Permutation(len(train), make_key(knobs.seed, "examples", epoch))
        shuffled = order(np.arange(len(train)))
        total, num_answers = 0.0, 0
        for number in range(batches):
            step = (epoch - 1) * batches + number
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.scale(step)
            torch.manual_seed(make_key(knobs.seed, "dropout", step))
            rows = shuffled[number * knobs.batch_size : (number + 1) * knobs.batch_size]
            rows = rows[np.argsort(-learned.inputs.sequences.lengths[rows], kind="stable")]
            answers = learned.inputs.answers_of(rows)
            if not len(answers):
                continue  # texts without words
            wanted = torch.from_numpy(learned.targets[answers]).to(device)
            outputs = learned.inputs.outputs(model, rows, device)
            loss = task_loss(task, outputs, wanted) / len(answers)
            loss.backward()  # type: ignore[no-untyped-call]
            # Reading what came of it is a wait in each step, which so short a run can bear.
            if not update(optimizer, loss, OptimizerSection().clip_norm):
                total, num_answers = total + loss.item() * len(answers), num_answers + len(answers)
            show(f"epoch {epoch}", (number + 1) / batches)
        scores = _score(model, unseen, device)
        if not num_answers or not math.isfinite(scores.loss):
            raise RunError(
                "finetune",
                f"the loss or its gradient is not finite in epoch {epoch}",
                "give a lower --lr",
            )
        history.append(Epoch(epoch, total / num_answers, scores))
        after_epoch(history[-1])
        if scores.quality > best_quality:
            best_quality, best_epoch = scores.quality, epoch
            best_weights = {name: t.clone() for name, t in model.state_dict().items()}
        if epoch - best_epoch >= knobs.patience:
            break
    model.load_state_dict(best_weights)
    num_cut = learned.inputs.sequences.num_cut + unseen.inputs.sequences.num_cut
    return Tuned(model.eval(), history, num_cut)


@dataclass(frozen=True)
class _Answered:
    """Examples as the model reads them, and what it should answer."""

    inputs: TaskInputs
    targets: npt.NDArray[np.float64]
    """Shape (A,)."""

    @classmethod
    def of(
        cls, examples: Examples, task: Task, tokenizer: Tokenizer, max_length: int, source: str
    ) -> _Answered:
        inputs = make_inputs(tokenizer, examples, max_length)
        targets = np.array(targets_of(examples, task, source))
        if inputs.words is not None:
            targets = targets[inputs.words]  # of the words that fitted
        if not len(targets):
            raise InputError(source, "has no labeled words", "give examples with words")
        return cls(inputs, targets)


def _new_task_model(
    loaded: LoadedModel, task: Task, is_pair: bool, learned: _Answered, seed: int
) -> TaskModel:
    """Copy the encoder and draw a head."""
    model = TaskModel(copy.deepcopy(loaded.model), task, is_pair)
    generator = torch.Generator().manual_seed(make_key(seed, "task head"))
    std = loaded.model.section.initializer_range
    nn.init.normal_(model.task_head.weight, std=std, generator=generator)
    # A number is learned from its mean on: the way there would take a small encoder long.
    mean = float(learned.targets.mean()) if task.kind == "regression" else 0.0
    nn.init.constant_(model.task_head.bias, mean)
    return model


def make_inputs(tokenizer: Tokenizer, examples: Examples, max_length: int) -> TaskInputs:
    """Tokenize examples as their kind asks for."""
    if examples.kind == "words":
        return word_inputs(tokenizer, examples.first, max_length)
    return text_inputs(
        tokenizer, [str(text) for text in examples.first], examples.second, max_length
    )


def task_loss(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross entropies or squared errors of the answers, [A, C] and [A], in nats."""
    if task.kind == "regression":
        return F.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
    return F.cross_entropy(outputs, targets.long(), reduction="sum")


def _score(model: TaskModel, answered: _Answered, device: torch.device) -> DevScores:
    outputs = compute_outputs(model, answered.inputs, device)
    targets = answered.targets
    loss = task_loss(model.task, torch.from_numpy(outputs), torch.from_numpy(targets)).item()
    mean = loss / len(targets)
    if model.task.kind != "regression":
        return DevScores(mean, float((outputs.argmax(-1) == targets).mean()), None)
    varies = np.ptp(outputs) > 0 and np.ptp(targets) > 0
    pearson = float(np.corrcoef(outputs[:, 0], targets)[0, 1]) if varies else None
    return DevScores(mean, None, pearson)
