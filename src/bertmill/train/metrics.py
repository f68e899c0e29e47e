"""What a run counts (losses, predictions, skipped updates, tokens, time), and what it records."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from bertmill.config import NetworkSection, Section
from bertmill.model.pretraining import LossSums, PretrainingInput, count_step_flops
from bertmill.train.validate import LOSS_NAMES, HeldOutScores
from bertmill.train.world import World

SUM_NAMES = ("mlm", "nsp", "predictions", "pairs", "skipped", "skipped_in_a_row")


class TrainRecord(Section, extra="ignore"):
    """A log interval: means over its updates, and speeds over its time.

    Everything but the losses may be missing in runs of earlier versions.
    """

    step: int
    mlm_loss: float | None
    """In nats; None where every update of the interval was skipped."""
    nsp_loss: float | None
    """In nats; None without pairs too."""
    skipped_steps: int = 0
    """Updates whose loss or gradient was not finite."""
    pairs_per_second: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    waiting_fraction: float | None = None
    lr: float | None = None
    """Of the last update."""
    seconds: float | None = None
    """Training time so far, over all sessions."""

    def to_dict(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``."""
        return {"step": self.step, "split": "train", **self.model_dump(exclude={"step"})}


class HeldOutRecord(NamedTuple):
    """A validation."""

    step: int
    scores: HeldOutScores

    def to_dict(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``."""
        return {"step": self.step, "split": "held_out", **asdict(self.scores)}


Record = TrainRecord | HeldOutRecord

Curve = list[tuple[int, float | None]]
"""Steps, and the losses there."""


class Metrics(NamedTuple):
    """All records of a run, each list in the order of its steps."""

    train: list[TrainRecord]
    """One record per log interval."""
    held_out: list[HeldOutRecord]
    """One record per validation, yardsticks included."""

    @property
    def last_step(self) -> int:
        """Updates that were recorded."""
        return max((record.step for records in self for record in records[-1:]), default=0)

    @property
    def scores(self) -> HeldOutScores | None:
        """Of the last validation; with the yardsticks."""
        return self.held_out[-1].scores if self.held_out else None

    @property
    def loss_kinds(self) -> list[str]:
        """The losses that were recorded: ``mlm``, and ``nsp`` with pairs."""
        curves = {kind: self.train_curve(kind) + self.held_out_curve(kind) for kind in LOSS_NAMES}
        return [k for k, curve in curves.items() if any(loss is not None for _, loss in curve)]

    def train_curve(self, kind: str) -> Curve:
        """Return steps and training losses of one kind; None where no update was made."""
        return [(record.step, getattr(record, f"{kind}_loss")) for record in self.train]

    def held_out_curve(self, kind: str) -> Curve:
        """Return steps and held-out losses of one kind."""
        return [(record.step, getattr(record.scores, f"{kind}_loss")) for record in self.held_out]


_SCORES = TypeAdapter(HeldOutScores)


def read_record(line: bytes) -> Record:
    """Read one line of ``metrics.jsonl``.

    Raises
    ------
    ValueError, KeyError, TypeError
        It is neither record, or a value is not a number.
    """
    values = json.loads(line)
    if values["split"] == "train":
        return TrainRecord.model_validate(values)
    if values["split"] != "held_out" or type(values["step"]) is not int:
        raise ValueError(values)
    return HeldOutRecord(values["step"], _SCORES.validate_json(line, strict=True))


class LossMeter:
    """Losses and their counts summed over steps; everything stays on the device until it is read.

    An update whose loss or gradient is not finite is skipped: its losses count for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(SUM_NAMES), dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Begin a new interval; how many steps were skipped in a row goes on."""
        self._sums[:-1] = 0.0

    def add(self, sums: LossSums, counts: Tensor, is_skipped: Tensor) -> None:
        """Count a step: losses, how many predictions and pairs they are of, and a bool, [].

        All are on the device.
        """
        taken = ~is_skipped
        losses = [torch.where(taken, x.detach(), 0.0) for x in sums]
        answers = (taken * counts).unbind()
        step = [x.double() for x in (*losses, *answers, is_skipped, is_skipped)]
        self._sums += torch.stack(step)
        self._sums[-1] *= is_skipped

    @property
    def skipped_in_a_row(self) -> int:
        """Steps skipped up to the last one; this waits for the device."""
        return int(self._sums[-1])

    def means(self) -> dict[str, Any]:
        """Divide the sums, once: losses in nats, None where nothing was predicted."""
        own = self.state()
        return {
            "mlm_loss": own["mlm"] / own["predictions"] if own["predictions"] else None,
            "nsp_loss": own["nsp"] / own["pairs"] if own["pairs"] else None,
            "skipped_steps": int(own["skipped"]),
        }

    def state(self) -> dict[str, float]:
        """Read the sums as numbers that `load_state` takes back exactly."""
        return dict(zip(SUM_NAMES, self._sums.tolist(), strict=True))

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from saved sums."""
        self._sums.copy_(torch.tensor([state[name] for name in SUM_NAMES], dtype=torch.float64))


class SpeedMeter:
    """Sequences, tokens, arithmetic and time summed over steps.

    Parameters
    ----------
    section : NetworkSection
    vocab_size : int
    peak_flops : float
        Operations a second of the device's matrix products at their best.

    Attributes
    ----------
    seconds : float
        Time of the steps that are counted.
    """

    def __init__(self, section: NetworkSection, vocab_size: int, peak_flops: float) -> None:
        self._section, self._vocab_size, self._peak_flops = section, vocab_size, peak_flops
        self.reset()

    def reset(self) -> None:
        """Begin a new interval."""
        self._sequences = self._tokens = self._flops = 0
        self.seconds = self._waited_seconds = 0.0

    def add(
        self, micro_batches: Sequence[PretrainingInput], seconds: float, waited_seconds: float
    ) -> None:
        """Count a step, and how much of its time was spent waiting for its batch."""
        for batch in micro_batches:
            lengths, num_selected = batch.lengths
            self._sequences += len(lengths)
            self._tokens += sum(lengths)
            self._flops += count_step_flops(
                self._section,
                self._vocab_size,
                lengths,
                num_selected,
                len(batch.masked_labels),
                len(batch.next_sentence_labels),
            )
        self.seconds += seconds
        self._waited_seconds += waited_seconds

    def rates(self, world: World) -> dict[str, Any]:
        """Sequences and tokens a second of all ranks, and two shares; None before the first step.

        ``mfu`` (model FLOPs utilization) is the arithmetic that the steps needed as a share of
        what the device could have done in their time; above 1 where it was slow when its peak was
        measured. ``waiting_fraction`` is the share of their time that steps waited for a batch.
        """
        own = self._sequences, self._tokens, self._flops, self._waited_seconds
        sequences, tokens, flops, waited = world.totals(*own)
        sums = {
            "pairs_per_second": sequences,
            "tokens_per_second": tokens,
            "mfu": flops / (self._peak_flops * world.size),
            "waiting_fraction": waited / world.size,
        }
        return {k: value / self.seconds if sequences else None for k, value in sums.items()}


class Clock:
    """Training time: of this session, and of the sessions before it too."""

    def __init__(self, seconds_before: float) -> None:
        self._before, self._started = seconds_before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        return self._before + time.monotonic() - self._started
