"""What a person sees while a run trains: a bar on a terminal, else one line per log interval."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bertmill.ranks import is_first_rank

if TYPE_CHECKING:  # `prepare` shows its progress without importing torch
    from bertmill.data.yardsticks import Yardsticks
    from bertmill.train.metrics import HeldOutRecord, Metrics, TrainRecord

_MANY_DAYS = 14
_MANY_EPOCHS = 40
"""Until then text that is repeated is of some worth (Muennighoff et al. 2023, section 6)."""


_SECONDS_BETWEEN_LINES = 30


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can replace what a cell shows."""
    # A kernel has loaded IPython; IPython in a terminal has no kernel.
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _PatientConsole(Console):
    """A console whose reader may go away: the run goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunProgress:
    """Show a run's progress on a stream.

    Parameters
    ----------
    stream : file, optional
        Standard output by default. A bar is drawn where it is a terminal.

    Examples
    --------
    >>> with RunProgress() as progress:
    ...     progress.say("hello")
    hello
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._console = _PatientConsole(
            file=stream or sys.stdout,
            soft_wrap=True,
            highlight=False,
            quiet=not is_first_rank(),
            # Plain lines in a notebook, whose output says that it is a terminal: rich would make a
            # page of each.
            force_jupyter=False,
            force_terminal=False if in_notebook() else None,
        )
        self._bar: Progress | None = None
        self._said_at = time.monotonic()
        self._yardsticks: Yardsticks | None = None
        self._latest = "..."

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, *lines: str) -> None:
        """Print lines, above the bar where there is one."""
        self._said_at = time.monotonic()
        for line in lines:
            self._console.print(line, markup=False)

    def start(self, yardsticks: Yardsticks | None, metrics: Metrics) -> None:
        """From here on show losses beside the yardsticks, after those that `metrics` has."""
        self._yardsticks = yardsticks
        self.show("first step ...", 0.0)

    def step(self, step: int, done: float) -> None:
        """Move the bar, if there is one, to this step; the rest is from the last log interval."""
        if self._bar is not None:
            self.show(f"step {step:>6,}  {self._latest}", done)

    def forecast(self, seconds_left: float, num_epochs: float, *, is_by_time: bool) -> None:
        """Say what the run will take, and what is absurd about that."""
        days = seconds_left / 86_400
        left = f"{days:,.0f} days" if days > 2 else str(timedelta(seconds=round(seconds_left)))
        epochs = f"{num_epochs:.2g}" if num_epochs < 10 else f"{num_epochs:,.0f}"
        self.say(f"about {left} to the end; {epochs} epochs of this text in all")
        if days > _MANY_DAYS and not is_by_time:
            self.say(
                "that is long: give a time budget (train.budget_seconds), fewer steps "
                "(train.steps) or a smaller recipe"
            )
        if num_epochs > _MANY_EPOCHS:
            self.say(
                f"after {_MANY_EPOCHS} epochs the same text teaches almost nothing more: give more "
                "text or fewer steps"
            )

    def show(self, description: str, done: float | None) -> None:
        """Draw or move the bar, on a terminal; elsewhere say a line where none was said for long.

        `done` is a share of the whole, where it is known.

        Examples
        --------
        >>> with RunProgress() as progress:
        ...     progress.show("half of it", 0.5)
        """
        bar_width = max(1, min(20, self._console.width - 80))
        room = self._console.width - bar_width - len("  100 %")
        while len(description) > room and "  " in description:
            description = description.rpartition("  ")[0]  # the last field is the least wanted
        if self._bar is not None and (self._bar.tasks[0].total is None) != (done is None):
            self._bar.stop()  # rich cannot forget how long a bar is
            self._bar = None
        if self._bar is None:
            if not self._console.is_terminal:
                if time.monotonic() - self._said_at > _SECONDS_BETWEEN_LINES:
                    self.say(description)
                return
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width),
                TextColumn("{task.percentage:3.0f} %" if done is not None else ""),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(description, total=None if done is None else 1.0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=description, completed=done or 0.0)

    def update(self, record: TrainRecord, done: float, seconds_left: float) -> None:
        """Show a log interval.

        Parameters
        ----------
        record : TrainRecord
        done : float
            Share of the run.
        seconds_left : float
        """
        self._latest = self.line(record, seconds_left)
        self.step(record.step, done)
        if self._bar is None:
            self.say(f"step {record.step:>6,}  {self._latest}")

    def held_out(self, record: HeldOutRecord) -> None:
        """Show a validation."""
        self.say(self.held_out_line(record))

    def stopped(self, step: int, folder: Path) -> None:
        """Show that the session has ended before the run; a command says that itself."""

    def line(self, record: TrainRecord, seconds_left: float) -> str:
        """Say how a log interval went, without its step."""
        skipped = f"{record.skipped_steps:,} updates skipped (not finite)"
        if record.mlm_loss is None:
            losses = f"all {skipped}"
        else:
            losses = self._losses(record.mlm_loss, record.nsp_loss)
            losses += f"  {skipped}" if record.skipped_steps else ""
        return (
            f"{losses}  {timedelta(seconds=round(seconds_left))} left  "
            f"{record.pairs_per_second:,.0f} pairs/s  {record.tokens_per_second:,.0f} tokens/s  "
            f"mfu {record.mfu:.0%}"
        )

    def held_out_line(self, record: HeldOutRecord) -> str:
        """Say how a validation went."""
        scores = record.scores
        losses = self._losses(scores.mlm_loss, scores.nsp_loss)
        right = f"{scores.mlm_accuracy:.1%} of masks right"
        if scores.nsp_accuracy is not None and not self._has_one_label:
            right += f", {scores.nsp_accuracy:.1%} of pairs"
        return f"held-out at step {record.step:,}:  {losses}  {right}"

    @property
    def _has_one_label(self) -> bool:
        return self._yardsticks is not None and self._yardsticks.nsp_chance_nats == 0

    def _losses(self, mlm_loss: float, nsp_loss: float | None) -> str:
        text = f"mlm {mlm_loss:.3f}"
        if self._yardsticks is not None and self._yardsticks.no_context_nats is not None:
            text += f" (no context {self._yardsticks.no_context_nats:.3f})"
        if nsp_loss is not None and not self._has_one_label:
            text += f"  nsp {nsp_loss:.3f}"
        return text
