import itertools
import random

import pytest

from bertmill.config import ScheduleSection
from bertmill.train.schedule import BudgetSchedule, Decision, StepSchedule


def test_steps_warm_up_hold_and_fall_to_zero():
    schedule = StepSchedule(ScheduleSection(warmup_steps=10, hold_fraction=0.5), 100)
    assert [schedule.scale(s) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert {schedule.scale(s) for s in range(9, 51)} == {1.0}
    assert schedule.scale(75) == 0.5
    assert schedule.scale(99) == pytest.approx(0.02)
    assert schedule.scale(100) == 0.0


def test_bert_falls_right_after_the_warm_up():
    schedule = StepSchedule(ScheduleSection(warmup_steps=10), 110)
    assert schedule.scale(10) == 1.0
    assert schedule.scale(60) == 0.5


def test_constant_rate():
    schedule = StepSchedule(ScheduleSection(warmup_steps=0, decay="none"), 50)
    assert {schedule.scale(s) for s in range(50)} == {1.0}


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    schedule = StepSchedule(ScheduleSection(warmup_steps=100), 10)
    assert [schedule.scale(s) for s in range(10)] == [(s + 1) / 100 for s in range(10)]


FIVE = ScheduleSection(warmup_steps=5)


def simulate(
    budget,
    step_seconds,
    decisions=(),
    start=(0, 0.0),
    stop_at=None,
    pause=lambda step: 0.0,
    section=FIVE,
):
    """Run a schedule against a made-up machine: how long steps take, and pauses behind some."""
    made = list(decisions)

    def settle(decision):
        made.append(decision)

    schedule = BudgetSchedule(section, budget, decisions, settle)
    step, seconds = start
    scales = []
    while schedule.end_step is None or step < schedule.end_step:
        scales.append(schedule.scale(step))
        elapsed = step_seconds(seconds)
        seconds += elapsed
        step += 1
        schedule.decide(step, seconds, elapsed)
        seconds += pause(step)
        if step == stop_at:
            break
    return step, seconds, scales, made


@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda t: 0.1,
        lambda t: 0.1 if t < 75 else 0.2,  # a neighbor's job came
        lambda t: 0.2 if t < 90 else 0.1,  # and went
        lambda t: 0.1 if t < 98 else 0.2,
        lambda t: 0.1 + 0.1 * (int(t) % 7 == 0),  # now and then it is slow
        lambda t: 0.1 if not 72 < t < 73 else 13.0,  # it stands still for a while
        lambda t: 3.0,  # few steps
    ],
)
def test_a_budget_is_kept_within_five_percent(step_seconds):
    _, seconds, scales, _ = simulate(100.0, step_seconds)
    assert abs(seconds - 100.0) <= 5.0
    assert max(scales) == 1.0
    assert scales[-1] < 0.25
    falling = scales[scales.index(1.0) :]
    assert all(a >= b for a, b in itertools.pairwise(falling))


def test_the_peak_is_held_for_seventy_percent():
    _, _, scales, made = simulate(100.0, lambda t: 0.1)
    assert scales[699] == 1.0 and scales[705] < 1.0
    assert made[0].step == pytest.approx(700, abs=2)


def test_a_resumed_run_repeats_the_rates_that_were_decided():
    """Killed at step 900 with its last checkpoint at 650: decisions after that are on record."""
    _, _, whole, decisions = simulate(100.0, lambda t: 0.1, stop_at=900)
    again = simulate(
        100.0, lambda t: 0.104, decisions, start=(650, 65.0), stop_at=decisions[-1].step
    )
    replayed = again[2]
    assert replayed == whole[650 : decisions[-1].step]
    assert again[3] == decisions


def test_a_resumed_run_past_a_decision_point_still_decays():
    """Resumed behind the first point, before any decision was made."""
    step, seconds, scales, made = simulate(100.0, lambda t: 0.1, start=(690, 70.5))
    assert made[0].step == 691
    assert step == pytest.approx(985, abs=20) and abs(seconds - 100.0) <= 5.0
    assert scales[-1] < 0.05


