"""The pretraining loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from bertmill.config import Recipe
from bertmill.data.randomness import make_key
from bertmill.errors import RunError
from bertmill.model.folder import LoadedModel
from bertmill.model.kernels import KERNELS
from bertmill.model.kernels.attention import takes_all_lengths
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.model.transfer import Transferred, transfer_weights
from bertmill.train.checkpoint import Checkpoint, State, restore, save_checkpoint
from bertmill.train.device import device_name, repeatable_kernels, synchronize, to_device
from bertmill.train.diagnosis import diagnose_masked_tokens, diagnose_pairs
from bertmill.train.memory import freed_memory_kept
from bertmill.train.meters import Clock, LossMeter, SpeedMeter
from bertmill.train.optimizer import make_optimizer
from bertmill.train.precision import measure_peak_flops
from bertmill.train.prefetch import Prefetch
from bertmill.train.progress import RunProgress
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import RunFolder
from bertmill.train.schedule import BudgetSchedule, StepSchedule
from bertmill.train.signals import stop_signals
from bertmill.train.step import take_step
from bertmill.train.validate import HeldOutScores

# Of the run; until then a loss at the no-context level is nothing to worry about.
_FAIR_SHARE = 0.5
_SKIPPED_IN_A_ROW = 5


@dataclass(frozen=True)
class Limits:
    """How long a run may go on."""

    budget_seconds: float | None = None
    """Training time over all sessions; None: the recipe's steps."""
    stop_at: float = math.inf
    """This session saves and stops at this reading of ``time.monotonic``."""


@dataclass(frozen=True)
class Outcome:
    """What a session of a run came to. Losses in nats, speeds over this session's steps."""

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
    """What the loss doctor has to say at the end of the run; a line each."""


