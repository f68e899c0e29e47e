"""The encoder with the head of a fine-tuned task.

Letters in shapes: B sequences, N tokens, C classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertmill.model.kernels.dropout import Dropout
from bertmill.model.packed import PackedTokens
from bertmill.model.pretraining import PretrainingModel


class Task(NamedTuple):
    """What a fine-tuned model answers."""

    kind: Literal["classification", "regression", "words"]
    """A class of a text or a pair, a number for it, or a class of each word."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the outputs; none for regression."""
    is_pair: bool | None = None
    """Whether it was learned from pairs of texts; None: not known."""

    @property
    def num_outputs(self) -> int:
        """Classes, or the one number."""
        return len(self.labels) or 1


class TaskModel(nn.Module):
    """Encoder and a linear map: of the pooled first token, or of every token where words are asked.

    The same network as ``BertForSequenceClassification`` and ``BertForTokenClassification``.

    Parameters
    ----------
    pretrained : PretrainingModel
        Encoder and pooler are taken over, not copied; its heads are left out.
    task : Task
    """

    def __init__(self, pretrained: PretrainingModel, task: Task) -> None:
        super().__init__()
        self.section, self.vocab_size, self.task = pretrained.section, pretrained.vocab_size, task
        self.encoder = pretrained.encoder
        self.pooler = None if task.kind == "words" else pretrained.pooler
        self.dropout = Dropout(self.section.hidden_dropout_prob, pretrained.kernels.drop)
        self.task_head = nn.Linear(self.section.hidden_size, task.num_outputs)

    def forward(self, packed: PackedTokens) -> Tensor:
        """Answer for each sequence, [B, C], or for each token, [N, C]; regression has C = 1."""
        selection = None if self.pooler is None else packed.first_tokens()
        return self.answer(self.encoder(packed, selection))

    def answer(self, hidden: Tensor) -> Tensor:
        """Answer from the vectors of first tokens, or of all tokens for words: [..., D] to C."""
        if self.pooler is not None:
            hidden = torch.tanh(self.pooler(hidden))
        return self.task_head(self.dropout(hidden))  # type: ignore[no-any-return]
