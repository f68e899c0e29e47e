"""The two pretraining heads and the model that joins them to the encoder.

Letters in shapes: B sequences, N tokens, P predictions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bertmill.config import ModelSection
from bertmill.model.encoder import Encoder, PackedTokens, activation


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
        return self.norm(self.activation(self.dense(hidden)))  # type: ignore[no-any-return]


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

    def forward(self, packed: PackedTokens) -> Tensor:
        """Encode, [N, D]."""
        return self.encoder(packed)  # type: ignore[no-any-return]

    @property
    def decoder_weight(self) -> Tensor:
        """Output weights of the masked-token head, [V, D]: its own, or the word embeddings."""
        own = self.masked_token_head.decoder
        return self.encoder.embeddings.word.weight if own is None else own.weight

    def masked_token_logits(self, hidden: Tensor) -> Tensor:
        """Score every vocabulary entry at the given hidden vectors: [P, D] to [P, V]."""
        head = self.masked_token_head
        return nn.functional.linear(head(hidden), self.decoder_weight, head.bias)

    def pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pool each sequence through its first token: [N, D] to [B, D]."""
        sizes = torch.tensor(lengths, device=hidden.device)
        starts = sizes.cumsum(0) - sizes
        return torch.tanh(self.pooler(hidden.index_select(0, starts)))

    def next_sentence_logits(self, pooled: Tensor) -> Tensor:
        """Score [B, 2]: column 0 is "follows", column 1 "random", as in Hugging Face."""
        return self.next_sentence_head(pooled)  # type: ignore[no-any-return]

    def count_parameters(self) -> dict[str, int]:
        """Count parameters: the encoder with the pooler, and everything."""
        total = sum(p.numel() for p in self.parameters())
        encoder = sum(p.numel() for m in (self.encoder, self.pooler) for p in m.parameters())
        return {"encoder_with_pooler": encoder, "total": total}
