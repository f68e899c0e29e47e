"""The picture of a run's losses."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from bertmill.show.curves import draw_curves
from bertmill.show.summary import summarize
from bertmill.train.run_folder import RunFolder


@pytest.mark.parametrize("has_held_out", [True, False])
@pytest.mark.parametrize("has_pairs", [True, False])
def test_a_panel_for_each_loss(has_held_out, has_pairs, small_run, tmp_path, real_runs):
    folder = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    summary = summarize(RunFolder(folder))
    if not has_held_out:
        summary = replace(summary, held_out=())
    if not has_pairs:
        summary = replace(
            summary,
            train=tuple(one.model_copy(update={"nsp_loss": None}) for one in summary.train),
            held_out=tuple(
                one._replace(scores=replace(one.scores, nsp_loss=None)) for one in summary.held_out
            ),
        )
    picture = imread(draw_curves(summary))[..., :3]
    assert picture.shape[:2] == (480, 1200)
    # Below the title, in the middle, two panels have nothing between them; one has its curve.
    columns = picture[50:400, 560:640].std(axis=(0, 2))
    assert (columns.min() < 1e-6) == has_pairs
    assert all(half.std() > 0.01 for half in np.split(picture, 2, axis=1))
    assert not list(folder.glob(".loss*"))
