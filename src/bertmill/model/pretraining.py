"""Encoder, both heads and both losses: the network as it is pretrained.

The losses are sums: whoever knows the global counts divides, once, at the end.

Letters in shapes: B sequences, N tokens, S tokens selected, P predictions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bertmill.config import NetworkSection
from bertmill.model.architecture import architecture_of
from bertmill.model.bert import activation
from bertmill.model.kernels import KERNELS, Kernels
from bertmill.model.packed import PackedTokens, Selection

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
    has_filler: bool = False
    """Whether the last sequence is not of the batch and only fills it up; no loss reads it."""

    @property
    def lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens of each sequence of the batch, and how many of them the losses read."""
        stop = len(self.packed.lengths) - self.has_filler
        return self.packed.lengths[:stop], self.selection.lengths[:stop]


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


class MaskedTokenHead(nn.Module):
    """Dense, activation, LayerNorm, then a score for every vocabulary entry."""

    def __init__(self, section: NetworkSection, vocab_size: int) -> None:
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
    section : NetworkSection
        Knobs of the network; their class decides on its architecture.
    vocab_size : int
    kernels : Kernels, optional
        The forms in which it computes; by default the fast ones.
    """

    def __init__(
        self, section: NetworkSection, vocab_size: int, kernels: Kernels = KERNELS["auto"]
    ) -> None:
        super().__init__()
        self.section, self.vocab_size, self.kernels = section, vocab_size, kernels
        self.encoder = architecture_of(section).build(section, vocab_size, kernels)
        self.pooler = nn.Linear(section.hidden_size, section.hidden_size)
        self.masked_token_head = MaskedTokenHead(section, vocab_size)
        self.next_sentence_head = nn.Linear(section.hidden_size, 2)

    def forward(self, batch: PretrainingInput) -> LossSums:
        """Sum both cross entropies over a batch, without ever holding all logits, [P, V].

        This is the whole of what training computes: what wraps a model (to reduce its gradients,
        or to gather its parameters) hooks `forward`, and sees each parameter used inside it.

        Returns
        -------
        LossSums
            `nsp` is 0 where the batch has no pairs.
        """
        hidden = self.encode(batch.packed, batch.selection)
        head = self.masked_token_head
        masked = head(hidden.index_select(0, batch.masked_rows))
        mlm = self.kernels.vocabulary_loss(
            masked, self.decoder_weight, head.bias, batch.masked_labels
        )
        if not len(batch.next_sentence_labels):
            return LossSums(mlm, mlm.new_zeros(()))
        logits = self._pair_logits(hidden, batch)
        return LossSums(mlm, F.cross_entropy(logits, _rows(batch), reduction="sum"))

    @torch.no_grad()
    def score(self, batch: PretrainingInput) -> Scores:
        """Score every answer of a batch; the model should be in evaluation mode."""
        hidden = self.encode(batch.packed, batch.selection)
        mlm, mlm_right = [], []
        parts = (torch.split(x, _ROWS_AT_ONCE) for x in (batch.masked_rows, batch.masked_labels))
        for rows, labels in zip(*parts, strict=True):
            logits = self.masked_token_logits(hidden.index_select(0, rows))
            mlm.append(F.cross_entropy(logits, labels, reduction="none"))
            mlm_right.append(logits.argmax(-1) == labels)
        nsp, nsp_right = hidden.new_zeros(0), hidden.new_zeros(0, dtype=torch.bool)
        if len(batch.next_sentence_labels):
            logits = self._pair_logits(hidden, batch)
            nsp = F.cross_entropy(logits, _rows(batch), reduction="none")
            nsp_right = logits.argmax(-1) == _rows(batch)
        return Scores(torch.cat(mlm), torch.cat(mlm_right), nsp, nsp_right)

    def encode(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        """Compute hidden vectors: of all tokens, [N, D], or of those selected, [S, D]."""
        return self.encoder(packed, selection)  # type: ignore[no-any-return]

    @property
    def decoder_weight(self) -> Tensor:
        """Output weights of the masked-token head, [V, D]: its own, or the word embeddings."""
        own = self.masked_token_head.decoder
        return self.encoder.word_embeddings.weight if own is None else own.weight

    def masked_token_logits(self, hidden: Tensor) -> Tensor:
        """Score every vocabulary entry at the given hidden vectors: [P, D] to [P, V]."""
        head = self.masked_token_head
        return nn.functional.linear(head(hidden), self.decoder_weight, head.bias)

    def pool(self, first: Tensor) -> Tensor:
        """Map each sequence's first token through the pooler, [B, D]."""
        return torch.tanh(self.pooler(first))

    def _pair_logits(self, hidden: Tensor, batch: PretrainingInput) -> Tensor:
        """Score each pair from the vectors of the selected tokens: [S, D] to [B, 2]."""
        rows = batch.selection.starts[: len(batch.next_sentence_labels)]
        first = hidden.index_select(0, rows)
        return self.next_sentence_head(self.pool(first))  # type: ignore[no-any-return]

    def set_recompute(self, *, recompute: bool) -> None:
        """Say whether blocks are computed again in the backward pass instead of kept."""
        for module in self.modules():
            if hasattr(module, "recompute"):
                module.recompute = recompute  # type: ignore[assignment]

    def tensors_by_token(self) -> set[str]:
        """Name the tensors that have a row for each vocabulary entry."""
        ours = {self.encoder.word_embeddings.weight, self.decoder_weight}
        ours.add(self.masked_token_head.bias)
        return {name for name, parameter in self.named_parameters() if parameter in ours}

    def tensors_for_pairs(self) -> list[str]:
        """Name the tensors that only next-sentence labels train."""
        parts = ("pooler.", "next_sentence_head.")
        return [name for name in self.state_dict() if name.startswith(parts)]

    def count_parameters(self) -> dict[str, int]:
        """Count parameters: the encoder with the pooler, and everything."""
        total = sum(p.numel() for p in self.parameters())
        encoder = sum(p.numel() for m in (self.encoder, self.pooler) for p in m.parameters())
        return {"encoder_with_pooler": encoder, "total": total}