@pytest.mark.parametrize("every", [50, 250])
def test_validations_are_inside_the_budget(every):
    _, seconds, scales, _ = simulate(
        100.0, lambda t: 0.1, pause=lambda step: 2.0 if step % every == 0 else 0.0
    )
    assert abs(seconds - 100.0) <= 5.0
    assert scales[-1] < 0.1


def test_a_decision_is_recorded_before_it_is_used():
    seen = []

    def record(decision: Decision):
        seen.append((decision, schedule.scale(decision.step), schedule.end_step))
        return decision

    schedule = BudgetSchedule(ScheduleSection(warmup_steps=0), 10.0, [], record)
    for step in range(1, 8):
        schedule.decide(step, float(step), 1.0)
    [(decision, scale_then, end_then)] = seen
    assert (scale_then, end_then) == (1.0, None)
    assert schedule.end_step == decision.end_step == 10


# --- resumed at another speed --------------------------------------------------------------------


def kill_and_resume(rng, factor):
    """A run of 20 to 2,000 steps, killed at 60 to 99 % and resumed at `factor` of its speed."""
    num_steps = round(20 * 100 ** rng.random())
    one, every = 100.0 / num_steps, rng.randint(1, num_steps // 10)
    stop_at = int(num_steps * rng.uniform(0.6, 0.99))
    _, _, before, decisions = simulate(100.0, lambda t: one, stop_at=stop_at)
    saved = stop_at // every * every  # its last checkpoint, before some of the decisions
    then = one / factor
    _, seconds, scales, made = simulate(
        100.0, lambda t: then, decisions, start=(saved, saved * one)
    )
    return [*before[:saved], *scales], seconds, then, decisions, made[len(decisions) :]


@pytest.mark.parametrize("factor", [0.5, 0.25, 0.8, 1.25, 2.0])
def test_a_run_resumed_at_another_speed_ends_with_its_budget_and_its_decay(factor):
    rng, wrong = random.Random(1), []
    for number in range(1_000 if factor == 0.5 else 200):
        scales, seconds, one, _, _ = kill_and_resume(rng, factor)
        could_stop_before = len(scales) > 1 and scales[-2] <= 0.2
        is_late = seconds > 105.0 and could_stop_before
        is_early = seconds < 95.0 and seconds + one <= 100.0
        if scales[-1] > 0.2 or is_late or is_early:
            wrong.append((number, scales[-1], seconds, one))
    assert not wrong


def test_a_run_resumed_at_its_speed_keeps_to_its_decisions():
    rng = random.Random(2)
    for factor in [1.0, 0.97, 1.03] * 50:
        *_, decisions, new = kill_and_resume(rng, factor)
        assert all(each.step > decision.step for each in new for decision in decisions)


# --- the warm-up of a budget ---------------------------------------------------------------------

TINY = ScheduleSection(warmup_steps=10_000, warmup_fraction=0.01)


@pytest.mark.parametrize(
    ("num_steps", "warmup"), [(17, 1), (100, 1), (1_000, 20), (10_000, 100), (30_000, 300)]
)
def test_a_budget_has_its_share_of_warm_up(num_steps, warmup):
    """The first steps are at almost no rate, until the speed is known; none where it is known."""
    scales = simulate(100.0, lambda t: 100.0 / num_steps, section=TINY)[2]
    assert scales.index(1.0) == pytest.approx(warmup, abs=2)
    rising = scales[: scales.index(1.0)]
    assert all(a < b for a, b in itertools.pairwise(rising))


def test_no_warm_up_is_longer_than_its_steps():
    scales = simulate(1e6, lambda t: 10.0, section=TINY.model_copy(update={"warmup_steps": 50}))[2]
    assert scales.index(1.0) == 50


def test_a_resumed_warm_up_is_the_same():
    _, _, whole, decisions = simulate(100.0, lambda t: 0.01, section=TINY, stop_at=90)
    assert [decision.end_scale for decision in decisions] == [1.0]
    for start in (0, 15, 50):
        scales = simulate(
            100.0, lambda t: 0.02, decisions, (start, start * 0.01), section=TINY, stop_at=90
        )[2]
        assert scales == whole[start:]
