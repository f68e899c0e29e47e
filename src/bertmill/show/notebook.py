"""A run that is watched in a notebook: both losses as curves that grow, instead of lines."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bertmill.data.yardsticks import Yardsticks
from bertmill.show.curves import draw_losses
from bertmill.train.metrics import HeldOutRecord, Metrics, TrainRecord
from bertmill.train.progress import RunProgress


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can replace what a cell shows."""
    # Without IPython loaded this is no kernel. A terminal's IPython has no kernel.
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class NotebookProgress(RunProgress):
    """Show a run as one picture below the cell, drawn again in at most a thirtieth of its time."""

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

    def _draw(self, line: str) -> None:
        from IPython.display import display

        started = time.monotonic()
        picture = {
            "image/png": draw_losses(self._metrics, line, self._yardsticks),
            "text/plain": line,
        }
        if self._handle is None:
            self._handle = display(picture, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(picture, raw=True)
        now = time.monotonic()
        self._next_at = now + 30 * (now - started)
