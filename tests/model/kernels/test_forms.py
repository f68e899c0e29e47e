"""The plain and the fast form of every operation compute the same, alone and in a whole network."""

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import bertmill
from bertmill.config import load_recipe
from bertmill.data.batch import Batch
from bertmill.model.kernels import KERNELS, attention, dropout, linear, vocabulary_loss
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.device import to_device
from bertmill.train.run_folder import RunFolder

VOCAB, LENGTHS = 2000, [64, 64, 64, 40, 17, 17, 9]


def make_batch(share):
    draws = np.random.default_rng(3)
    starts = np.cumsum([0, *LENGTHS])
    masked_at = np.sort(draws.choice(starts[-1], int(share * starts[-1]), replace=False))
    batch = Batch(
        token_ids=draws.integers(5, VOCAB, starts[-1]),
        segment_ids=np.concatenate([np.arange(n) >= n // 2 for n in LENGTHS]).astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in LENGTHS]),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=draws.integers(5, VOCAB, len(masked_at)),
        next_sentence_labels=draws.integers(0, 2, len(LENGTHS)),
    )
    return to_device(batch, torch.device("cpu"))


def losses_and_gradient(section, kernels, batch, seed=1):
    model = PretrainingModel(section, VOCAB, kernels).train()
    initialize(model, section, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # every weight must show in the losses
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter += std * torch.randn(parameter.shape, generator=generator)
    torch.manual_seed(seed)
    sums = model(batch)
    means = torch.stack([sums.mlm / len(batch.masked_labels), sums.nsp / len(LENGTHS)])
    means.sum().backward()
    return means.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def section_of(name, dropout=0.0, **changes):
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return load_recipe(name).model.model_copy(update=off | changes)


def check(one, two):
    (losses, gradient), (other_losses, other_gradient) = one, two
    torch.testing.assert_close(losses, other_losses, rtol=0, atol=1e-6)
    assert (gradient - other_gradient).norm() < 1e-5 * other_gradient.norm()
    assert not torch.equal(gradient, other_gradient)  # or one form was compared with itself


@pytest.mark.parametrize("share", [0.15, 0.8])
@pytest.mark.parametrize("name", ["quick", "tiny", "d2l", "mini"])
def test_losses_and_gradients_of_both_are_equal(name, share, monkeypatch):
    monkeypatch.setattr(linear, "_LARGE_FLOPS", 0)  # oneDNN makes every product
    section, batch = section_of(name), make_batch(share)
    check(*(losses_and_gradient(section, kernels, batch) for kernels in KERNELS.values()))


@pytest.mark.parametrize("name", ["quick", "tiny"])
def test_with_dropout_too_where_both_draw_the_same(name, monkeypatch):
    monkeypatch.setattr(linear, "_LARGE_FLOPS", 0)
    section, batch, fast, plain = section_of(name, 0.1), make_batch(0.8), *KERNELS.values()
    mixed = replace(fast, linear=plain.linear, vocabulary_loss=plain.vocabulary_loss)
    check(*(losses_and_gradient(section, kernels, batch) for kernels in (fast, mixed)))


def test_each_operation_has_both_forms():
    for field in fields(KERNELS["auto"]):
        fast, plain = (getattr(KERNELS[name], field.name) for name in ("auto", "plain"))
        assert (fast.__module__, fast.__name__, plain.__name__) == (
            plain.__module__,
            "fast",
            "plain",
        )


# --- a run ---------------------------------------------------------------------------------------

SETTINGS = [
    "tokenizer.vocab_size=200",
    "pairs.max_length=32",
    "train.batch_size=8",
    "train.log_every_steps=1",
    "train.validate_every_steps=4",
    "schedule.warmup_steps=4",
]


def train(corpus, out, *settings):
    run = bertmill.pretrain(str(corpus), "quick", out=out, steps=4, settings=[*SETTINGS, *settings])
    train, held_out = RunFolder(run.folder).metrics()
    return [
        getattr(record, name)
        for record in [*train, *(each.scores for each in held_out)]
        for name in ("mlm_loss", "nsp_loss")
    ]


def test_a_run_can_be_asked_for_the_plain_forms_alone(corpus_file, tmp_path, monkeypatch):
    wanted = train(corpus_file, tmp_path / "auto")

    def refuse(*args, **kwargs):
        raise AssertionError("a fast form was used")

    monkeypatch.setattr(attention, "in_training", refuse)
    monkeypatch.setattr(attention, "by_length", refuse)
    monkeypatch.setattr(dropout, "draw_scales", refuse)
    monkeypatch.setattr(linear, "multiply", refuse)
    monkeypatch.setattr(vocabulary_loss._VocabularyLoss, "apply", refuse)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_fused_adam", refuse)
    got = train(corpus_file, tmp_path / "plain", "train.kernels=plain")
    assert len(got) == 10
    assert got == pytest.approx(wanted, rel=1e-5)
    assert got[:2] == pytest.approx(wanted[:2], rel=1e-6)
    train(corpus_file, tmp_path / "more", "train.kernels=plain", "model.hidden_dropout_prob=0.1")


# --- another torch -------------------------------------------------------------------------------

HIDE = """
import torch

class Without:
    def __init__(self, namespace, *names):
        self._namespace, self._names = namespace, names
    def __getattr__(self, name):
        if name in self._names:
            raise AttributeError(name)
        return getattr(self._namespace, name)

torch.ops.mkldnn = Without(torch.ops.mkldnn, "_linear_pointwise")
torch.ops.aten = Without(torch.ops.aten, "_softmax_backward_data")
"""
TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from test_forms import KERNELS, linear, losses_and_gradient, make_batch, section_of

linear._LARGE_FLOPS = 0
for dropout in (0.0, 0.1):
    losses, _ = losses_and_gradient(section_of("quick", dropout), KERNELS["auto"], make_batch(0.8))
    print(*losses.tolist())
"""


def test_a_torch_without_these_operators_trains_by_the_plain_forms(request):
    """A new process, in which they are missing before bertmill is imported."""
    command = [sys.executable, "-W", "error", "-c", HIDE + TRAIN, str(request.path.parent)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    without_dropout, with_dropout = (
        [float(word) for word in line.split()] for line in shown.splitlines()
    )
    wanted, _ = losses_and_gradient(section_of("quick"), KERNELS["plain"], make_batch(0.8))
    assert without_dropout == pytest.approx(wanted.tolist(), abs=1e-6)
    assert all(np.isfinite(with_dropout))


def test_a_torch_built_without_onednn_has_none_of_its_products(monkeypatch):
    assert linear.has_onednn(torch.ones(2, 2))
    assert not linear.has_onednn(torch.ones(2, 2).double())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not linear.has_onednn(torch.ones(2, 2))
