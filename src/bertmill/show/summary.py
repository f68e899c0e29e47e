"""A run's summary: one record, which the command line, the model card and ``loss.png`` show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertmill.config import Recipe
from bertmill.train.metrics import Metrics
from bertmill.train.run_folder import Facts, RunFolder
from bertmill.train.session import Outcome
from bertmill.train.validate import HeldOutScores


@dataclass(frozen=True)
class RunSummary:
    """What there is to know of a run, read from its folder."""

    folder: Path
    recipe: Recipe
    facts: Facts
    metrics: Metrics
    """The curves: training, and held-out."""
    diagnosis: tuple[str, ...]
    """What the finished run was found not to have learned."""


def summarize(run: RunFolder) -> RunSummary:
    """Read a run's folder.

    Raises
    ------
    RunError
        Not a run, or a damaged one.
    """
    recipe, facts = run.read()
    return RunSummary(run.path, recipe, facts, run.metrics(), run.diagnosis())


def lengths_of(recipe: Recipe) -> str:
    """Name the longest sequence of each phase.

    Examples
    --------
    >>> from bertmill.config import load_recipe
    >>> lengths_of(load_recipe("base"))
    '128, from step 900,000 on 512'
    """
    first, *later = (f"{pairs.max_length:,}" for pairs in recipe.phase_pairs())
    rest = zip(recipe.phase_starts()[1:], later, strict=True)
    return first + "".join(f", from step {step:,} on {length}" for step, length in rest)


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
