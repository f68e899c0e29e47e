"""The picture of a run's losses."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from bertmill.show.curves import draw_losses
from bertmill.train.run_folder import RunFolder


@pytest.mark.parametrize("left_out", [[], ["held_out"], ["held_out", "nsp_loss"]])
def test_a_panel_for_each_loss(small_run, real_runs, left_out):
    metrics = RunFolder(small_run.folder).metrics()
    if "held_out" in left_out:
        metrics = metrics._replace(held_out=[])
    if "nsp_loss" in left_out:
        train = [record.model_copy(update={"nsp_loss": None}) for record in metrics.train]
        metrics = metrics._replace(train=train)
    picture = imread(io.BytesIO(draw_losses(metrics)))
    assert picture.shape[:2] == (480, 1200)
    # Something is drawn in the left half, and in the right half, whether in two panels or one.
    assert all(half.std() > 0.01 for half in np.split(picture[..., :3], 2, axis=1))
