"""The picture of a run's losses."""

import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from bertmill.show.curves import draw_curves
from bertmill.train.run_folder import RunFolder


@pytest.mark.parametrize("left_out", [[], ["held_out"], ["held_out", "nsp_loss"]])
def test_a_panel_for_each_loss(small_run, tmp_path, real_runs, left_out):
    run = RunFolder(shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True))
    records = [record for record in run.metrics() if record["split"] not in left_out]
    if "nsp_loss" in left_out:
        records = [record | {"nsp_loss": None} for record in records]
    run.metrics = lambda: records
    picture = imread(draw_curves(run))
    assert picture.shape[:2] == (480, 1200)
    # Something is drawn in the left half, and in the right half, whether in two panels or one.
    assert all(half.std() > 0.01 for half in np.split(picture[..., :3], 2, axis=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert not list(run.path.glob(".loss*"))
