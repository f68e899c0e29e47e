import pytest
import torch
from torch import nn

from bertmill.model.kernels import linear
from bertmill.model.kernels.linear import Linear, fast


@pytest.fixture
def products(monkeypatch):
    """Take every product for a large one; list the shapes that oneDNN makes."""
    made, multiply = [], linear.multiply

    def listed(x, weight, bias=None):
        made.append((tuple(x.shape), tuple(weight.shape)))
        return multiply(x, weight, bias)

    monkeypatch.setattr(linear, "_LARGE_FLOPS", 0)
    monkeypatch.setattr(linear, "multiply", listed)
    return made


def both():
    torch.manual_seed(1)
    ours, theirs = Linear(6, 5, fast), nn.Linear(6, 5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("num_rows", [1, 4, 300])
def test_a_large_product_and_its_gradients_are_those_of_torch(products, num_rows):
    ours, theirs = both()
    x = torch.randn(num_rows, 6, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    outer = torch.randn(5, num_rows).T  # not contiguous
    got, wanted = ours(x), theirs(again)
    torch.testing.assert_close(got, wanted)
    got.backward(outer)
    wanted.backward(outer)
    torch.testing.assert_close(x.grad, again.grad)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    assert products == [((num_rows, 6), (5, 6)), ((num_rows, 5), (6, 5))]


def test_everything_else_is_left_to_torch(products, monkeypatch):
    ours, theirs = both()
    x = torch.randn(4, 6)
    assert torch.equal(ours(x), theirs(x))  # no gradient is asked for
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x.clone().requires_grad_()).dtype == torch.bfloat16
    ours.double()(x.double().requires_grad_())
    ours.float()(x[None].clone().requires_grad_())
    monkeypatch.setattr(linear, "_LARGE_FLOPS", 2 * 4 * 6 * 5 + 1)
    ours(x.clone().requires_grad_())
    assert not products
