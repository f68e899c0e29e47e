"""A run's summary: one record, which the command line, the model card and ``loss.png`` show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertmill.config import Recipe
from bertmill.train.metrics import HeldOutRecord, TrainRecord
from bertmill.train.run_folder import Facts, RunFolder
from bertmill.train.session import Outcome
from bertmill.train.validate import LOSS_NAMES, HeldOutScores

Curve = list[tuple[int, float | None]]
"""Steps, and the losses there."""


@dataclass(frozen=True)
class RunSummary:
    """What there is to know of a run, read from its folder."""

    folder: Path
    recipe: Recipe
    facts: Facts
    train: tuple[TrainRecord, ...]
    """The training curve: one record per log interval."""
    held_out: tuple[HeldOutRecord, ...]
    """The held-out curve: one record per validation, yardsticks included."""
    diagnosis: tuple[str, ...]
    """What the finished run was found not to have learned."""

    @property
    def steps(self) -> int:
        """Updates that were recorded."""
        steps = [*(each.step for each in self.train), *(each.step for each in self.held_out)]
        return max(steps, default=0)

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


def summarize(run: RunFolder) -> RunSummary:
    """Read a run's folder.

    Raises
    ------
    RunError
        Not a run, or a damaged one.
    """
    recipe, facts = run.read()
    train, held_out = run.metrics()
    return RunSummary(run.path, recipe, facts, tuple(train), tuple(held_out), run.diagnosis())


def score_lines(scores: HeldOutScores) -> Iterator[str]:
    """Say how good the losses on held-out text are, one line per loss."""
    for each in scores.losses:
        levels = [
            f"{name} {nats:.3f}" + ("" if accuracy is None else f", {accuracy:.1%}")
            for name, nats, accuracy in each.levels
        ]
        shown = f" ({'; '.join(levels)})" if levels else ""
        yield (
            f"held-out: {each.kind.upper()} loss {each.loss:.3f}{shown}, {each.accuracy:.1%} of "
            f"{each.num_answers:,} {each.unit} right"
        )


def closing_lines(folder: Path, outcome: Outcome) -> Iterator[str]:
    """Say how a session of a run ended."""
    last = {"MLM": outcome.mlm_loss, "NSP": outcome.nsp_loss}
    if outcome.held_out is not None and outcome.held_out.nsp_chance_nats == 0:
        del last["NSP"]  # all labels are the same
    losses = [f"{kind} loss {loss:.3f}" for kind, loss in last.items() if loss is not None]
    if losses:
        yield ", ".join(losses)
    if outcome.pairs_per_second is not None:
        yield f"{outcome.pairs_per_second:.1f} sentence pairs/s on {outcome.device}"
    if outcome.held_out is not None:
        yield from score_lines(outcome.held_out)
    state = "finished" if outcome.finished else "saved, not finished"
    yield f"{state} at step {outcome.steps:,}: {folder}"
    if not outcome.finished:
        yield f"go on with: bertmill pretrain --resume {folder}"
