"""A run that is watched in a notebook: both losses as curves that grow, instead of lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bertmill.data.yardsticks import Yardsticks
from bertmill.show.curves import draw_losses
from bertmill.train.metrics import HeldOutRecord, Metrics, TrainRecord
from bertmill.train.progress import RunProgress


class NotebookProgress(RunProgress):
    """Show a run below the cell: a line at first, then one picture.

    It is drawn again and again, in at most a thirtieth of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics = Metrics([], [])
        self._handle: Any = None
        self._next_at = 0.0

    def start(self, yardsticks: Yardsticks | None, metrics: Metrics) -> None:
        """From here on draw losses, after those of the sessions before."""
        super().start(yardsticks, metrics)
        self._metrics = metrics

    def update(self, record: TrainRecord, done: float, seconds_left: float) -> None:
        """Draw a log interval; the last one always."""
        self._metrics.train.append(record)
        if time.monotonic() >= self._next_at or done >= 1.0:
            self._draw(f"step {record.step:,}  {self.line(record, seconds_left)}")

    def held_out(self, record: HeldOutRecord) -> None:
        """Draw a validation."""
        self._metrics.held_out.append(record)
        self._draw(self.held_out_line(record))

    def stopped(self, step: int, folder: Path) -> None:
        """Say where the cell has ended, and how to go on."""
        self.say(f"saved at step {step:,}; go on with bertmill.resume({str(folder)!r})")

    def show(self, description: str, done: float | None) -> None:
        """Show a line about work that goes on, until the first picture takes its place."""
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + 1.0
            share = "" if done is None else f"  {done:.0%}"
            self._display({"text/plain": f"{description}{share}"})

    def _draw(self, line: str) -> None:
        started = time.monotonic()
        picture = draw_losses(self._metrics, line, self._yardsticks)
        self._display({"image/png": picture, "text/plain": line})
        now = time.monotonic()
        self._next_at = now + 30 * (now - started)

    def _display(self, shown: dict[str, Any]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown, raw=True)