def pretrain_loop(
    recipe: Recipe,
    data: RunData,
    run: RunFolder,
    limits: Limits,
    start: Checkpoint | LoadedModel | None,
    progress: RunProgress,
    after_checkpoint: Callable[[RunFolder], None],
) -> Outcome:
    """Train until the run's end, a limit, or a signal; save; say how it went.

    Parameters
    ----------
    recipe : Recipe
        Its precision is chosen.
    data : RunData
    run : RunFolder
        Created and locked.
    limits : Limits
    start : Checkpoint, LoadedModel or None
        Go on from this checkpoint of the run; begin with the weights of this model; or begin with
        fresh ones.
    progress : RunProgress
    after_checkpoint : callable
        Called with the run whenever a checkpoint is whole.

    Raises
    ------
    RunError
        The loss is not finite, or the run cannot be saved.
    """
    knobs, store, held_out, device = recipe.train, data.store, data.held_out, data.device
    tokenizer, precision = store.tokenizer, knobs.precision
    assert precision != "auto"
    if held_out is None:
        progress.say("no held-out text: give --held-out, or raise text.held_out_fraction")
    if limits.budget_seconds is None and recipe.schedule.warmup_steps > knobs.steps:
        progress.say(
            f"the warm-up of {recipe.schedule.warmup_steps:,} steps is longer than the run: "
            "another run may lower it with --set schedule.warmup_steps=N"
        )
    length = f"{knobs.steps:,} steps" if limits.budget_seconds is None else "for the time budget"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    is_at_once = takes_all_lengths(device, dtype, recipe.model.attention_probs_dropout_prob)
    progress.say(
        f"training {length}, {knobs.batch_size:,} sequences a step, "
        f"{data.train.num_examples:,} in an epoch, on {device_name(device)} in {precision}, "
        f"attention {'over all lengths at once' if is_at_once else 'length by length'}"
    )
    model = PretrainingModel(recipe.model, tokenizer.size, KERNELS[knobs.kernels])
    initialize(model, recipe.model, torch.Generator().manual_seed(make_key(knobs.seed, "weights")))
    if isinstance(start, LoadedModel):
        _say_transferred(transfer_weights(model, tokenizer, start), tokenizer.size, start, progress)
    model.to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer, knobs.kernels)
    schedule = (
        StepSchedule(recipe.schedule, knobs.steps)
        if limits.budget_seconds is None
        else BudgetSchedule(
            recipe.schedule, limits.budget_seconds, run.decisions(), run.record_decision
        )
    )

    step, clock = 0, Clock(0.0)
    losses, peak_flops = LossMeter(device), measure_peak_flops(device, precision)
    speed, session_speed = (SpeedMeter(recipe.model, tokenizer.size, peak_flops) for _ in range(2))
    saved_at = validated_at = -1
    held_out_loss: float | None = None
    is_diagnosed = False

    def save() -> None:
        nonlocal saved_at
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise _not_finite("a weight", step, run)
        state = State(
            step=step,
            seconds=clock.seconds,
            losses=losses.state(),
            held_out_loss=held_out_loss if validated_at == step else None,
            recipe=recipe.model_dump(),
        )
        save_checkpoint(
            run, state, model, tokenizer, data.about(recipe), optimizer, knobs.keep_checkpoints
        )
        saved_at = step
        after_checkpoint(run)

    def validate() -> None:
        nonlocal validated_at, held_out_loss, is_diagnosed
        validated_at = step
        if held_out is None:
            return
        scores = held_out.score(model, device)
        held_out_loss = scores.mlm_loss
        if not math.isfinite(scores.mlm_loss + (scores.nsp_loss or 0.0)):
            raise _not_finite("the held-out loss", step, run)
        record = {"step": step, "split": "held_out", **asdict(scores)}
        run.log(record)
        progress.held_out(record)
        share, _ = _progress_of(step, schedule.end_step, clock, limits)
        if not is_diagnosed and share >= _FAIR_SHARE and step != schedule.end_step:
            is_diagnosed = True
            for line in diagnose_masked_tokens(scores, recipe, step):
                progress.say(line)

    if not isinstance(start, Checkpoint):
        run.cut(0)
        save()
    else:
        restore(start, model, optimizer)
        step, clock = start.state.step, Clock(start.state.seconds)
        losses.load_state(start.state.losses)
        run.cut(step)
        validations = [r["step"] for r in run.metrics() if r["split"] == "held_out"]
        saved_at, validated_at = step, max(validations, default=-1)
        if step == schedule.end_step:
            progress.say("the run is finished already; --steps makes it longer")

    progress.start(held_out.yardsticks if held_out else None)
    batches = Prefetch(lambda step: to_device(data.train.batch_at(step), device), step)
    with freed_memory_kept(), repeatable_kernels(device), stop_signals() as stop, batches:
        while schedule.end_step is None or step < schedule.end_step:
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * schedule.scale(step)
            batch = batches.take()
            sums, is_skipped = take_step(model, optimizer, batch, recipe, step)
            step += 1
            is_logged = step % knobs.log_every_steps == 0 or step == schedule.end_step
            if is_logged:
                synchronize(device)
            elapsed = time.perf_counter() - started
            losses.add(sums, batch, is_skipped)
            speed.add(batch, elapsed, batches.waited_seconds)
            session_speed.add(batch, elapsed, batches.waited_seconds)
            if isinstance(schedule, BudgetSchedule):
                schedule.decide(step, clock.seconds, elapsed)

            if is_logged or step == schedule.end_step:
                record = {"step": step, "split": "train", **losses.means(), **speed.rates()}
                record |= {"lr": optimizer.param_groups[0]["lr"], "seconds": clock.seconds}
                run.log(record)
                progress.update(record, *_progress_of(step, schedule.end_step, clock, limits))
                if losses.skipped_in_a_row >= _SKIPPED_IN_A_ROW:
                    raise _not_finite("the loss or its gradient", step, run)
                losses.reset()
                speed.reset()
            if step % knobs.validate_every_steps == 0 or step == schedule.end_step:
                validate()
            if step % knobs.checkpoint_every_steps == 0:
                save()
            if stop.signal is not None or time.monotonic() >= limits.stop_at:
                break

        finished = step == schedule.end_step
        if finished and validated_at != step:
            validate()
        if saved_at != step:
            save()

    last = {record["split"]: record for record in run.metrics()}
    trained, scored = last.get("train", {}), last.get("held_out", {})
    scores = (
        HeldOutScores(**{f.name: scored[f.name] for f in fields(HeldOutScores)}) if scored else None
    )
    diagnosis = []
    if scores and finished:
        diagnosis = [*diagnose_masked_tokens(scores, recipe, step), *diagnose_pairs(scores)]
    for line in diagnosis:
        progress.say(line)
    return Outcome(
        steps=step,
        finished=finished,
        stopped_by=None if finished else stop.signal,
        seconds=clock.seconds,
        mlm_loss=trained.get("mlm_loss"),
        nsp_loss=trained.get("nsp_loss"),
        **session_speed.rates(),
        device=device_name(device),
        held_out=scores,
        diagnosis=tuple(diagnosis),
    )


def _say_transferred(
    transferred: Transferred, vocab_size: int, source: LoadedModel, progress: RunProgress
) -> None:
    new = source.new_parts
    found = f"all found; drawn anew: {', '.join(new)}" if new else "all found"
    progress.say(f"weights from {source.folder}: {found}")
    if fresh := vocab_size - transferred.known_tokens:
        progress.say(
            f"another vocabulary: {transferred.known_tokens:,} of {vocab_size:,} rows are the "
            f"model's, {fresh:,} drawn anew"
        )


def _not_finite(what: str, step: int, run: RunFolder) -> RunError:
    return RunError(
        run.path,
        f"{what} is not finite at step {step}",
        "its last checkpoint is whole; start a new run with a lower optimizer.lr, more "
        "schedule.warmup_steps, or a lower optimizer.clip_norm (0 clips nothing)",
    )


def _progress_of(
    step: int, end_step: int | None, clock: Clock, limits: Limits
) -> tuple[float, float]:
    """Share of the run that is done, and seconds left."""
    if limits.budget_seconds is not None:
        left = max(0.0, limits.budget_seconds - clock.seconds)
        return clock.seconds / limits.budget_seconds, left
    assert end_step is not None
    return step / end_step, (end_step - step) * clock.seconds / step
