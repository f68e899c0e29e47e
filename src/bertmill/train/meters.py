"""What the loop counts: losses, predictions, tokens and time."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from bertmill.model.losses import LossSums, PretrainingInput


class Sums:
    """Losses, counts and time summed over steps; the losses stay on the device until read."""

    def __init__(self, device: torch.device) -> None:
        self.mlm = torch.zeros((), dtype=torch.float64, device=device)
        self.nsp = torch.zeros((), dtype=torch.float64, device=device)
        self.predictions = self.pairs = self.sequences = self.tokens = 0
        self.seconds = 0.0

    def add(self, sums: LossSums, batch: PretrainingInput, seconds: float) -> None:
        """Count a step."""
        self.mlm += sums.mlm.detach()
        self.nsp += sums.nsp.detach()
        self.predictions += len(batch.masked_labels)
        self.pairs += len(batch.next_sentence_labels)
        self.sequences += len(batch.packed.lengths)
        self.tokens += len(batch.packed.token_ids)
        self.seconds += seconds

    def means(self) -> dict[str, Any]:
        """Divide, once: losses in nats, speeds a second; this waits for the device."""
        return {
            "mlm_loss": float(self.mlm) / self.predictions,
            "nsp_loss": float(self.nsp) / self.pairs if self.pairs else None,
            "pairs_per_second": self.sequences / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
        }

    def to_dict(self) -> dict[str, float]:
        """Write the sums as numbers that `load_dict` reads back exactly."""
        return {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in vars(self).items()
        }

    def load_dict(self, values: dict[str, float]) -> None:
        """Go on from saved sums."""
        for key, value in values.items():
            own = getattr(self, key)
            setattr(self, key, torch.full_like(own, value) if isinstance(own, Tensor) else value)


class Clock:
    """Training time: of this session, and of the sessions before it too."""

    def __init__(self, seconds_before: float) -> None:
        self._before, self._started = seconds_before, time.monotonic()

    @property
    def session_seconds(self) -> float:
        """Of this session."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        return self._before + self.session_seconds
