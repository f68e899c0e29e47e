"""The picture of a run: both losses over the steps, and the levels that they mean something by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bertmill.train.run_folder import RunFolder

_TRAIN, _HELD_OUT, _LEVEL = "#9db4c8", "#0b3c5d", "#c0392b"


def draw_curves(run: RunFolder) -> Path:
    """Draw ``loss.png`` from the run's metrics and return its path."""
    metrics = run.metrics()
    train = [record for record in metrics if record["split"] == "train"]
    held_out = [record for record in metrics if record["split"] == "held_out"]
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    has_pairs = any(record["nsp_loss"] is not None for record in metrics)
    axes = figure.subplots(1, 2 if has_pairs else 1, squeeze=False)[0]
    mlm_levels = {}
    if held_out:
        mlm_levels = {
            "no context": held_out[-1]["no_context_nats"],
            "word frequencies": held_out[-1]["unigram_nats"],
        }
    _panel(axes[0], "masked language modeling", "mlm_loss", train, held_out, mlm_levels)
    if has_pairs:
        nsp_levels = {}
        if held_out:
            nsp_levels = {
                "shared words": held_out[-1]["nsp_overlap_nats"],
                "label frequencies": held_out[-1]["nsp_chance_nats"],
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
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    levels: dict[str, float],
) -> None:
    for records, label, color, marker in (
        (train, "train", _TRAIN, ""),
        (held_out, "held-out", _HELD_OUT, "o"),
    ):
        if records:
            # A loss is None where every update of the interval was skipped.
            steps, losses = [r["step"] for r in records], [r[key] for r in records]
            axes.plot(
                steps,
                np.array(losses, float),
                label=label,
                color=color,
                marker=marker,
                markersize=3.5,
            )
    for (label, level), style in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(
            level, label=f"{label} {level:.2f}", color=_LEVEL, linestyle=style, linewidth=1
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
