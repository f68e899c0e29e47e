import pytest
import torch
from torch import nn

from bertmill.model.kernels.dropout import Dropout, fast


def seeded(x, p, seed=1):
    torch.manual_seed(seed)
    return fast(x, p)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 1e-3])
def test_the_asked_share_is_dropped_and_the_rest_scaled(p):
    dropped = seeded(torch.ones(1_000_003), p)
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-17
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)], abs=2e-5)


def test_neighbors_are_dropped_independently():
    kept = seeded(torch.ones(1_000_000), 0.5) > 0
    for distance in (1, 2, 3, 4, 8):  # four elements come from one word of random bits
        both = (kept[distance:] & kept[:-distance]).double().mean().item()
        assert abs(both - 0.25) < 0.003


def test_the_same_seed_drops_the_same_and_another_does_not():
    x = torch.randn(1000)
    assert torch.equal(seeded(x, 0.3), seeded(x, 0.3))
    assert not torch.equal(seeded(x, 0.3), seeded(x, 0.3, seed=2))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_draw_does_not_depend_on_the_threads(num_threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        zeros = (seeded(torch.ones(300_000), 0.2) == 0).nonzero()
        torch.set_num_threads(3 - num_threads)
        assert torch.equal(zeros, (seeded(torch.ones(300_000), 0.2) == 0).nonzero())
    finally:
        torch.set_num_threads(before)


def test_gradient_goes_where_the_values_go():
    x = torch.randn(7, 5, dtype=torch.float64).T.requires_grad_()  # not contiguous
    dropped = seeded(x, 0.4)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), dropped.detach())


def test_nothing_is_dropped_at_zero_or_while_evaluating():
    x = torch.randn(4, 3)
    assert fast(x, 0.0) is x
    assert Dropout(0.5, fast).eval()(x) is x
    assert isinstance(Dropout(0.5, fast), nn.Module) and not list(Dropout(0.5, fast).parameters())


@pytest.mark.parametrize("p", [0.99999, 1e-9])
def test_extreme_shares_stay_finite(p):
    assert seeded(torch.ones(100_000), p).isfinite().all()
