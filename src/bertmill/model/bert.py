"""BERT over packed sequences, no padding computed (Devlin et al. 2019, section 3).

Three knobs depart from it: rotary positions, LayerNorm before each sub-layer, and the fan-in draw.

Letters in shapes: B sequences, N tokens of all of them end to end, S query tokens (all N, or those
that a loss reads), L tokens of the longest sequence, D hidden, H heads, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bertmill.config import ModelSection, NetworkSection
from bertmill.errors import ModelError
from bertmill.model.kernels import Kernels
from bertmill.model.kernels.dropout import Dropout
from bertmill.model.kernels.linear import Linear
from bertmill.model.packed import ActivationBytes, Encoder, PackedTokens, Selection

SECTION = ModelSection
OUR_MODEL_TYPE = "bertmill"
"""Hugging Face's mark of an architecture that transformers has no class for."""
MODEL_TYPES: tuple[str, ...] = ("bert", OUR_MODEL_TYPE)
_ROTARY_BASE = 10_000.0


class BertEncoder(Encoder):
    """Token, segment and position embeddings, then blocks of attention and feed-forward.

    Parameters
    ----------
    section : ModelSection
    vocab_size : int
    kernels : Kernels
    """

    def __init__(self, section: ModelSection, vocab_size: int, kernels: Kernels) -> None:
        super().__init__()
        self.section: ModelSection = section
        self.embeddings = Embeddings(section, vocab_size, kernels)
        self.blocks = nn.ModuleList(
            Block(section, kernels) for _ in range(section.num_hidden_layers)
        )
        self.final_norm = _norm(section) if section.norm == "pre" else nn.Identity()

    @property
    def word_embeddings(self) -> nn.Embedding:
        """One row per vocabulary entry; a tied masked-token head reads them too."""
        return self.embeddings.word

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

        `sequences` is the packed layout, or in `PaddedBert` an additive mask, [B, 1, 1, L]. A
        selection needs the packed layout.
        """
        x = self.embeddings(token_ids, segment_ids, position_ids)
        rotation = self._rotation(position_ids)
        *inner, last = self.blocks
        for block in inner:
            x = block(x, sequences, None, rotation)
        # Nothing reads the other tokens' vectors after the last block.
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

    def __init__(self, section: ModelSection, vocab_size: int, kernels: Kernels) -> None:
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
        self.dropout = Dropout(section.hidden_dropout_prob, kernels.drop)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Embed the tokens, [...] to [..., D]."""
        x = self.word(token_ids) + self.segment(segment_ids)
        if self.position is not None:
            x = x + self.position(position_ids)
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]


