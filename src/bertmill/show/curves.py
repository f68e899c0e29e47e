"""The picture of a run: both losses over the steps, and the levels that they mean something by."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bertmill.train.metrics import HeldOutRecord, TrainRecord
from bertmill.train.run_folder import RunFolder

_TRAIN, _HELD_OUT, _LEVEL = "#9db4c8", "#0b3c5d", "#c0392b"


class CurvesFile:
    """Keep a run's ``loss.png`` up to date, in at most a hundredth of its time.

    Parameters
    ----------
    say : callable
        Takes a line where the picture cannot be written, which is not worth a run.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._next_at = say, 0.0

    def update(self, run: RunFolder) -> None:
        """Draw the picture anew, unless that was done a moment ago."""
        if time.monotonic() >= self._next_at:
            self.draw(run)

    def draw(self, run: RunFolder) -> None:
        """Draw the picture anew, where there is something to draw."""
        started = time.monotonic()
        if not any(run.metrics()):
            return
        try:
            draw_curves(run)
        except OSError as error:
            self._say(f"loss.png cannot be written ({error.strerror})")
        self._next_at = time.monotonic() + 100 * (time.monotonic() - started)


def draw_curves(run: RunFolder) -> Path:
    """Draw ``loss.png`` from the run's metrics and return its path."""
    train, held_out = run.metrics()
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    has_pairs = any(record.nsp_loss is not None for record in train)
    has_pairs |= any(record.scores.nsp_loss is not None for record in held_out)
    axes = figure.subplots(1, 2 if has_pairs else 1, squeeze=False)[0]
    mlm_levels: dict[str, float | None] = {}
    if held_out:
        mlm_levels = {
            "no context": held_out[-1].scores.no_context_nats,
            "word frequencies": held_out[-1].scores.unigram_nats,
        }
    _panel(axes[0], "masked language modeling", "mlm_loss", train, held_out, mlm_levels)
    if has_pairs:
        nsp_levels: dict[str, float | None] = {}
        if held_out:
            nsp_levels = {
                "shared words": held_out[-1].scores.nsp_overlap_nats,
                "label frequencies": held_out[-1].scores.nsp_chance_nats,
            }
        _panel(axes[1], "next sentence prediction", "nsp_loss", train, held_out, nsp_levels)
    whole = run.path / ".loss.part.png"
    figure.savefig(whole)
    whole.replace(run.path / "loss.png")
    return run.path / "loss.png"


def _panel(
    axes: Axes,
    title: str,
    key: str,
    train: list[TrainRecord],
    held_out: list[HeldOutRecord],
    levels: dict[str, float | None],
) -> None:
    curves = (
        ("train", _TRAIN, "", [(record.step, getattr(record, key)) for record in train]),
        ("held-out", _HELD_OUT, "o", [(r.step, getattr(r.scores, key)) for r in held_out]),
    )
    for label, color, marker, points in curves:
        if points:
            # A loss is None where every update of the interval was skipped.
            steps, losses = np.array(points, float).T
            axes.plot(steps, losses, label=label, color=color, marker=marker, markersize=3.5)
    for (label, level), style in zip(levels.items(), ("--", ":"), strict=False):
        if level is None:
            continue
        axes.axhline(
            level, label=f"{label} {level:.2f}", color=_LEVEL, linestyle=style, linewidth=1
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
