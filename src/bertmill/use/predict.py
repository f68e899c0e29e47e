"""What a fine-tuned model reads and answers: texts, pairs of texts, or lists of words.

Letters in shapes: B sequences, N tokens, A answers (one per text, or one per word), C classes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertmill.arrays import Ints
from bertmill.data.layout import spans
from bertmill.errors import InputError
from bertmill.model.task import Task, TaskModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.examples import Examples
from bertmill.use.parallel import map_by_length
from bertmill.use.sequences import (
    Sequences,
    assemble,
    device_of,
    make_sequences,
    refuse_non_text,
)


class Prediction(NamedTuple):
    """The most probable class, and how probable each one is."""

    label: str
    probability: float
    probabilities: tuple[float, ...]
    """Of all classes, in the order of the task's labels."""


Predictions = list[Prediction] | list[float] | list[list[Prediction | None]]
"""A class or a number for each text, or a class for each word; None for words that did not fit."""


@dataclass(frozen=True)
class TaskInputs:
    """Texts as sequences, and the positions of their answers."""

    sequences: Sequences
    answer_starts: Ints
    """Where each sequence's answers begin among all, and A, shape (B + 1,)."""
    answer_at: Ints | None
    """Position of each answer among all N tokens, shape (A,); None: at the pooled first token."""
    words: Ints | None
    """Number of each answer's word among all words, shape (A,); some words may not have fitted."""
    word_starts: Ints | None
    """Where each text's words begin among all words, and their number, shape (B + 1,)."""

    def answers_of(self, rows: Ints) -> Ints:
        """List the answers of these rows, in their order."""
        return spans(self.answer_starts[rows], np.diff(self.answer_starts)[rows])

    def outputs(self, model: TaskModel, rows: Ints) -> Tensor:
        """Compute the answers of these rows, [A, C]."""
        device = device_of(model)
        outputs: Tensor = model(self.sequences.pack(rows, device))
        if self.answer_at is None:
            return outputs
        lengths, counts = self.sequences.lengths[rows], np.diff(self.answer_starts)[rows]
        moved = np.cumsum(lengths) - lengths - self.sequences.starts[rows]
        places = self.answer_at[self.answers_of(rows)] + np.repeat(moved, counts)
        return outputs.index_select(0, torch.from_numpy(places).to(device))


def predict_texts(
    model: TaskModel, tokenizer: Tokenizer, examples: Examples, max_length: int
) -> tuple[Predictions, int]:
    """Answer for each text, and count the texts that were cut; see `Pretrained.predict`."""
    texts, second, is_words = examples.first, examples.second, examples.kind == "words"
    if isinstance(texts, str) or (is_words and any(isinstance(text, str) for text in texts)):
        wanted = "labels words: give a list of word lists" if is_words else "takes a list of texts"
        raise InputError("texts", f"are {str(texts)[:80]!r}, but this model {wanted}")
    if second is not None and len(second) != len(texts):
        raise InputError("texts", f"{len(second)} second texts for {len(texts)} first ones")
    if model.task.is_pair and second is None:
        raise InputError(
            "texts",
            "are single texts, but the model was fine-tuned on pairs",
            "name the column of the second texts with `column_b`",
        )
    if second is not None and (is_words or model.task.is_pair is False):
        raise InputError("texts", "are pairs, but the model was fine-tuned on single texts")
    inputs = make_inputs(tokenizer, examples, max_length)
    outputs = compute_outputs(model, inputs)
    return to_predictions(model.task, outputs, inputs), inputs.sequences.num_cut


def make_inputs(tokenizer: Tokenizer, examples: Examples, max_length: int) -> TaskInputs:
    """Tokenize texts or pairs of texts, with one answer each, or lists of words.

    A word's answer is at its first piece (Devlin et al. 2019, 5.3). One that the tokenizer turns
    into no token at all is read as the unknown token.
    """
    first = examples.first
    if examples.kind != "words":
        sequences = make_sequences(tokenizer, first, examples.second, max_length)
        return TaskInputs(sequences, np.arange(len(first) + 1), None, None, None)
    words = [word for text in first for word in text]
    for word in words:
        refuse_non_text(word)
    ids, counts = tokenizer.encode_batch(words)
    starts = np.cumsum(counts) - counts
    ids = np.insert(ids, starts[counts == 0], tokenizer.unk_id)
    counts = np.maximum(counts, 1)
    num_words = np.array([len(text) for text in first], np.int64)
    owners = np.repeat(np.arange(len(first)), num_words)
    lengths = np.bincount(owners, counts, len(first)).astype(np.int64)
    sequences = assemble(tokenizer, (ids, lengths), None, max_length)
    in_text = np.cumsum(counts) - counts - (np.cumsum(lengths) - lengths)[owners]
    fits = np.flatnonzero(in_text < (sequences.lengths - 2)[owners])
    answer_starts = np.concatenate([[0], np.cumsum(np.bincount(owners[fits], None, len(first)))])
    answer_at = (sequences.starts[owners] + 1 + in_text)[fits]
    word_starts = np.concatenate([[0], np.cumsum(num_words)])
    return TaskInputs(sequences, answer_starts, answer_at, fits, word_starts)


def compute_outputs(model: TaskModel, inputs: TaskInputs) -> npt.NDArray[np.float32]:
    """Compute all answers with dropout off, [A, C]: logits, or numbers; the mode is restored."""
    was_training = model.training
    model.eval()

    @torch.inference_mode()
    def compute(rows: Ints) -> npt.NDArray[np.float32]:
        return inputs.outputs(model, rows).cpu().numpy()

    outputs = np.zeros((int(inputs.answer_starts[-1]), model.task.num_outputs), np.float32)
    try:
        for rows, found in map_by_length(compute, inputs.sequences.lengths, device_of(model)):
            outputs[inputs.answers_of(rows)] = found
    finally:
        model.train(was_training)
    return outputs


def to_predictions(task: Task, outputs: npt.NDArray[np.float32], inputs: TaskInputs) -> Predictions:
    """Read the outputs as numbers, or as the names of the most probable classes."""
    if task.kind == "regression":
        return [float(value) for value in outputs[:, 0]]
    shares = torch.from_numpy(outputs).softmax(-1).numpy()
    best = shares.argmax(-1)
    named = [
        Prediction(task.labels[i], row[i], tuple(row))
        for i, row in zip(best.tolist(), shares.tolist(), strict=True)
    ]
    if inputs.words is None or inputs.word_starts is None:
        return named
    answers = dict(zip(inputs.words.tolist(), named, strict=True))
    return [
        [answers.get(word) for word in range(start, stop)]
        for start, stop in itertools.pairwise(inputs.word_starts.tolist())
    ]
