"""The pretraining loop."""

from __future__ import annotations

from collections.abc import Callable

from bertmill.train.device import repeatable_kernels
from bertmill.train.malloc import freed_memory_kept
from bertmill.train.metrics import Record
from bertmill.train.progress import RunProgress
from bertmill.train.run_folder import RunFolder
from bertmill.train.session import Outcome, Session
from bertmill.train.signals import stop_signals
from bertmill.train.start import Plan


def pretrain_loop(
    plan: Plan,
    progress: RunProgress,
    after_checkpoint: Callable[[RunFolder], None],
    on_metrics: Callable[[Record], object],
    stop_at: float,
) -> Outcome:
    """Train until the run's end, a limit, or a signal; save; say how it went.

    Parameters
    ----------
    plan : Plan
        Its run is created, and locked by the caller.
    progress : RunProgress
    after_checkpoint : callable
        Called with the run whenever a checkpoint is whole.
    on_metrics : callable
        Called with each record once it is kept. What it raises ends the session.
    stop_at : float
        Reading of ``time.monotonic`` at which the session saves and stops.

    Raises
    ------
    RunError
        The loss is not finite, or the run cannot be saved.
    """
    session = Session(plan, progress, after_checkpoint, on_metrics, stop_at)
    knobs = plan.recipe.train
    session.restore()
    try:
        with (
            freed_memory_kept(),
            repeatable_kernels(plan.world.device),
            stop_signals(progress.say, "then saving") as stop,
            session.prefetch() as batches,
        ):
            while not session.is_finished:
                session.take_step(batches)
                if session.is_due(knobs.log_every_steps) or session.is_finished:
                    session.log()
                if session.is_due(knobs.validate_every_steps) or session.is_finished:
                    session.validate()
                if session.is_save_due:
                    session.save()
                if session.must_stop(stop):
                    break
            return session.finish()
    except KeyboardInterrupt:
        resume = f"bertmill pretrain --resume {plan.run.path}"
        progress.say(f"stopped at once; go on from the last checkpoint with: {resume}")
        raise
