"""What a session of a run works with: model, optimizer, schedule, meters, and what is done to them.

`bertmill.train.loop` has the order in which it is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bertmill.data.randomness import make_key
from bertmill.errors import ModelError, RunError
from bertmill.model.folder import LoadedModel, save_model
from bertmill.model.kernels import KERNELS
from bertmill.model.pooling import Pooling, pooling_to_keep
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.model.transfer import transfer_weights
from bertmill.train.checkpoint import Checkpoint, State, new_checkpoint, restore_weights
from bertmill.train.compiled import compile_blocks
from bertmill.train.device import device_name, measure_peak_flops, synchronize
from bertmill.train.diagnosis import diagnose, diagnose_masked_tokens, one_label
from bertmill.train.metrics import Clock, HeldOutRecord, LossMeter, Record, SpeedMeter, TrainRecord
from bertmill.train.moments import gather_model, restore_moments, save_moments
from bertmill.train.optimizer import make_optimizer
from bertmill.train.prefetch import Prefetch
from bertmill.train.progress import RunProgress
from bertmill.train.run_folder import RunFolder
from bertmill.train.schedule import BudgetSchedule, Decision, Schedule, StepSchedule
from bertmill.train.signals import StopRequest
from bertmill.train.start import Plan
from bertmill.train.step import StepInput, take_step
from bertmill.train.validate import HeldOutScores

# Of the run; until then a loss at the no-context level is nothing to worry about.
_FAIR_SHARE = 0.5
_SKIPPED_IN_A_ROW = 5
_FORECAST = 5.0
"""Seconds of steps from which the length of the run can be told."""


@dataclass(frozen=True)
class Outcome:
    """How a session of a run went. Losses in nats, speeds over this session's steps."""

    steps: int
    finished: bool
    stopped_by: int | None
    """Number of the signal that ended the session early."""
    seconds: float
    """Training time over all sessions, validation and checkpoints included."""
    mlm_loss: float | None
    nsp_loss: float | None
    """Training losses over the last log interval."""
    pairs_per_second: float | None
    tokens_per_second: float | None
    mfu: float | None
    """Arithmetic that the steps needed, as a share of what the device can do in their time."""
    waiting_fraction: float | None
    """Share of the steps' time in which they waited for their batch."""
    device: str
    held_out: HeldOutScores | None
    diagnosis: tuple[str, ...]
    """What the finished run was found not to have learned, one line for each finding."""


