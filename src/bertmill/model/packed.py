"""Sequences end to end: what an encoder computes on, and which of its vectors are wanted.

Letters in shapes: B sequences, N tokens of all of them, S tokens selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bertmill.config import NetworkSection


class PackedTokens(NamedTuple):
    """Sequences end to end; made by `pack`."""

    token_ids: Tensor
    """[N], int64."""
    segment_ids: Tensor
    """[N], int64."""
    position_ids: Tensor
    """[N], int64."""
    starts: Tensor
    """Where each sequence begins, and N: [B + 1], int32."""
    lengths: Sequence[int]
    """Tokens in each of the B sequences, on the host. On a CPU attention runs once for each stretch
    of equal ones, so sequences sorted by length are fastest."""

    @classmethod
    def pack(
        cls, token_ids: Tensor, segment_ids: Tensor, position_ids: Tensor, lengths: Sequence[int]
    ) -> PackedTokens:
        """Count up where each sequence begins."""
        starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(token_ids, segment_ids, position_ids, starts.to(token_ids.device), lengths)

    def to(self, device: torch.device) -> PackedTokens:
        """Copy to a device, without waiting."""
        ids, segments, positions, starts = (copy_to(device, tensor) for tensor in self[:4])
        return PackedTokens(ids, segments, positions, starts, self.lengths)

    def first_tokens(self) -> Selection:
        """Select the first token of each sequence, S = B."""
        count = len(self.lengths)
        starts = torch.arange(count + 1, dtype=torch.int32, device=self.starts.device)
        return Selection(self.starts[:-1].long(), starts, [1] * count)


class Selection(NamedTuple):
    """Tokens whose vectors are wanted of the encoder: its last block computes no others."""

    at: Tensor
    """[S], int64, rising."""
    starts: Tensor
    """Where those of each sequence begin among the selected, and S: [B + 1], int32."""
    lengths: Sequence[int]
    """How many of each of the B sequences, on the host."""


class ActivationBytes(NamedTuple):
    """What a training step keeps of a batch for the backward pass, in bytes."""

    embeddings: int
    block: int
    """Of each block but the last."""
    last_block: int
    """Less, because it computes the selected tokens alone."""
    block_input: int
    """Of a block that is computed again in the backward pass."""


class Encoder(nn.Module):
    """What every network is to its heads: tokens in, one hidden vector per token out."""

    section: NetworkSection
    blocks: nn.ModuleList
    """What it repeats, one after the other."""

    @property
    def word_embeddings(self) -> nn.Embedding:
        """One row per vocabulary entry; a tied masked-token head reads them too."""
        raise NotImplementedError

    def forward(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        """Return the hidden vector of every token, [N, D], or of those selected, [S, D]."""
        raise NotImplementedError


def copy_to(device: torch.device, x: Tensor) -> Tensor:
    """Copy a tensor without waiting; on a CPU its memory is shared."""
    # A copy to a GPU is only made in the background from memory that is pinned.
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
