"""The pretraining loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from bertmill.config import Recipe
from bertmill.data.batch import Batches
from bertmill.data.randomness import make_key
from bertmill.data.store import Store
from bertmill.errors import RunError
from bertmill.model.encoder import initialise
from bertmill.model.heads import PretrainingModel
from bertmill.model.losses import pretraining_losses
from bertmill.train.checkpoint import Checkpoint, restore, save_checkpoint
from bertmill.train.device import device_name, open_device, synchronise, to_device
from bertmill.train.meters import Clock, Sums
from bertmill.train.optimizer import make_optimizer
from bertmill.train.progress import RunProgress
from bertmill.train.run_folder import RunFolder
from bertmill.train.schedule import BudgetSchedule, StepSchedule
from bertmill.train.signals import stop_signals
from bertmill.train.validate import HeldOut, HeldOutScores


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
    device: str
    held_out: HeldOutScores | None


@dataclass(frozen=True)
class RunData:
    """What a run reads: made before its folder, because it may refuse."""

    store: Store
    train: Batches
    held_out: HeldOut | None
    """None where the store holds nothing out."""
    device: torch.device

    @classmethod
    def open(cls, store: Store, recipe: Recipe) -> RunData:
        """Open both splits for the recipe's pairs.

        Raises
        ------
        CorpusError
            A split gives no example, or is a single document where random seconds are needed.
        """
        train = Batches(
            store.train,
            store.tokenizer,
            recipe.pairs,
            recipe.masking,
            recipe.train.batch_size,
            recipe.train.seed,
            ", ".join(store.manifest["corpus"]),
        )
        # A share of a small corpus may be empty or one document; given text must be good.
        has_held_out = store.manifest["held_out"] or store.held_out.num_documents > 1
        held_out = HeldOut(store, recipe) if has_held_out else None
        return cls(store, train, held_out, open_device(recipe.train.device))


def pretrain_loop(
    recipe: Recipe,
    data: RunData,
    run: RunFolder,
    limits: Limits,
    checkpoint: Checkpoint | None,
    progress: RunProgress,
    after_checkpoint: Callable[[RunFolder], None],
) -> Outcome:
    """Train until the run's end, a limit, or a signal; save; say how it went.

    Parameters
    ----------
    recipe : Recipe
    data : RunData
    run : RunFolder
        Created and locked.
    limits : Limits
    checkpoint : Checkpoint or None
        Where to go on from; None: start anew.
    progress : RunProgress
    after_checkpoint : callable
        Called with the run whenever a checkpoint is whole.

    Raises
    ------
    RunError
        The loss is not finite, or the run cannot be saved.
    """
    knobs, store, held_out, device = recipe.train, data.store, data.held_out, data.device
    tokenizer = store.tokenizer
    if held_out is None:
        progress.say("no held-out text: give --held-out, or raise text.held_out_fraction")
    if limits.budget_seconds is None and recipe.schedule.warmup_steps > knobs.steps:
        progress.say(
            f"the warm-up of {recipe.schedule.warmup_steps:,} steps is longer than the run: "
            "another run may lower it with --set schedule.warmup_steps=N"
        )
    length = f"{knobs.steps:,} steps" if limits.budget_seconds is None else "for the time budget"
    progress.say(
        f"training {length}, {knobs.batch_size:,} sequences a step, "
        f"{data.train.num_examples:,} in an epoch, on {device_name(device)}"
    )
    model = PretrainingModel(recipe.model, tokenizer.size)
    initialise(model, recipe.model, torch.Generator().manual_seed(make_key(knobs.seed, "weights")))
    model.to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    about = {
        "text": recipe.text.model_dump(),
        "pairs": recipe.pairs.model_dump(),
        "masking": recipe.masking.model_dump(),
        "token_counts": store.token_counts.tolist(),
    }
    schedule = (
        StepSchedule(recipe.schedule, knobs.steps)
        if limits.budget_seconds is None
        else BudgetSchedule(
            recipe.schedule, limits.budget_seconds, run.decisions(), run.record_decision
        )
    )

    step, clock = 0, Clock(0.0)
    interval, session = Sums(device), Sums(device)
    saved_at = validated_at = -1

    def save() -> None:
        nonlocal saved_at
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise _not_finite("a weight", step, run)
        state = {"step": step, "seconds": clock.seconds, "interval": interval.to_dict()}
        save_checkpoint(run, state, model, tokenizer, about, optimizer, knobs.keep_checkpoints)
        saved_at = step
        after_checkpoint(run)

    def validate() -> None:
        nonlocal validated_at
        if held_out is not None:
            record = {"step": step, "split": "held_out", **asdict(held_out.score(model, device))}
            run.log(record)
            progress.held_out(record)
        validated_at = step

    if checkpoint is None:
        run.cut(0)
        save()
    else:
        restore(checkpoint, model, optimizer)
        step, clock = checkpoint.state["step"], Clock(checkpoint.state["seconds"])
        interval.load_dict(checkpoint.state["interval"])
        run.cut(step)
        validations = [r["step"] for r in run.metrics() if r["split"] == "held_out"]
        saved_at, validated_at = step, max(validations, default=-1)
        if step == schedule.end_step:
            progress.say("the run is finished already; --steps makes it longer")

    progress.start(held_out.yardsticks if held_out else None)
    with stop_signals() as stop:
        while schedule.end_step is None or step < schedule.end_step:
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * schedule.scale(step)
            batch = to_device(data.train.batch_at(step), device)
            num_predictions, num_pairs = len(batch.masked_labels), len(batch.next_sentence_labels)

            torch.manual_seed(make_key(knobs.seed, "dropout", step))
            sums = pretraining_losses(model, batch)
            loss = sums.mlm / num_predictions + knobs.nsp_weight * sums.nsp / max(1, num_pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.optimizer.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            step += 1
            is_logged = step % knobs.log_every_steps == 0 or step == schedule.end_step
            if is_logged:
                synchronise(device)
            elapsed = time.perf_counter() - started
            for totals in (interval, session):
                totals.add(sums, batch, elapsed)
            if isinstance(schedule, BudgetSchedule):
                schedule.decide(step, clock.seconds, elapsed)

            if is_logged or step == schedule.end_step:
                record = {"step": step, "split": "train", **interval.means()}
                record |= {"lr": optimizer.param_groups[0]["lr"], "seconds": clock.seconds}
                if not math.isfinite(record["mlm_loss"] + (record["nsp_loss"] or 0.0)):
                    raise _not_finite("the loss", step, run)
                run.log(record)
                progress.update(record, *_progress_of(step, schedule.end_step, clock, limits))
                interval = Sums(device)
            if step % knobs.validate_every_steps == 0:
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
    speeds = session.means() if session.sequences else {}
    return Outcome(
        steps=step,
        finished=finished,
        stopped_by=stop.signal,
        seconds=clock.seconds,
        mlm_loss=trained.get("mlm_loss"),
        nsp_loss=trained.get("nsp_loss"),
        pairs_per_second=speeds.get("pairs_per_second"),
        tokens_per_second=speeds.get("tokens_per_second"),
        device=device_name(device),
        held_out=HeldOutScores(**{f.name: scored[f.name] for f in fields(HeldOutScores)})
        if scored
        else None,
    )


def _not_finite(what: str, step: int, run: RunFolder) -> RunError:
    return RunError(
        run.path,
        f"{what} is not finite at step {step}",
        "start a new run with a lower optimizer.lr or more schedule.warmup_steps; "
        "this one's last checkpoint is whole",
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
