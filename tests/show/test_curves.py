"""The picture of a run's losses."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from bertmill.show.curves import draw_curves
from bertmill.show.summary import summarize
from bertmill.train.run_folder import RunFolder


@pytest.mark.parametrize("left_out", [[], ["held_out"], ["held_out", "nsp_loss"]])
def test_a_panel_for_each_loss(small_run, tmp_path, real_runs, left_out):
    run = RunFolder(shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True))
    summary = summarize(run)
    if "held_out" in left_out:
        summary = replace(summary, held_out=())
    if "nsp_loss" in left_out:
        train = tuple(record.model_copy(update={"nsp_loss": None}) for record in summary.train)
        summary = replace(summary, train=train)
    picture = imread(draw_curves(summary))
    assert picture.shape[:2] == (480, 1200)
    # Something is drawn in the left half, and in the right half, whether in two panels or one.
    assert all(half.std() > 0.01 for half in np.split(picture[..., :3], 2, axis=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert not list(run.path.glob(".loss*"))
