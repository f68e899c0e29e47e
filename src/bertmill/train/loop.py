"""The pretraining loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertmill.config import Recipe
from bertmill.train.device import repeatable_kernels
from bertmill.train.malloc import freed_memory_kept
from bertmill.train.progress import RunProgress
from bertmill.train.run_folder import RunFolder
from bertmill.train.session import Outcome, Session
from bertmill.train.signals import stop_signals
from bertmill.train.start import Plan


@dataclass(frozen=True)
class Run:
    """A pretraining run, and how its last session went."""

    folder: Path
    recipe: Recipe
    vocab_size: int
    train_documents: int
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``pretrain --json`` prints them."""
        return {
            "run": str(self.folder),
            "recipe": self.recipe.name,
            "vocab_size": self.vocab_size,
            "train_documents": self.train_documents,
            **asdict(self.outcome),
        }


def pretrain_loop(
    plan: Plan, progress: RunProgress, after_checkpoint: Callable[[RunFolder], None], stop_at: float
) -> Run:
    """Train until the run's end, a limit, or a signal; save; say how it went.

    Parameters
    ----------
    plan : Plan
        Its run is created, and locked by the caller.
    progress : RunProgress
    after_checkpoint : callable
        Called with the run whenever a checkpoint is whole.
    stop_at : float
        Reading of ``time.monotonic`` at which the session saves and stops.

    Raises
    ------
    RunError
        The loss is not finite, or the run cannot be saved.
    """
    session, world, knobs = Session(plan, progress, after_checkpoint), plan.world, plan.recipe.train
    session.restore()
    with (
        freed_memory_kept(),
        repeatable_kernels(world.device),
        stop_signals() as stop,
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
            if world.agree(stop.signal is not None or time.monotonic() >= stop_at):
                break
        outcome = session.finish(stop.signal)
    store = plan.data.store
    return Run(plan.run.path, plan.recipe, store.tokenizer.size, store.train.num_documents, outcome)
