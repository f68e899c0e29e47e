"""Learning rate and length of a run: by steps, or by a time budget.

A run by steps is a pure function of the step. A run by budget holds the peak until 70 % of the
time, then fixes the remaining steps from the speed it measured. It fixes them again every 5 %, and
whenever the clock has drifted from the plan, so that it ends with the budget even when the
machine's speed changes. Each fixing is a `Decision`, written to the run before it is used: a run
that is resumed on a machine as fast reads it and computes the same rates; on another one it decides
anew as soon as it is late or early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bertmill.config import ScheduleSection, Section

_DECISION_POINTS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 0.975)
_DRIFT = 0.025
"""Share of the budget by which the clock may differ from the plan."""
_LAST_STEPS = 5
"""The rate falls over so many steps at least, however late the end was known."""
_MEASURED_STEPS, _MEASURED_FRACTION = 20, 0.02
"""The length of a warm-up is decided after so many steps, or so much of the budget."""


class Decision(Section):
    """From `step` on the rate goes linearly from `scale` to `end_scale` at `end_step`."""

    step: int
    seconds: float
    """Training time when it was made."""
    scale: float
    """Share of the peak rate at `step`."""
    end_step: int
    end_scale: float = 0.0
    """0 at the end of the run, 1 at that of the warm-up."""


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
        Those that the run has made so far, in the order in which it made them.
    settle : callable
        Keeps a decision before it is used.
    """

    def __init__(
        self,
        section: ScheduleSection,
        budget_seconds: float,
        decisions: Sequence[Decision],
        settle: Callable[[Decision], None],
    ) -> None:
        self._section, self._budget, self._settle = section, budget_seconds, settle
        self._warmup: Decision | None = None
        self._ends: list[Decision] = []
        for decision in decisions:
            self._keep(decision)
        self._steps, self._stepping = 0, 0.0
        self._start: tuple[int, float] | None = None

    @property
    def end_step(self) -> int | None:
        """Steps in the whole run, None until the first decision about its end."""
        return self._ends[-1].end_step if self._ends else None

    def scale(self, step: int) -> float:
        """Share of the peak learning rate in the update that follows `step` updates."""
        made = [d for d in self._ends if d.step <= step]
        if made and self._section.decay == "linear":
            last = made[-1]
            left, planned = last.end_step - step, max(1, last.end_step - last.step)
            return min(last.scale * left / planned, left / _LAST_STEPS)
        warmup = self._warmup
        if warmup is None or step < warmup.step:
            return min(1.0, (step + 1) / max(1, self._section.warmup_steps))
        risen = (step - warmup.step) / (warmup.end_step - warmup.step)
        return min(1.0, warmup.scale + (1.0 - warmup.scale) * risen)

    def decide(self, step: int, seconds: float, step_seconds: float) -> None:
        """Fix the length of the warm-up or of the run where that is due; called after every step.

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
        self._start = self._start or (step - 1, seconds - step_seconds)
        speed = self._steps / self._stepping
        fraction = self._section.warmup_fraction
        is_measured = step >= _MEASURED_STEPS or seconds >= _MEASURED_FRACTION * self._budget
        if fraction and self._warmup is None and is_measured:
            warmup = min(self._section.warmup_steps, round(fraction * self._budget * speed))
            self._decide(step, seconds, max(warmup, step + 1), 1.0)
        if self._is_due(step, seconds):
            left = round((self._budget - seconds) * speed)
            # Whatever the clock says, the last update is a small one.
            left = max(left, int(self.scale(step - 1) > 1 / _LAST_STEPS))
            self._decide(step, seconds, step + left, 0.0)
            self._steps, self._stepping = 0, 0.0

    def done_and_left(self, step: int, seconds: float) -> tuple[float, float]:
        """Share of the run that is done, and the seconds left."""
        return seconds / self._budget, max(0.0, self._budget - seconds)

    def _decide(self, step: int, seconds: float, end_step: int, end_scale: float) -> None:
        scale = self.scale(step)
        decision = Decision(
            step=step, seconds=seconds, scale=scale, end_step=end_step, end_scale=end_scale
        )
        self._settle(decision)
        self._keep(decision)

    def _keep(self, decision: Decision) -> None:
        """Use a decision, instead of those about later steps, which were made at another speed."""
        if decision.end_scale:
            self._warmup = decision
        else:
            self._ends = [*(d for d in self._ends if d.step < decision.step), decision]

    def _is_due(self, step: int, seconds: float) -> bool:
        """Whether to decide about the end: a point has gone by, or the clock is off the plan.

        A resumed run is on its way to decisions that were made before. It keeps to them as long as
        they come when they did, and forgets them where it is late or early.
        """
        if step == self.end_step:
            return False
        made = [d for d in self._ends if d.step <= step]
        coming = self._ends[len(made) :]
        is_off_plan = bool(self._ends) and self._drift(step, seconds, made, coming) > _DRIFT
        if coming and not is_off_plan:
            return False
        self._ends = made
        before = made[-1].seconds if made else -1.0
        points = (point * self._budget for point in _DECISION_POINTS)
        return any(before < point <= seconds for point in points) or (is_off_plan and bool(made))

    def _drift(
        self, step: int, seconds: float, made: list[Decision], coming: list[Decision]
    ) -> float:
        """Share of the budget by which the clock is off the line to what is planned next."""
        assert self._start is not None
        start, at = max([self._start, *((d.step, d.seconds) for d in made[-1:])])
        goal, due = self._ends[-1].end_step, self._budget
        if coming:
            goal, due = coming[0].step, coming[0].seconds
        planned = at + (due - at) * (step - start) / max(1, goal - start)
        return abs(seconds - planned) / self._budget


Schedule = StepSchedule | BudgetSchedule
"""How long a run is and how fast it learns."""
