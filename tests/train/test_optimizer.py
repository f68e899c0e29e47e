"""An update, and the update that is not made."""

import copy

import pytest
import torch
from torch import nn

from bertmill.config import OptimizerSection
from bertmill.train.optimizer import make_optimizer, update

BAD = [float("nan"), float("inf"), float("-inf")]
CLIPS = [0.0, 1.0]
KERNELS = pytest.mark.parametrize("kernels", ["auto", "plain"])


class Network(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(5, 3, generator=generator))
        self.vector = nn.Parameter(torch.randn(3, generator=generator))
        self.unused = nn.Parameter(torch.randn(2, generator=generator))

    def set_gradients(self, step, scale=1.0):
        """Those of a step; `unused` has none."""
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in (self.matrix, self.vector):
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        return torch.tensor(1.5)


def make(kernels="auto", **knobs):
    network = Network()
    return network, make_optimizer(network, OptimizerSection(lr=1e-2, **knobs), kernels)


def bits(network, optimizer):
    """Everything that an update changes, bit by bit."""
    tensors = dict(network.named_parameters())
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{i}.{name}": value for name, value in state.items()}
    return {name: value.detach().numpy().tobytes() for name, value in tensors.items()}


# --- when ----------------------------------------------------------------------------------------


def spoil(network, loss, where, value):
    if where == "loss":
        return torch.tensor(value)
    name, place = where
    getattr(network, name).grad.view(-1)[place] = value
    return loss


PLACES = ["loss", ("matrix", 0), ("matrix", 14), ("vector", 2)]


@KERNELS
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("clip", CLIPS)
def test_what_is_not_finite_is_skipped_and_changes_nothing(where, value, clip, kernels):
    network, optimizer = make(kernels)
    for step in range(3):
        assert not update(optimizer, network.set_gradients(step), clip)
    before = bits(network, optimizer)
    skipped = update(optimizer, spoil(network, network.set_gradients(3), where, value), clip)
    assert skipped.dtype == torch.bool and skipped.shape == () and skipped
    assert bits(network, optimizer) == before
    assert all(p.grad is None for p in network.parameters())


@KERNELS
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("clip", CLIPS)
def test_after_a_skipped_step_all_goes_on_as_if_it_had_not_been(where, clip, kernels):
    network, optimizer = make(kernels)
    other, other_optimizer = make(kernels)
    for step in range(8):
        if step in (0, 4, 5):  # the very first too, and two in a row
            loss = spoil(network, network.set_gradients(50 + step), where, float("nan"))
            assert update(optimizer, loss, clip)
        assert not update(optimizer, network.set_gradients(step), clip)
        assert not update(other_optimizer, other.set_gradients(step), clip)
    assert bits(network, optimizer) == bits(other, other_optimizer)


def test_without_the_undocumented_protocol_the_plain_form_serves():
    network, optimizer = make()
    del optimizer._step_supports_amp_scaling
    assert not update(optimizer, network.set_gradients(0), 1.0)
    before = bits(network, optimizer)
    network.set_gradients(1)
    assert update(optimizer, torch.tensor(float("nan")), 1.0)
    assert bits(network, optimizer) == before and not hasattr(optimizer, "found_inf")


def test_both_forms_make_the_same_updates():
    (network, fast), (other, plain) = make(), make("plain")
    for step in range(5):
        update(fast, network.set_gradients(step), 1.0)
        update(plain, other.set_gradients(step), 1.0)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e15])
def test_what_is_finite_is_never_skipped(scale, clip):
    network, optimizer = make()
    before = bits(network, optimizer)
    assert not update(optimizer, network.set_gradients(0, scale), clip)
    assert bits(network, optimizer) != before
    assert all(bool(p.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("clip", CLIPS)
def test_a_norm_that_overflows_is_not_finite_either(clip):
    """Such gradients are finite, but their squares are not: Adam would never get over them."""
    network, optimizer = make()
    update(optimizer, network.set_gradients(0), clip)
    before = bits(network, optimizer)
    loss = network.set_gradients(1, 1e25)
    assert all(bool(p.grad.isfinite().all()) for p in (network.matrix, network.vector))
    assert update(optimizer, loss, clip)
    assert bits(network, optimizer) == before


def test_a_first_update_that_is_skipped_leaves_a_fresh_start():
    network, optimizer = make()
    weights = copy.deepcopy(network.state_dict())
    network.set_gradients(0)
    assert update(optimizer, torch.tensor(float("nan")), 1.0)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())


# --- what ----------------------------------------------------------------------------------------


def clone(network):
    """The same network with an AdamW of the library's own making."""
    twin = copy.deepcopy(network)
    groups = [
        {"params": [twin.matrix], "weight_decay": 0.01},
        {"params": [twin.vector, twin.unused], "weight_decay": 0.0},
    ]
    return twin, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, fused=True)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1.0, 3.0, 1e6])
def test_updates_are_the_librarys_with_its_own_clipping(clip):
    network, optimizer = make()
    twin, twin_optimizer = clone(network)
    for step in range(5):
        assert not update(optimizer, network.set_gradients(step, scale=step + 0.5), clip)
        twin.set_gradients(step, scale=step + 0.5)
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        twin_optimizer.step()
        twin_optimizer.zero_grad()
    assert bits(network, optimizer) == bits(twin, twin_optimizer)


def test_clipping_is_of_the_whole_gradient():
    """With Adam a common scale is hard to see: the first moment shows it."""
    moments = {}
    for clip in (0.0, 0.5):
        network, optimizer = make()
        update(optimizer, network.set_gradients(0, scale=10.0), clip)
        moments[clip] = [
            optimizer.state[p]["exp_avg"] / 0.1 for p in (network.matrix, network.vector)
        ]
    network.set_gradients(0, scale=10.0)
    for free, parameter in zip(moments[0.0], (network.matrix, network.vector), strict=True):
        torch.testing.assert_close(free, parameter.grad)  # 0: as they are
    clipped = torch.cat([moment.flatten() for moment in moments[0.5]])
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    free = torch.cat([moment.flatten() for moment in moments[0.0]])
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


def test_gradients_are_cleared():
    network, optimizer = make()
    update(optimizer, network.set_gradients(0), 1.0)
    assert all(p.grad is None for p in network.parameters())


def test_a_weight_without_a_gradient_stays():
    network, optimizer = make(weight_decay=0.5)
    before = network.unused.clone()
    update(optimizer, network.set_gradients(0), 1.0)
    assert torch.equal(network.unused, before)
    assert len(optimizer.state) == 2


def test_only_matrices_decay():
    network, optimizer = make(weight_decay=0.5)
    before = copy.deepcopy(network)
    update(optimizer, network.set_gradients(0, scale=0.0), 1.0)
    torch.testing.assert_close(network.matrix, before.matrix * (1 - 1e-2 * 0.5))
    assert torch.equal(network.vector, before.vector)
