"""A training step: in parts it is the step of the whole, and all of it goes through forward."""

import numpy as np
import pytest
import torch
from torch import nn

from bertmill.config import load_recipe
from bertmill.data.batch import Batch
from bertmill.data.randomness import make_key
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train import step
from bertmill.train.optimizer import make_optimizer
from bertmill.train.world import World

CPU = torch.device("cpu")
LENGTHS = [32, 19, 19, 12, 7, 7, 7, 3]
VOCAB = 61
SHAPE = [
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "train.precision=fp32",
]
PLAIN = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]


def make_batch(lengths=LENGTHS, has_pairs=True) -> Batch:
    draws = np.random.default_rng(3)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    masked_at = np.unique(np.concatenate([starts[:-1] + 1, starts[1:] - 1]))
    return Batch(
        token_ids=draws.integers(5, VOCAB, starts[-1]),
        segment_ids=np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=draws.integers(5, VOCAB, len(masked_at)),
        next_sentence_labels=draws.integers(0, 2, len(lengths) if has_pairs else 0),
    )


def make_model(recipe) -> PretrainingModel:
    model = PretrainingModel(recipe.model, VOCAB).train()
    section = recipe.model.model_copy(update={"init": "normal", "initializer_range": 0.15})
    initialize(model, section, torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def gradients(monkeypatch):
    """Take a step without the update: the loss sums, and every gradient by its name."""

    def take(recipe, parts, world=None, number=0, wrap=lambda model: model):
        model = make_model(recipe)
        found = {}

        def keep(optimizer, loss, clip_norm):
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.update({name: gradient.clone() for name, gradient in grads.items()})
            return torch.tensor(False)

        monkeypatch.setattr(step, "update", keep)
        optimizer = make_optimizer(model, recipe.optimizer)
        batch, world = step.StepInput.of(parts, CPU), world or World(CPU)
        return step.take_step(wrap(model), optimizer, batch, recipe, number, world).losses, found

    return take


def close(left, right):
    for name, values in left.items():
        torch.testing.assert_close(values, right[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["tiny", "quick"])
@pytest.mark.parametrize("has_pairs", [True, False])
@pytest.mark.parametrize("rows", [range(8), [0, 1, 3, 5], [0, 4]])
def test_in_parts_the_gradient_is_that_of_the_whole(name, has_pairs, rows, gradients):
    recipe, batch = load_recipe(name, SHAPE + PLAIN), make_batch(has_pairs=has_pairs)
    whole, gradient = gradients(recipe, [batch])
    sums, in_parts = gradients(recipe, batch.split(rows))
    torch.testing.assert_close(sums.mlm, whole.mlm)
    torch.testing.assert_close(sums.nsp, whole.nsp)
    close(gradient, in_parts)


class AsRank(World):
    """A rank whose number alone matters: the others are not there."""

    def will_reduce(self, model, is_wanted):
        pass


class ForwardOnly(nn.Module):
    """What wraps a model to reduce its gradients: it sees what goes through `forward`, no more."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.calls = [model], 0

    def forward(self, batch):
        self.calls += 1
        return self.inner[0](batch)


@pytest.mark.parametrize("name", ["tiny", "quick", "d2l"])
def test_a_step_uses_the_parameters_inside_forward_alone(name, gradients):
    """The wrapper has no encoder, head or weight that a step could reach around it."""
    recipe, batch = load_recipe(name, SHAPE + PLAIN), make_batch()
    wrappers = []

    def wrap(model):
        wrappers.append(ForwardOnly(model))
        return wrappers[-1]

    sums, gradient = gradients(recipe, batch.split([0, 2, 5]), wrap=wrap)
    assert wrappers[0].calls == 3
    assert all(values.abs().sum() > 0 for values in gradient.values())
    assert sums.mlm > 0 and sums.nsp > 0


def test_dropout_draws_are_keyed_by_step_rank_and_micro_batch(gradients, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    recipe, batch = load_recipe("tiny", SHAPE), make_batch()
    parts = batch.split([0, 2, 5])
    for rank in (0, 1):
        for number in (0, 1):
            gradients(recipe, parts, AsRank(CPU, rank), number)
    assert len(set(seeds)) == 4 * len(parts)
    # An undivided batch of one rank draws as it always did, so that old runs go on to their bits.
    assert seeds[0] == make_key(recipe.train.seed, "dropout", 0)


class Doubling(World):
    """Two equal ranks: what is added up over them is doubled."""

    def sum(self, tensor):
        return tensor.mul_(2)


def test_sums_and_counts_of_other_ranks_are_added_before_the_division(gradients):
    """A rank sees half of the rows: its own gradient is divided by the counts of all."""
    recipe, batch = load_recipe("tiny", SHAPE + PLAIN), make_batch()
    alone, gradient = gradients(recipe, [batch])
    both, own = gradients(recipe, [batch], Doubling(CPU))
    assert both.mlm == 2 * alone.mlm and both.nsp == 2 * alone.nsp
    close({name: values / 2 for name, values in gradient.items()}, own)