def _rows(batch: PretrainingInput) -> Tensor:
    """Row of the classifier for each pair: our label 1 (next) is Hugging Face's row 0."""
    return 1 - batch.next_sentence_labels


def initialize(
    model: PretrainingModel, section: NetworkSection, generator: torch.Generator
) -> None:
    """Draw all weights anew, as the section says; the draws depend on `generator` alone."""
    architecture_of(section).initialize(model, section, generator)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Have networks made of any size at once: their tensors have a shape and no memory."""
    with torch.device("meta"), _WithoutDraws():
        yield


class _WithoutDraws(TorchFunctionMode):
    """Leave out ``torch.nn.init``, which on the meta device loads torch's compiler: two seconds."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def count_step_flops(
    section: NetworkSection,
    vocab_size: int,
    lengths: Sequence[int],
    num_selected: Sequence[int],
    num_predictions: int,
    num_pairs: int,
) -> int:
    """Count the floating point operations of all matrix products of a training step.

    A product of [m, k] and [k, n] is 2 m k n operations, and its backward pass, two products of
    that size, twice as many. What each token needs besides (norms, activations, embedding rows) is
    not counted; neither is padding, nor what the last block would make of tokens that no loss
    reads: neither is computed.

    Parameters
    ----------
    section : NetworkSection
    vocab_size : int
    lengths : sequence of int
        Tokens in each sequence.
    num_selected : sequence of int
        Tokens of each sequence whose vectors the losses read.
    num_predictions : int
        Masked tokens to be predicted.
    num_pairs : int
        Sequences whose next-sentence label is to be predicted: all of them, or 0.
    """
    width = section.hidden_size
    masked_tokens = num_predictions * (width * width + width * vocab_size)
    next_sentence = num_pairs * (width * width + 2 * width)
    encoder = architecture_of(section).step_flops(section, lengths, num_selected)
    return encoder + 3 * 2 * (masked_tokens + next_sentence)