def _after_attention(
    x: Tensor,
    mixed: Tensor,
    dropout: nn.Module,
    norms: tuple[nn.Module, nn.Module],
    feed_forward: nn.Module,
    norm_first: bool,
) -> Tensor:
    """Do what a block does for each token alone, twice [..., D] to [..., D].

    Not a method, so that code compiled for it serves every block, wrapped or not.
    """
    x = x + dropout(mixed)
    if norm_first:
        return x + dropout(feed_forward(norms[1](x)))  # type: ignore[no-any-return]
    x = norms[0](x)
    return norms[1](x + dropout(feed_forward(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each with a residual sum and a LayerNorm after or before it.

    Attributes
    ----------
    recompute : bool
        Whether the block's input alone is kept, and the rest computed again in the backward pass,
        with the same draws of dropout (Chen et al. 2016): less memory, a third more arithmetic.
    """

    recompute = False

    after_attention = staticmethod(_after_attention)

    def __init__(self, section: ModelSection, kernels: Kernels) -> None:
        super().__init__()
        self.norm_first = section.norm == "pre"
        self.attention = Attention(section, kernels)
        self.attention_norm = _norm(section)
        self.feed_forward = FeedForward(section, kernels)
        self.feed_forward_norm = _norm(section)
        self.dropout = Dropout(section.hidden_dropout_prob, kernels.drop)

    def forward(
        self,
        x: Tensor,
        sequences: PackedTokens | Tensor,
        selection: Selection | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """Transform the hidden vectors, [..., D], and return those selected."""
        if self.recompute and self.training:
            # In here, so that whatever wraps a block has its parameters ready both times.
            given = (x, sequences, selection, rotation)
            return checkpoint(self._transform, *given, use_reentrant=False)  # type: ignore[no-any-return]
        return self._transform(x, sequences, selection, rotation)

    def _transform(
        self,
        x: Tensor,
        sequences: PackedTokens | Tensor,
        selection: Selection | None,
        rotation: Rotation | None,
    ) -> Tensor:
        every = some = self.attention_norm(x) if self.norm_first else x
        if selection is not None:
            x = x.index_select(0, selection.at)
            # Normed again: taken from `every`, they would have a gradient of the size of all.
            some = self.attention_norm(x) if self.norm_first else x
        mixed = self.attention(some, every, sequences, selection, rotation)
        norms = self.attention_norm, self.feed_forward_norm
        return self.after_attention(
            x, mixed, self.dropout, norms, self.feed_forward, self.norm_first
        )


class Attention(nn.Module):
    """Multi-head self-attention inside each sequence (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, section: ModelSection, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.num_heads = section.num_attention_heads
        self.dropout = section.attention_probs_dropout_prob
        self.query_key_value = Linear(section.hidden_size, 3 * section.hidden_size, kernels.linear)
        self.output = Linear(section.hidden_size, section.hidden_size, kernels.linear)

    def forward(
        self,
        some: Tensor,
        every: Tensor,
        packed: PackedTokens,
        selection: Selection | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """Mix the hidden vectors of each sequence, [N, D], for its query tokens, [S, D].

        Queries are made from `some` of the vectors, [S, D], keys and values from `every` one.
        """
        width, heads = every.shape[1], self.num_heads
        # split, not slices: a slice's gradient is a zero-filled tensor of the whole.
        q_weight, kv_weight = torch.split(self.query_key_value.weight, [width, 2 * width])
        q_bias, kv_bias = torch.split(self.query_key_value.bias, [width, 2 * width])
        q = self.kernels.linear(some, q_weight, q_bias).view(-1, heads, width // heads)
        kv = self.kernels.linear(every, kv_weight, kv_bias).view(-1, 2, heads, width // heads)
        if rotation is not None:
            q = rotate(q, rotation if selection is None else rotation.of(selection))
            k, v = kv.unbind(1)
            kv = torch.stack([rotate(k, rotation), v], 1)
        dropout = self.dropout if self.training else 0.0
        queries = packed if selection is None else selection
        return self.output(self.kernels.attend(q, kv, queries, packed, dropout))  # type: ignore[no-any-return]


class Rotation(NamedTuple):
    """Rotary angles of tokens (Su et al. 2021), each [..., 1, D / H / 2]."""

    cos: Tensor
    sin: Tensor

    def of(self, selection: Selection) -> Rotation:
        """Take the angles of some tokens: [N, 1, D / H / 2] to [S, 1, D / H / 2]."""
        return Rotation(*(x.index_select(0, selection.at) for x in self))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + half) of a head's components by the token's angle, [..., H, D / H]."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.to(x.dtype)  # under autocast the angles have more bits than the components


class FeedForward(nn.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, section: ModelSection, kernels: Kernels) -> None:
        super().__init__()
        self.input = Linear(section.hidden_size, section.intermediate_size, kernels.linear)
        self.activation = activation(section)
        self.output = Linear(section.intermediate_size, section.hidden_size, kernels.linear)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each hidden vector alone, [..., D]."""
        return self.output(self.activation(self.input(x)))  # type: ignore[no-any-return]


def activation(section: NetworkSection) -> nn.Module:
    """Return the recipe's activation: exact GELU, or ReLU."""
    return nn.GELU() if section.hidden_act == "gelu" else nn.ReLU()


def _norm(section: ModelSection) -> nn.LayerNorm:
    return nn.LayerNorm(section.hidden_size, eps=section.layer_norm_eps)


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


def _blocks(module: nn.Module) -> Iterator[Block]:
    return (child for child in module.modules() if isinstance(child, Block))


def step_flops(section: ModelSection, lengths: Sequence[int], num_selected: Sequence[int]) -> int:
    """Count the operations of the encoder's matrix products in a training step."""
    width, inner = section.hidden_size, section.intermediate_size

    def block(num_queries: Sequence[int]) -> int:
        keys_values = 2 * width * width * sum(lengths)
        # Query and output of the attention, and both maps of the feed-forward.
        per_token = 2 * width * width + 2 * width * inner
        # A token is scored against every token of its sequence, and mixes them by that.
        attention = 2 * width * sum(n * m for n, m in zip(num_queries, lengths, strict=True))
        return keys_values + per_token * sum(num_queries) + attention

    return 3 * 2 * ((section.num_hidden_layers - 1) * block(lengths) + block(num_selected))


def activation_bytes(
    section: ModelSection,
    num_tokens: int,
    num_selected: int,
    length: int,
    is_bf16: bool,
    on_cpu: bool,
) -> ActivationBytes:
    """Count what a training step keeps of sequences of one length for the backward pass."""
    width, inner, heads = (
        section.hidden_size,
        section.intermediate_size,
        section.num_attention_heads,
    )
    factor = 2 if is_bf16 else 4
    # Dropout keeps its draws: on a CPU as numbers that are multiplied with, on CUDA as bytes.
    drops, drops_weights = section.hidden_dropout_prob > 0, section.attention_probs_dropout_prob > 0
    row = width * 4

    def block(num_queries: int) -> int:
        # The input as factor of the queries, and of keys and values: one tensor where it can be.
        is_shared = num_queries == num_tokens and not is_bf16
        inputs = (num_tokens + (0 if is_shared else num_queries)) * width * factor
        # Attention on a CPU keeps all in 32 bits, and the weights with the draws on them.
        heads_bytes = (num_queries + 2 * num_tokens) * width * (4 if on_cpu else factor)
        if on_cpu:
            heads_bytes += num_queries * length * heads * 4 * (2 if drops_weights else 1)
        # Inputs of the two norms with mean and deviation, and of the two maps that follow.
        per_query = 2 * (row + 8) + 2 * width * factor
        per_query += 2 * width * (factor if on_cpu else 1) * drops
        per_query += inner * factor * (2 if section.hidden_act == "gelu" else 1)
        is_normed_twice = section.norm == "pre" and num_queries < num_tokens
        return inputs + heads_bytes + num_queries * per_query + num_tokens * row * is_normed_twice

    embeddings = num_tokens * (row + width * (4 if on_cpu else 1) * drops)
    return ActivationBytes(embeddings, block(num_tokens), block(num_selected), num_tokens * row)


class PaddedBert(nn.Module):
    """A copy of an encoder over padded rectangles, as programs that pad take it: same vectors.

    Parameters
    ----------
    encoder : Encoder
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        assert isinstance(encoder, BertEncoder)
        self.encoder = copy.deepcopy(encoder)
        for block in _blocks(self.encoder):
            block.add_module("attention", _PaddedAttention(block.attention))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the hidden vector of every token, [B, L] to [B, L, D]; the mask is 0 at padding.

        Names and order of the arguments are Hugging Face's.
        """
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        # Not -inf: a row of padding alone would become NaN.
        bias = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
        return self.encoder.transform(
            input_ids, token_type_ids, position_ids.expand_as(input_ids), bias
        )


class _PaddedAttention(nn.Module):
    """`Attention` with a bias on the scores in place of lengths, [B, 1, 1, L]."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query_key_value, self.output = attention.query_key_value, attention.output

    def forward(
        self, some: Tensor, every: Tensor, bias: Tensor, selection: None, rotation: Rotation | None
    ) -> Tensor:
        """Mix the hidden vectors of each sequence, [B, L, D], for all of its tokens."""
        q, k, v = self.query_key_value(every).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.output(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


build, pad = BertEncoder, PaddedBert

NAMES: dict[str, str | tuple[str, ...]] = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.segment": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.blocks.*.attention.query_key_value": (
        "bert.encoder.layer.*.attention.self.query",
        "bert.encoder.layer.*.attention.self.key",
        "bert.encoder.layer.*.attention.self.value",
    ),
    "encoder.blocks.*.attention.output": "bert.encoder.layer.*.attention.output.dense",
    "encoder.blocks.*.attention_norm": "bert.encoder.layer.*.attention.output.LayerNorm",
    "encoder.blocks.*.feed_forward.input": "bert.encoder.layer.*.intermediate.dense",
    "encoder.blocks.*.feed_forward.output": "bert.encoder.layer.*.output.dense",
    "encoder.blocks.*.feed_forward_norm": "bert.encoder.layer.*.output.LayerNorm",
    "encoder.final_norm": "bert.encoder.norm",  # pre-norm only: not in BERT
    "pooler": "bert.pooler.dense",
    "masked_token_head.dense": "cls.predictions.transform.dense",
    "masked_token_head.norm": "cls.predictions.transform.LayerNorm",
    "masked_token_head.decoder": "cls.predictions.decoder",
    "masked_token_head.bias": "cls.predictions.bias",
    "next_sentence_head": "cls.seq_relationship",
    "task_head": "classifier",
}
"""Ours, Hugging Face's; `*` stands for the number of a block."""

# An untied decoder has a bias of its own in transformers, and `cls.predictions.bias` is not used.
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_DECODER = "cls.predictions.decoder.weight"
_OURS_ONLY = {"position_embedding", "norm", "init"}


def not_in_transformers(section: ModelSection) -> str:
    """Say what is not BERT as published; nothing where all of it is."""
    if section.position_embedding == "absolute" and section.norm == "post":
        return ""
    return (
        f"is not BERT as published (position_embedding={section.position_embedding}, "
        f"norm={section.norm})"
    )


def with_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add what transformers looks for under a second name."""
    copies = {_DECODER_BIAS: tensors[_BIAS].clone()} if _DECODER in tensors else {}
    return {**tensors, **copies}


def with_todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of `BertModel` alone (no prefix) and of folders made by TensorFlow."""
    renamed = {}
    for name, tensor in tensors.items():
        if not name.startswith(("bert.", "cls.", "classifier.")):
            name = f"bert.{name}"
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    if _DECODER_BIAS in renamed:
        renamed[_BIAS] = renamed[_DECODER_BIAS]
    return renamed


def to_config(section: ModelSection, kind: str) -> dict[str, Any]:
    """Write the network's part of ``config.json``; `kind` ends the name of the class."""
    if not not_in_transformers(section):
        values = section.model_dump(exclude=_OURS_ONLY)
        return {"architectures": [f"Bert{kind}"], "model_type": "bert", **values}
    names = {"architectures": [f"Bertmill{kind}"], "model_type": OUR_MODEL_TYPE}
    return {**names, **section.model_dump()}


def from_config(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Read the knobs out of ``config.json``; they are checked later.

    Raises
    ------
    ModelError
        A setting that is not computed here.
    """
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            where,
            f"position_embedding_type {config['position_embedding_type']!r} is not supported",
            "give a model with absolute positions",
        )
    if config.get("is_decoder"):
        raise ModelError(where, "is a decoder (is_decoder is true)", "give an encoder")
    return {key: config[key] for key in ModelSection.model_fields if key in config}
