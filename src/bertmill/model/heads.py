"""The heads: the two of pretraining, and that of a fine-tuned task, each joined to the encoder.

Letters in shapes: B sequences, N tokens, S tokens selected, P predictions, D hidden, V vocabulary,
C classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertmill.config import ModelSection
from bertmill.model.dropout import Dropout
from bertmill.model.encoder import Encoder, activation
from bertmill.model.packed import PackedTokens, Selection


class MaskedTokenHead(nn.Module):
    """Dense, activation, LayerNorm, then a score for every vocabulary entry."""

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(section.hidden_size, section.hidden_size)
        self.activation = activation(section)
        self.norm = nn.LayerNorm(section.hidden_size, eps=section.layer_norm_eps)
        self.decoder = (
            None
            if section.tie_word_embeddings
            else nn.Linear(section.hidden_size, vocab_size, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Prepare the hidden vectors of the predicted positions for the decoder, [P, D]."""
        # Also where products are bf16 (autocast) the loss is computed in the parameters' type.
        x = self.activation(self.dense(hidden)).to(self.bias.dtype)
        return self.norm(x)  # type: ignore[no-any-return]


class PretrainingModel(nn.Module):
    """Encoder, pooler, masked-token head and next-sentence head.

    Parameters
    ----------
    section : ModelSection
    vocab_size : int
    """

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.section, self.vocab_size = section, vocab_size
        self.encoder = Encoder(section, vocab_size)
        self.pooler = nn.Linear(section.hidden_size, section.hidden_size)
        self.masked_token_head = MaskedTokenHead(section, vocab_size)
        self.next_sentence_head = nn.Linear(section.hidden_size, 2)

    def forward(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        """Encode: all tokens, [N, D], or those selected, [S, D]."""
        return self.encoder(packed, selection)  # type: ignore[no-any-return]

    @property
    def decoder_weight(self) -> Tensor:
        """Output weights of the masked-token head, [V, D]: its own, or the word embeddings."""
        own = self.masked_token_head.decoder
        return self.encoder.embeddings.word.weight if own is None else own.weight

    def masked_token_logits(self, hidden: Tensor) -> Tensor:
        """Score every vocabulary entry at the given hidden vectors: [P, D] to [P, V]."""
        head = self.masked_token_head
        return nn.functional.linear(head(hidden), self.decoder_weight, head.bias)

    def pool(self, first: Tensor) -> Tensor:
        """Map each sequence's first token through the pooler, [B, D]."""
        return torch.tanh(self.pooler(first))

    def next_sentence_logits(self, pooled: Tensor) -> Tensor:
        """Score [B, 2]: column 0 is "follows", column 1 "random", as in Hugging Face."""
        return self.next_sentence_head(pooled)  # type: ignore[no-any-return]

    def count_parameters(self) -> dict[str, int]:
        """Count parameters: the encoder with the pooler, and everything."""
        total = sum(p.numel() for p in self.parameters())
        encoder = sum(p.numel() for m in (self.encoder, self.pooler) for p in m.parameters())
        return {"encoder_with_pooler": encoder, "total": total}


class Task(NamedTuple):
    """What a fine-tuned model answers."""

    kind: Literal["classification", "regression", "words"]
    """A class of a text or a pair, a number for it, or a class of each word."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the outputs; none for regression."""

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
    is_pair : bool or None
        Whether it learned from pairs of texts; None: not known.
    """

    def __init__(
        self, pretrained: PretrainingModel, task: Task, is_pair: bool | None = None
    ) -> None:
        super().__init__()
        self.is_pair = is_pair
        self.section, self.vocab_size, self.task = pretrained.section, pretrained.vocab_size, task
        self.encoder = pretrained.encoder
        self.pooler = None if task.kind == "words" else pretrained.pooler
        self.dropout = Dropout(self.section.hidden_dropout_prob)
        self.task_head = nn.Linear(self.section.hidden_size, task.num_outputs)

    def forward(self, packed: PackedTokens) -> Tensor:
        """Answer for each sequence, [B, C], or for each token, [N, C]; regression has C = 1."""
        if self.pooler is None:
            hidden = self.encoder(packed)
        else:
            hidden = torch.tanh(self.pooler(self.encoder(packed, packed.first_tokens())))
        return self.task_head(self.dropout(hidden))  # type: ignore[no-any-return]
