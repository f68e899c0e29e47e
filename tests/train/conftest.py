"""What tests of training share."""

import pytest
import torch

from bertmill.train.device import open_device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        told = request.node.originalname.removeprefix("test_").replace("_", " ")
        pytest.skip(f"no CUDA device, so not checked there: {told}")
    return open_device(request.param)
