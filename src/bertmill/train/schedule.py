"""Learning rate and length of a run: by steps, or by a time budget.

A run by steps is a pure function of the step. A run by budget holds the peak until 70 % of the
time, then fixes the remaining steps from the speed it measured, and fixes them again every 5 %, so
that it ends with the budget even when the machine's speed changes. Each fixing is a `Decision`,
written to the run before it is used: a resumed run reads it and computes the same rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bertmill.config import ScheduleSection

_DECISION_POINTS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 0.975)


@dataclass(frozen=True)
class Decision:
    """From `step` on the rate falls linearly from `scale` to zero at `end_step`."""

    step: int
    seconds: float
    """Training time when it was made."""
    scale: float
    """Share of the peak rate at `step`."""
    end_step: int


class Schedule(Protocol):
    """How long a run is and how fast it learns."""

    @property
    def end_step(self) -> int | None:
        """Steps in the whole run, None while that is open."""

    def scale(self, step: int) -> float:
        """Share of the peak learning rate in the update that follows `step` updates."""


class StepSchedule:
    """Linear warm-up, hold, linear decay to zero at the last step.

    Parameters
    ----------
    section : ScheduleSection
    num_steps : int
        When it grows on resume, hold and decay are those of the new length from there on.
    """

    def __init__(self, section: ScheduleSection, num_steps: int) -> None:
        self._section, self._num_steps = section, num_steps

    @property
    def end_step(self) -> int:
        """Steps in the whole run."""
        return self._num_steps

    def scale(self, step: int) -> float:
        """Share of the peak learning rate in the update that follows `step` updates."""
        warmup = self._section.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self._section.decay == "none":
            return 1.0
        start = max(warmup, int(self._section.hold_fraction * self._num_steps))
        return min(1.0, (self._num_steps - step) / max(1, self._num_steps - start))


class BudgetSchedule:
    """Linear warm-up, hold, then a decay whose end is decided from the measured speed.

    Parameters
    ----------
    section : ScheduleSection
    budget_seconds : float
        Training time of the run, over all its sessions.
    decisions : sequence of Decision
        Those that the run has made so far.
    record : callable
        Keeps a decision safe before it is used.
    """

    def __init__(
        self,
        section: ScheduleSection,
        budget_seconds: float,
        decisions: Sequence[Decision],
        record: Callable[[Decision], None],
    ) -> None:
        self._section, self._budget, self._record = section, budget_seconds, record
        self._decisions = list(decisions)
        self._mark: tuple[int, float] | None = None

    @property
    def end_step(self) -> int | None:
        """Steps in the whole run, None until the first decision."""
        return self._decisions[-1].end_step if self._decisions else None

    def scale(self, step: int) -> float:
        """Share of the peak learning rate in the update that follows `step` updates."""
        made = [d for d in self._decisions if d.step <= step]
        if made and self._section.decay == "linear":
            last = made[-1]
            return last.scale * (last.end_step - step) / max(1, last.end_step - last.step)
        return min(1.0, (step + 1) / max(1, self._section.warmup_steps))

    def decide(self, step: int, seconds: float) -> None:
        """Fix the remaining steps where a decision is due; called after every step.

        Parameters
        ----------
        step : int
            Updates made so far.
        seconds : float
            Training time so far, validation and checkpoints included. The speed is that since the
            decision before.
        """
        if self._mark is None:
            self._mark = (step, seconds)
        number = len(self._decisions)
        if number == len(_DECISION_POINTS) or seconds < _DECISION_POINTS[number] * self._budget:
            return
        if self._decisions and step <= self._decisions[-1].step:
            return  # a resumed run is on its way to a decision that was made before
        steps, span = step - self._mark[0], seconds - self._mark[1]
        left = round((self._budget - seconds) * steps / span) if span > 0 else 0
        decision = Decision(step, seconds, self.scale(step), step + max(0, left))
        self._record(decision)
        self._decisions.append(decision)
        self._mark = (step, seconds)
