"""The picture of a run: both losses over the steps, and the levels to compare them with."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertmill.data.yardsticks import Yardsticks
from bertmill.train.metrics import Metrics
from bertmill.train.run_folder import RunFolder
from bertmill.train.validate import LOSS_NAMES, Level, levels_of

_TRAIN, _HELD_OUT, _LEVEL = "#9db4c8", "#0b3c5d", "#c0392b"


class CurvesFile:
    """Keep a run's ``loss.png`` up to date, in at most a hundredth of its time.

    Parameters
    ----------
    say : callable
        Takes a line where the picture cannot be written; the run goes on.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._next_at = say, 0.0

    def update(self, run: RunFolder) -> None:
        """Draw the picture again, unless that was done a moment ago."""
        if time.monotonic() >= self._next_at:
            self.draw(run)

    def draw(self, run: RunFolder) -> None:
        """Draw the picture again, where there is something to draw."""
        started = time.monotonic()
        metrics, whole = run.metrics(), run.path / ".loss.part.png"
        if not metrics.loss_kinds:
            return
        try:
            whole.write_bytes(draw_losses(metrics))
            whole.replace(run.path / "loss.png")
        except OSError as error:
            self._say(f"loss.png cannot be written ({error.strerror})")
        self._next_at = time.monotonic() + 100 * (time.monotonic() - started)


def draw_losses(metrics: Metrics, title: str = "", yardsticks: Yardsticks | None = None) -> bytes:
    """Draw a panel for each loss that was recorded, as PNG.

    Parameters
    ----------
    metrics : Metrics
    title : str
        A line above.
    yardsticks : Yardsticks, optional
        Drawn until there is a validation, which has its own.
    """
    known = metrics.scores or yardsticks
    levels = levels_of(known) if known else {}
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=10)
    kinds = metrics.loss_kinds
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _panel(axes, kind, metrics, levels.get(kind, ()))
    picture = io.BytesIO()
    figure.savefig(picture)
    return picture.getvalue()


def _panel(axes: Axes, kind: str, metrics: Metrics, levels: Sequence[Level]) -> None:
    curves = (
        ("train", _TRAIN, "", metrics.train_curve(kind)),
        ("held-out", _HELD_OUT, "o", metrics.held_out_curve(kind)),
    )
    for label, color, marker, points in curves:
        if any(loss is not None for _, loss in points):
            steps, losses = np.array(points, float).T
            axes.plot(steps, losses, label=label, color=color, marker=marker, markersize=3.5)
    by_nats = sorted(levels, key=lambda level: level.nats)
    for level, style in zip(by_nats, ("--", ":"), strict=False):
        label = f"{level.name} {level.nats:.2f}"
        axes.axhline(level.nats, label=label, color=_LEVEL, linestyle=style, linewidth=1)
    axes.set_title(LOSS_NAMES[kind], fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
