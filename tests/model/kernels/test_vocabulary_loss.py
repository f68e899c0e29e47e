import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bertmill.config import ModelSection
from bertmill.data.batch import Batch
from bertmill.model.kernels import vocabulary_loss
from bertmill.model.kernels.vocabulary_loss import fast, plain
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.device import to_device


def draw(num_rows, vocab_size=50, width=8, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(num_rows)
    shapes = ((num_rows, width), (vocab_size, width), (vocab_size,))
    drawn = [spread * torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    labels = torch.randint(vocab_size, (num_rows,), generator=generator)
    return [x.requires_grad_() for x in drawn], labels


def all_at_once(hidden, weight, bias, labels):
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")


@pytest.fixture(params=[True, False], ids=["as on a CPU", "as on a GPU"])
def is_read_free(request, monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "_can_read_without_waiting", lambda device: request.param)


@pytest.mark.parametrize("num_rows", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", [fast, plain])
def test_loss_and_gradients_are_those_of_all_logits_at_once(num_rows, dtype, form, is_read_free):
    (ours, labels), (theirs, _) = draw(num_rows, dtype=dtype), draw(num_rows, dtype=dtype)
    loss, wanted = form(*ours, labels), all_at_once(*theirs, labels)
    torch.testing.assert_close(loss, wanted)
    (loss / 7).backward()
    (wanted / 7).backward()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_an_answer_of_no_probability_has_a_finite_loss(is_read_free):
    (hidden, weight, bias), labels = draw(40, dtype=torch.float32, spread=30.0)
    loss = fast(hidden, weight, bias, labels)
    wanted = all_at_once(hidden, weight, bias, labels)
    assert (F.linear(hidden, weight, bias).softmax(1).gather(1, labels[:, None]) == 0).any()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("form", [fast, plain])
def test_under_autocast_the_products_have_16_bits_and_nothing_else(form):
    (hidden, weight, bias), labels = draw(300, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = form(hidden, weight, bias, labels)
    loss.backward()
    (h, w, b), _ = draw(300, dtype=torch.float32)
    wanted = all_at_once(h, w, b, labels)
    wanted.backward()
    assert loss.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=0)
    assert loss != wanted
    for got, right in ((hidden.grad, h.grad), (weight.grad, w.grad), (bias.grad, b.grad)):
        assert (got - right).norm() < 0.01 * right.norm()


class LargestTensor(TorchDispatchMode):
    """Remember the largest tensor that any operation makes."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(out) if torch.is_tensor(x)]
        self.num_elements = max(self.num_elements, *(n // 4 for n in sizes), 0)
        return out


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_step_never_holds_all_logits(is_tied):
    vocab_size, num_predictions = 3000, 1200
    section = ModelSection(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=is_tied,
    )
    model = PretrainingModel(section, vocab_size)
    initialize(model, section, torch.Generator().manual_seed(1))
    ids = np.arange(2000)
    batch = Batch(
        token_ids=ids,
        segment_ids=np.zeros_like(ids),
        position_ids=ids % 20,
        sequence_starts=np.arange(0, 2001, 20),
        masked_at=ids[:num_predictions],
        masked_labels=ids[:num_predictions],
        next_sentence_labels=np.ones(100, np.int64),
    )
    batch = to_device(batch, torch.device("cpu"))
    with LargestTensor() as seen:
        sums = model(batch)
        (sums.mlm + sums.nsp).backward()
    assert vocab_size * 256 <= seen.num_elements < vocab_size * num_predictions / 4
