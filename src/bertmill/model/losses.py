"""The two losses, as sums: whoever knows the global counts divides, once, at the end.

Letters in shapes: B sequences, P predictions, S tokens selected, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmill.model.heads import PretrainingModel
from bertmill.model.packed import PackedTokens, Selection
from bertmill.model.vocabulary_loss import vocabulary_loss

_ROWS_AT_ONCE = 512


class PretrainingInput(NamedTuple):
    """A batch on the model's device."""

    packed: PackedTokens
    selection: Selection
    """What the losses read: masked tokens and, with pairs, the first token of each sequence."""
    masked_rows: Tensor
    """Places of the masked tokens among the selected, [P], rising."""
    masked_labels: Tensor
    """[P]."""
    next_sentence_labels: Tensor
    """[B], 1 = the second segment follows the first; [0] without pairs."""


class LossSums(NamedTuple):
    """Cross entropies summed over P predictions and B sequences, in nats, each []."""

    mlm: Tensor
    nsp: Tensor


class Scores(NamedTuple):
    """What validation reads: the loss of every answer, in nats, and whether it was right."""

    mlm: Tensor
    """[P]."""
    mlm_right: Tensor
    """[P], bool."""
    nsp: Tensor
    """[B]; [0] without pairs."""
    nsp_right: Tensor
    """[B], bool; [0] without pairs."""


def pretraining_losses(model: PretrainingModel, batch: PretrainingInput) -> LossSums:
    """Sum both cross entropies over a batch, without ever holding all logits [P, V].

    Returns
    -------
    LossSums
        `nsp` is 0 where the batch has no pairs.
    """
    hidden = model(batch.packed, batch.selection)
    head = model.masked_token_head
    mlm = vocabulary_loss(
        head(hidden.index_select(0, batch.masked_rows)),
        model.decoder_weight,
        head.bias,
        batch.masked_labels,
    )
    if not len(batch.next_sentence_labels):
        return LossSums(mlm, mlm.new_zeros(()))
    logits = _next_sentence_logits(model, hidden, batch)
    return LossSums(mlm, F.cross_entropy(logits, _rows(batch), reduction="sum"))


@torch.no_grad()
def score_batch(model: PretrainingModel, batch: PretrainingInput) -> Scores:
    """Score every answer of a batch; the model should be in evaluation mode."""
    hidden = model(batch.packed, batch.selection)
    mlm, mlm_right = [], []
    for start in range(0, len(batch.masked_rows), _ROWS_AT_ONCE):
        rows = batch.masked_rows[start : start + _ROWS_AT_ONCE]
        labels = batch.masked_labels[start : start + _ROWS_AT_ONCE]
        logits = model.masked_token_logits(hidden.index_select(0, rows))
        mlm.append(F.cross_entropy(logits, labels, reduction="none"))
        mlm_right.append(logits.argmax(-1) == labels)
    nsp, nsp_right = hidden.new_zeros(0), hidden.new_zeros(0, dtype=torch.bool)
    if len(batch.next_sentence_labels):
        logits = _next_sentence_logits(model, hidden, batch)
        nsp = F.cross_entropy(logits, _rows(batch), reduction="none")
        nsp_right = logits.argmax(-1) == _rows(batch)
    return Scores(torch.cat(mlm), torch.cat(mlm_right), nsp, nsp_right)


def _next_sentence_logits(
    model: PretrainingModel, hidden: Tensor, batch: PretrainingInput
) -> Tensor:
    """Score each pair from the vectors of the selected tokens: [S, D] to [B, 2]."""
    first = hidden.index_select(0, batch.selection.starts[:-1])
    return model.next_sentence_logits(model.pool(first))


def _rows(batch: PretrainingInput) -> Tensor:
    """Row of the classifier for each pair: our label 1 (next) is Hugging Face's row 0."""
    return 1 - batch.next_sentence_labels