class Session:
    """The state of a run between two checkpoints, and the operations of its loop.

    Parameters
    ----------
    plan : Plan
    progress : RunProgress
    after_checkpoint : callable
        Called with the run whenever a checkpoint is whole.
    on_metrics : callable
        Called with each record once it is kept, on rank 0.
    stop_at : float
        Reading of ``time.monotonic`` at which the session is to stop.

    Attributes
    ----------
    step : int
        Updates made so far.
    """

    def __init__(
        self,
        plan: Plan,
        progress: RunProgress,
        after_checkpoint: Callable[[RunFolder], None],
        on_metrics: Callable[[Record], object],
        stop_at: float,
    ) -> None:
        recipe, world, tokenizer = plan.recipe, plan.world, plan.data.store.tokenizer
        self.plan, self.run, self.world, self.knobs = plan, plan.run, world, recipe.train
        self._progress, self._after_checkpoint = progress, after_checkpoint
        self._on_metrics, self._stop_at = on_metrics, stop_at
        self._stopped_by: int | None = None
        self._is_late = False
        _say_start(plan, progress)
        kernels = self.knobs.kernels
        self.model = PretrainingModel(recipe.model, tokenizer.size, KERNELS[kernels])
        self.model.set_recompute(recompute=self.knobs.recompute is True)
        generator = torch.Generator().manual_seed(make_key(self.knobs.seed, "weights"))
        initialize(self.model, recipe.model, generator)
        self._pooling: Pooling | None = None
        self._untrained = set() if recipe.trains_pairs else set(self.model.tensors_for_pairs())
        if isinstance(plan.start, LoadedModel):
            self._begin_with(plan.start)
            self._untrained &= set(plan.start.new_weights)
        elif isinstance(plan.start, Checkpoint):
            saved = restore_weights(plan.start, self.model)
            self._untrained = set(saved.new_weights)
            self._pooling = saved.about.pooling if saved.about else None
        self.model.to(world.device).train()
        if self.knobs.compile:
            progress.say("compiling what the blocks do after their attention; it may take a minute")
            assert self.knobs.precision != "auto"
            compile_blocks(self.model, world.device, self.knobs.precision)
        world.wrap(self.model)
        self.optimizer = make_optimizer(self.model, recipe.optimizer, kernels)
        self.schedule = self._make_schedule()
        self.step, self.clock = 0, Clock(0.0)
        self._losses = LossMeter(world.device)
        peak_flops = measure_peak_flops(world.device, self.knobs.precision)
        self._speed, self._session_speed = (
            SpeedMeter(recipe.model, tokenizer.size, peak_flops) for _ in range(2)
        )
        self._saved_at = self._validated_at = -1
        self._saved_seconds = time.monotonic()
        self._held_out_loss: float | None = None
        self._is_diagnosed = self._is_forecast = False

    def _begin_with(self, source: LoadedModel) -> None:
        """Take over a pretrained model's weights, and say which there were."""
        tokenizer, new = self.plan.data.store.tokenizer, source.new_parts
        num_known = transfer_weights(self.model, tokenizer, source)
        found = f"all but {', '.join(new)}, newly drawn" if new else "all found"
        self._progress.say(f"weights from {source.folder}: {found}")
        if num_known < tokenizer.size:
            self._progress.say(
                f"another vocabulary: {num_known:,} of {tokenizer.size:,} rows come from the "
                f"model, {tokenizer.size - num_known:,} are newly drawn"
            )

        try:
            pooling = pooling_to_keep(source, self.plan.recipe.pairs.max_length)
        except ModelError as error:
            self._progress.say(f"how it makes sentence vectors is not kept: {error}")
            return
        if pooling is not None:
            self._pooling = pooling
            unit = ", scaled to length 1" if pooling.normalize else ""
            self._progress.say(
                f"sentence vectors stay as they are there: {pooling.mode}{unit}, of up to "
                f"{pooling.max_length:,} tokens"
            )

    def _make_schedule(self) -> Schedule:
        section, budget = self.plan.recipe.schedule, self.plan.budget_seconds
        if budget is None:
            return StepSchedule(section, self.knobs.steps)
        made = self.world.by_first(lambda: [d.model_dump() for d in self.run.decisions()])
        decisions = [Decision.model_validate(decision) for decision in made]
        return BudgetSchedule(section, budget, decisions, self._settle)

    def _settle(self, decision: Decision) -> None:
        if self.world.speaks:
            self.run.record_decision(decision)

    # --- what the loop reads ---------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Whether the run has made all its steps."""
        return self.step == self.schedule.end_step

    @property
    def is_save_due(self) -> bool:
        """Whether to save: after so many steps, or so much time."""
        return self.is_due(self.knobs.checkpoint_every_steps) or self._is_late

    def is_due(self, every_steps: int) -> bool:
        """Whether this is a step for what is done every so many steps."""
        return self.step % every_steps == 0

    # --- what the loop does ----------------------------------------------------------------------

    def restore(self) -> None:
        """Go on from the plan's checkpoint, or save the first one."""
        start = self.plan.start
        if not isinstance(start, Checkpoint):
            if self._untrained:
                self._progress.say(
                    "the pooler and the next-sentence head are not trained: the model is saved "
                    "without them"
                )
            self._cut_metrics()
            self.save()
        else:
            restore_moments(start.folder, self.model, self.optimizer)
            self.step, self.clock = start.state.step, Clock(start.state.seconds)
            self._losses.load_state(start.state.losses)
            self._cut_metrics()
            validations = [record.step for record in self.run.metrics().held_out]
            self._saved_at = self.step
            self._validated_at = self.world.agree(max(validations, default=-1))
            if self.is_finished:
                self._progress.say("the run is finished already; more steps make it longer")
        self._show_phase()

    def _show_phase(self) -> None:
        """Show losses beside the yardsticks of the phase that the coming step belongs to."""
        held_out = self.plan.data.phase_of(self.step).held_out
        self._progress.start(held_out.yardsticks if held_out else None, self.run.metrics())

    def prefetch(self) -> Prefetch[StepInput]:
        """Make the coming batches in a thread of their own."""
        return Prefetch(self._make_input, self.step)

    def _make_input(self, step: int) -> StepInput:
        phase, world = self.plan.data.phase_of(step), self.world
        max_tokens = self.knobs.micro_batch_tokens
        parts = phase.train.micro_batches_at(
            step - phase.first_step, max_tokens, world.rank, world.size
        )
        return StepInput.of(parts, world.device)

    def take_step(self, batches: Prefetch[StepInput]) -> None:
        """Update the weights once; count losses, tokens and time."""
        phase = self.plan.data.phase_of(self.step)
        if self.step and self.step == phase.first_step:
            self._progress.say(f"step {self.step:,}: {phase.lengths} from here on")
            self._show_phase()
        started = time.perf_counter()
        rate = self.plan.recipe.optimizer.lr * self.schedule.scale(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = batches.take()
        done = take_step(self.model, self.optimizer, batch, self.plan.recipe, self.step, self.world)
        self.step += 1
        if self.is_due(self.knobs.log_every_steps) or self.is_finished:
            synchronize(self.world.device)  # so that the clock shows what the device has done
        elapsed = time.perf_counter() - started
        self._losses.add(*done)
        for meter in (self._speed, self._session_speed):
            meter.add(batch.micro_batches, elapsed, batches.waited_seconds)
        self._read_clocks(elapsed)
        share, left = self.schedule.done_and_left(self.step, self.clock.seconds)
        self._progress.step(self.step, share)
        self._forecast(share, left)

    def _read_clocks(self, elapsed: float) -> None:
        """Decide by the clocks of all ranks how long the run is, and whether to save."""
        minutes = self.knobs.checkpoint_every_minutes
        is_late = minutes > 0 and time.monotonic() - self._saved_seconds >= 60 * minutes
        *clocks, is_any_late = self.world.largest(self.clock.seconds, elapsed, is_late)
        self._is_late = bool(is_any_late)
        self.schedule.decide(self.step, *clocks)

    def _forecast(self, done: float, left: float) -> None:
        """Say what the run will take, as soon as the steps so far can tell."""
        is_known = (
            self.is_due(self.knobs.log_every_steps) or self._session_speed.seconds > _FORECAST
        )
        if is_known and not (self._is_forecast or self.is_finished):
            self._is_forecast = True
            epochs = self.plan.data.count_epochs(round(self.step / done))
            is_by_time = self.plan.budget_seconds is not None
            self._progress.forecast(left, epochs, is_by_time=is_by_time)

    def log(self) -> None:
        """Record and show the log interval; stop a run that no longer learns."""
        record = TrainRecord(
            step=self.step,
            **self._losses.means(),
            **self._speed.rates(self.world),
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=self.clock.seconds,
        )
        self._keep(record)
        self._progress.update(record, *self.schedule.done_and_left(self.step, self.clock.seconds))
        if self._losses.skipped_in_a_row >= _SKIPPED_IN_A_ROW:
            raise self._not_finite("the loss or its gradient")
        self._losses.reset()
        self._speed.reset()

    def must_stop(self, stop: StopRequest) -> bool:
        """Whether a rank was sent a signal, or its time is up."""
        is_over = time.monotonic() >= self._stop_at
        stopped_by, is_any_over = self.world.largest(stop.signal or 0, is_over)
        self._stopped_by = int(stopped_by) or None
        return bool(stopped_by or is_any_over)

    def validate(self) -> None:
        """Score the held-out text, record it, and say halfway where nothing is being learned."""
        self._validated_at = self.step
        held_out = self.plan.data.phase_of(self.step - 1).held_out
        if held_out is None:
            return
        scores = held_out.score(self.model, self.world)
        self._held_out_loss = scores.mlm_loss
        if not math.isfinite(scores.mlm_loss + (scores.nsp_loss or 0.0)):
            raise self._not_finite("the held-out loss")
        record = HeldOutRecord(self.step, scores)
        self._keep(record)
        self._progress.held_out(record)
        done, _ = self.schedule.done_and_left(self.step, self.clock.seconds)
        if not self._is_diagnosed and done >= _FAIR_SHARE and not self.is_finished:
            self._is_diagnosed = True
            is_given = self.plan.facts.init_from is not None
            recipe = self.plan.recipe
            lines = diagnose_masked_tokens(scores, recipe, self.step, is_given=is_given)
            self._progress.say(*lines)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        whole = gather_model(self.model, self.world)
        is_finite = whole is None or all(bool(p.isfinite().all()) for p in whole.parameters())
        if not self.world.agree(is_finite):
            raise self._not_finite("a weight")
        phase = self.plan.data.phase_of(self.step - 1)
        state = State(
            step=self.step,
            seconds=self.clock.seconds,
            losses=self._losses.state(),
            held_out_loss=self._held_out_loss if self._validated_at == self.step else None,
            phase=phase.number,
            recipe=self.plan.recipe.model_dump(),
        )
        keep, tokenizer = self.knobs.keep_checkpoints, self.plan.data.store.tokenizer
        about = phase.about.model_copy(update={"pooling": self._pooling})
        with new_checkpoint(self.run, state, self.world, keep) as folder:
            if whole is not None:
                save_model(folder / "model", whole, tokenizer, about, self._untrained)
            save_moments(folder, self.model, self.optimizer, self.world)
        if self.world.speaks:
            self._after_checkpoint(self.run)
        self._saved_at, self._saved_seconds = self.step, time.monotonic()

    def finish(self) -> Outcome:
        """Validate a finished run, save, and say how the session went."""
        if self.is_finished and self._validated_at != self.step:
            self.validate()
        if self._saved_at != self.step:
            self.save()
        if not self.is_finished:
            self._progress.stopped(self.step, self.run.path)
        metrics = self.run.metrics()
        scores = metrics.held_out[-1].scores if metrics.held_out else None
        last = metrics.train[-1] if metrics.train else None
        mlm_loss, nsp_loss = (last.mlm_loss, last.nsp_loss) if last else (None, None)
        diagnosis: list[str] = []
        if scores and self.is_finished:
            is_given = self.plan.facts.init_from is not None
            diagnosis = diagnose(scores, self.plan.recipe, self.step, mlm_loss, is_given=is_given)
            if self.world.speaks:
                self.run.write_diagnosis(diagnosis)
        self._progress.say(*diagnosis)
        return Outcome(
            steps=self.step,
            finished=self.is_finished,
            stopped_by=None if self.is_finished else self._stopped_by,
            seconds=self.clock.seconds,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            **self._session_speed.rates(self.world),
            device=device_name(self.world.device),
            held_out=scores,
            diagnosis=tuple(diagnosis),
        )

    def _keep(self, record: Record) -> None:
        if self.world.speaks:
            self.run.log(record)
            self._on_metrics(record)

    def _cut_metrics(self) -> None:
        if self.world.speaks:
            self.run.cut(self.step)

    def _not_finite(self, what: str) -> RunError:
        return RunError(
            self.run.path,
            f"{what} is not finite at step {self.step}",
            "its last checkpoint is whole; start a new run with a lower optimizer.lr, more "
            "schedule.warmup_steps, or a lower optimizer.clip_norm (0 clips nothing)",
        )


def _say_start(plan: Plan, progress: RunProgress) -> None:
    """Say what is about to be trained, and on what."""
    recipe, knobs = plan.recipe, plan.recipe.train
    first, *later = plan.data.phases
    if first.held_out is None:
        is_some = plan.data.store.held_out.num_documents > 0
        progress.say(
            "nothing is validated: the held-out share of the corpus "
            f"{'is too little to make a pair of' if is_some else 'is empty'}; raise "
            "text.held_out_fraction, or give held-out text"
        )
    if plan.budget_seconds is None and recipe.schedule.warmup_steps > knobs.steps:
        progress.say(
            f"the warm-up of {recipe.schedule.warmup_steps:,} steps is longer than the run; "
            "schedule.warmup_steps=N shortens it"
        )
    progress.say(*one_label(recipe))
    length = "for the time budget" if plan.budget_seconds is not None else f"{knobs.steps:,} steps"
    progress.say(
        f"training {length}, {knobs.batch_size:,} sequences per step, "
        f"{first.train.num_examples:,} in an epoch, which sees "
        f"{first.train.seen_fraction():.1%} of the tokens, on "
        f"{device_name(plan.world.device)} in {knobs.precision}"
    )
    for phase in later:
        progress.say(f"from step {phase.first_step:,} on, {phase.lengths}")
