"""Sequences end to end: what the encoder computes on.

Letters in shapes: B sequences, N tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
    """Tokens in each of the B sequences, on the host. Attention runs once for each stretch of equal
    ones, so sequences sorted by length are fastest."""

    @classmethod
    def pack(
        cls,
        token_ids: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        lengths: Sequence[int],
    ) -> PackedTokens:
        """Count up where each sequence begins."""
        starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(token_ids, segment_ids, position_ids, starts.to(token_ids.device), lengths)

    def to(self, device: torch.device) -> PackedTokens:
        """Copy to a device, without waiting."""
        return PackedTokens(
            self.token_ids.to(device, non_blocking=True),
            self.segment_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.starts.to(device, non_blocking=True),
            self.lengths,
        )
