"""Learning rate and length of a run: by steps, or by a time budget.

A run by steps is a pure function of the step. A run by budget holds the peak until 70 % of the
time, then fixes the remaining steps from the speed it measured, and fixes them again every 5 % and
whenever half of them are made, so that it ends with the budget even when the machine's speed
changes. Each fixing is a `Decision`, written to the run before it is used: a resumed run reads it
and computes the same rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bertmill.config import ScheduleSection, Section

_DECISION_POINTS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 0.975)
_FEW_STEPS = 20


class Decision(Section):
    """From `step` on the rate falls linearly from `scale` to zero at `end_step`."""

    step: int
    seconds: float
    """Training time when it was made."""
    scale: float
    """Share of the peak rate at `step`."""
    end_step: int


class StepSchedule:
    """Linear warm-up, hold, linear decay to zero at the last step.

    Parameters
    ----------
    section : ScheduleSection
    num_steps : int
        `Deviation:` BERT counts the decay from step 0, we from where it begins. When this grows on
        resume, hold and decay are those of the new length from there on.

    Attributes
    ----------
    end_step : int
        Steps in the whole run.
    """

    def __init__(self, section: ScheduleSection, num_steps: int) -> None:
        self._section, self.end_step = section, num_steps

    def scale(self, step: int) -> float:
        """Share of the peak learning rate in the update that follows `step` updates."""
        warmup = self._section.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self._section.decay == "none":
            return 1.0
        start = max(warmup, int(self._section.hold_fraction * self.end_step))
        return min(1.0, (self.end_step - step) / max(1, self.end_step - start))

    def decide(self, step: int, seconds: float, step_seconds: float) -> None:
        """Decide nothing: the length is known."""

    def done_and_left(self, step: int, seconds: float) -> tuple[float, float]:
        """Share of the run that `step` updates in `seconds` are, and the seconds left."""
        return step / self.end_step, (self.end_step - step) * seconds / step


class BudgetSchedule:
    """Linear warm-up, hold, then a decay whose end is decided from the measured speed.

    Parameters
    ----------
    section : ScheduleSection
    budget_seconds : float
        Training time of the run, over all its sessions.
    decisions : sequence of Decision
        Those that the run has made so far.
    settle : callable
        Keeps a decision before it is used, and returns the one that all ranks use.
    """

    def __init__(
        self,
        section: ScheduleSection,
        budget_seconds: float,
        decisions: Sequence[Decision],
        settle: Callable[[Decision], Decision],
    ) -> None:
        self._section, self._budget, self._settle = section, budget_seconds, settle
        self._decisions = list(decisions)
        self._steps, self._stepping = 0, 0.0

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

    def decide(self, step: int, seconds: float, step_seconds: float) -> None:
        """Fix the remaining steps where a decision is due; called after every step.

        Parameters
        ----------
        step : int
            Updates made so far.
        seconds : float
            Training time so far, validation and checkpoints included.
        step_seconds : float
            Time of this step alone. The speed is that of the steps since the decision before.
        """
        self._steps, self._stepping = self._steps + 1, self._stepping + step_seconds
        last = self._decisions[-1] if self._decisions else None
        if last is not None and step <= last.step:
            return  # a resumed run is on its way to a decision that was made before
        if not self._is_due(step, seconds, last):
            return
        left = max(0, round((self._budget - seconds) * self._steps / self._stepping))
        decision = Decision(
            step=step, seconds=seconds, scale=self.scale(step), end_step=step + left
        )
        self._decisions.append(self._settle(decision))
        self._steps, self._stepping = 0, 0.0

    def done_and_left(self, step: int, seconds: float) -> tuple[float, float]:
        """Share of the run that is done, and the seconds left."""
        return seconds / self._budget, max(0.0, self._budget - seconds)

    def _is_due(self, step: int, seconds: float, last: Decision | None) -> bool:
        """Whether a point of the budget has gone by, or half of what was left to do.

        The second catches a speed that was measured in a bad moment: without it, 22 steps that
        were thought to last for the remaining 15 seconds would end the run after two.
        """
        before = -1.0 if last is None else last.seconds
        points = (point * self._budget for point in _DECISION_POINTS)
        if any(before < point <= seconds for point in points):
            return True
        if last is None:
            return False
        planned = last.end_step - last.step
        return planned >= _FEW_STEPS and step >= last.step + planned // 2


Schedule = StepSchedule | BudgetSchedule
"""How long a run is and how fast it learns."""
