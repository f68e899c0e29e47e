"""The encoder: BERT over packed sequences, no padding computed (Devlin et al. 2019, section 3).

Letters in shapes: B sequences, N tokens of all of them end to end, S tokens selected, D hidden,
H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bertmill.config import ModelSection
from bertmill.model.attention import Attention, Rotation
from bertmill.model.dropout import Dropout
from bertmill.model.onednn import Linear
from bertmill.model.packed import PackedTokens, Selection

_ROTARY_BASE = 10_000.0


class Encoder(nn.Module):
    """Token, segment and position embeddings, then blocks of attention and feed-forward.

    Parameters
    ----------
    section : ModelSection
    vocab_size : int
    """

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.section = section
        self.embeddings = Embeddings(section, vocab_size)
        self.blocks = nn.ModuleList(Block(section) for _ in range(section.num_hidden_layers))
        self.final_norm = _norm(section) if section.norm == "pre" else nn.Identity()

    def forward(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        """Return the hidden vector of every token, [N, D], or of those selected, [S, D]."""
        return self.transform(
            packed.token_ids, packed.segment_ids, packed.position_ids, packed, selection
        )

    def transform(
        self,
        token_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        sequences: PackedTokens | Tensor,
        selection: Selection | None = None,
    ) -> Tensor:
        """Do the same for tokens in any leading shape, [...] to [..., D].

        `sequences` is what the blocks' attention tells sequences apart by; a selection is of packed
        tokens.
        """
        x = self.embeddings(token_ids, segment_ids, position_ids)
        rotation = self._rotation(position_ids)
        *inner, last = self.blocks
        for block in inner:
            x = block(x, sequences, None, rotation)
        # Nothing reads the other tokens' vectors behind the last block.
        x = last(x, sequences, selection, rotation)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def _rotation(self, position_ids: Tensor) -> Rotation | None:
        if self.section.position_embedding != "rotary":
            return None
        half = self.section.hidden_size // self.section.num_attention_heads // 2
        steps = torch.arange(half, device=position_ids.device, dtype=torch.float32) / half
        angles = position_ids[..., None, None] * _ROTARY_BASE**-steps
        return Rotation(angles.cos(), angles.sin())


class Embeddings(nn.Module):
    """Sum of token, segment and position embeddings, normalized."""

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__()
        width = section.hidden_size
        self.word = nn.Embedding(vocab_size, width)
        self.segment = nn.Embedding(section.type_vocab_size, width)
        self.position = (
            nn.Embedding(section.max_position_embeddings, width)
            if section.position_embedding == "absolute"
            else None
        )
        self.norm = _norm(section)
        self.dropout = Dropout(section.hidden_dropout_prob)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Embed the tokens, [...] to [..., D]."""
        x = self.word(token_ids) + self.segment(segment_ids)
        if self.position is not None:
            x = x + self.position(position_ids)
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each with a residual sum and a LayerNorm after or before it."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.norm_first = section.norm == "pre"
        self.attention = Attention(section)
        self.attention_norm = _norm(section)
        self.feed_forward = FeedForward(section)
        self.feed_forward_norm = _norm(section)
        self.dropout = Dropout(section.hidden_dropout_prob)

    def forward(
        self,
        x: Tensor,
        sequences: PackedTokens | Tensor,
        selection: Selection | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """Transform the hidden vectors, [..., D], and return those selected."""
        read = asking = self.attention_norm(x) if self.norm_first else x
        if selection is not None:
            x = x.index_select(0, selection.at)
            # Normed again: taken from `read`, they would have a gradient of the size of all tokens.
            asking = self.attention_norm(x) if self.norm_first else x
        return self.after_attention(x, self.attention(asking, read, sequences, selection, rotation))

    def after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Do what is done for each token alone, twice [..., D] to [..., D]."""
        x = x + self.dropout(mixed)
        if self.norm_first:
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]
        x = self.attention_norm(x)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.input = Linear(section.hidden_size, section.intermediate_size)
        self.activation = activation(section)
        self.output = Linear(section.intermediate_size, section.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each hidden vector alone, [N, D]."""
        return self.output(self.activation(self.input(x)))  # type: ignore[no-any-return]


def activation(section: ModelSection) -> nn.Module:
    """Return the recipe's activation: exact GELU, or ReLU."""
    return nn.GELU() if section.hidden_act == "gelu" else nn.ReLU()


def initialize(module: nn.Module, section: ModelSection, generator: torch.Generator) -> None:
    """Draw all weights anew: normal weights, zero biases, LayerNorm at identity.

    The draws depend on `generator` and the order of the modules alone. `Deviation:` BERT's normal
    distribution is cut at two standard deviations; Hugging Face's and ours is not.
    """
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=section.initializer_range, generator=generator)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)
    if section.init == "fan-in":
        for block in _blocks(module):
            for reader in (block.attention.query_key_value, block.feed_forward.input):
                nn.init.normal_(reader.weight, std=section.hidden_size**-0.5, generator=generator)
            for writer in (block.attention.output, block.feed_forward.output):
                nn.init.zeros_(writer.weight)


def count_encoder_weights(section: ModelSection, vocab_size: int) -> int:
    """Count the encoder's parameters by arithmetic, without making one."""
    width, inner = section.hidden_size, section.intermediate_size
    is_absolute = section.position_embedding == "absolute"
    rows = vocab_size + section.type_vocab_size + is_absolute * section.max_position_embeddings
    norms = 2 * section.num_hidden_layers + 1 + (section.norm == "pre")
    block = 4 * width * (width + 1) + inner * (width + 1) + width * (inner + 1)
    return rows * width + norms * 2 * width + section.num_hidden_layers * block


def _blocks(module: nn.Module) -> Iterator[Block]:
    return (child for child in module.modules() if isinstance(child, Block))


def _norm(section: ModelSection) -> nn.LayerNorm:
    return nn.LayerNorm(section.hidden_size, eps=section.layer_norm_eps)
