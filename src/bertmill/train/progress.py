"""What a person sees while a run trains: a bar on a terminal, else one line per log interval."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bertmill.data.yardsticks import Yardsticks
from bertmill.train.metrics import HeldOutRecord, Metrics, TrainRecord


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
        # Lines, in a notebook too: rich would make a page of each there.
        self._console = _PatientConsole(
            file=stream or sys.stdout, soft_wrap=True, highlight=False, force_jupyter=False
        )
        self._bar: Progress | None = None
        self._yardsticks: Yardsticks | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, *lines: str) -> None:
        """Print lines, above the bar where there is one."""
        for line in lines:
            self._console.print(line, markup=False)

    def start(self, yardsticks: Yardsticks | None, metrics: Metrics) -> None:
        """From here on show losses beside the yardsticks, after those that `metrics` has."""
        self._yardsticks = yardsticks
        self.show("first step ...", 0.0)

    def show(self, description: str, done: float | None) -> None:
        """Draw or move the bar, on a terminal; `done` is a share of the whole, where it is known.

        Examples
        --------
        >>> with RunProgress() as progress:
        ...     progress.show("half of it", 0.5)
        """
        if self._bar is None:
            if not self._console.is_terminal:
                return
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
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
        line = self.line(record, seconds_left)
        if self._bar is None:
            self.say(line)
        else:
            self.show(line, done)

    def held_out(self, record: HeldOutRecord) -> None:
        """Show a validation."""
        self.say(self.held_out_line(record))

    def line(self, record: TrainRecord, seconds_left: float) -> str:
        """Say in one line how a log interval went."""
        skipped = f"{record.skipped_steps:,} updates skipped (not finite)"
        if record.mlm_loss is None:
            losses = f"all {skipped}"
        else:
            losses = self._losses(record.mlm_loss, record.nsp_loss)
            losses += f"  {skipped}" if record.skipped_steps else ""
        return (
            f"step {record.step:>6,}  {losses}  {record.pairs_per_second:,.0f} pairs/s  "
            f"{record.tokens_per_second:,.0f} tokens/s  mfu {record.mfu:.0%}  "
            f"{timedelta(seconds=round(seconds_left))} left"
        )

    def held_out_line(self, record: HeldOutRecord) -> str:
        """Say in one line how a validation went."""
        scores = record.scores
        losses = self._losses(scores.mlm_loss, scores.nsp_loss)
        right = f"{scores.mlm_accuracy:.1%} of masks right"
        if scores.nsp_accuracy is not None:
            right += f", {scores.nsp_accuracy:.1%} of pairs"
        return f"held-out at step {record.step:,}:  {losses}  {right}"

    def _losses(self, mlm_loss: float, nsp_loss: float | None) -> str:
        text = f"mlm {mlm_loss:.3f}"
        if self._yardsticks is not None and self._yardsticks.no_context_nats is not None:
            text += f" (no context {self._yardsticks.no_context_nats:.3f})"
        if nsp_loss is not None:
            text += f"  nsp {nsp_loss:.3f}"
        return text
