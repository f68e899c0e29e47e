"""The reference program's loss on padded rectangles, and ours on packed tokens, number by number.

The network here is written anew, plainly and padded: every position of a rectangle is computed,
attention is masked, and the loss is the weighted sum over the weights plus 1e-8, plus the mean over
pairs, as the reference has it.
"""

import math

import numpy as np
import pytest
import torch
from rectangles import pad_batch
from torch.nn import functional as F

from bertmill.config import MaskingSection, ModelSection, PairsSection
from bertmill.data.batch import Batch, Batches
from bertmill.model.pretraining import PretrainingModel
from bertmill.train.device import to_device

PAD = 0


def padded_network(p, section, tokens, segments, valid_lengths, masked_positions):
    """Logits of both heads from the model's own parameters `p`, one head's scores at a time."""

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred**2).mean(-1, keepdim=True) + section.layer_norm_eps
        return centred / spread.sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    width = tokens.shape[1]
    x = p["encoder.embeddings.word.weight"][tokens]
    x = x + p["encoder.embeddings.segment.weight"][segments]
    x = x + p["encoder.embeddings.position.weight"][torch.arange(width)]
    x = norm("encoder.embeddings.norm", x)
    hidden = torch.arange(width) >= valid_lengths[:, None]
    for i in range(section.num_hidden_layers):
        block = f"encoder.blocks.{i}"
        q, k, v = linear(f"{block}.attention.query_key_value", x).chunk(3, -1)
        size = section.hidden_size // section.num_attention_heads
        mixed = []
        for head in range(section.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(hidden[:, None], -1e6)
            mixed.append(scores.softmax(-1) @ v[..., part])
        x = norm(
            f"{block}.attention_norm",
            x + linear(f"{block}.attention.output", torch.cat(mixed, -1)),
        )
        inner = torch.relu(linear(f"{block}.feed_forward.input", x))
        x = norm(f"{block}.feed_forward_norm", x + linear(f"{block}.feed_forward.output", inner))
    at = x[torch.arange(len(tokens))[:, None], masked_positions]
    at = norm("masked_token_head.norm", torch.relu(linear("masked_token_head.dense", at)))
    mlm = at @ p["masked_token_head.decoder.weight"].T + p["masked_token_head.bias"]
    nsp = linear("next_sentence_head", torch.tanh(linear("pooler", x[:, 0])))
    return mlm, nsp


def reference_losses(p, section, padded):
    tokens, segments, valid, positions, weights, labels, is_next = map(torch.from_numpy, padded)
    mlm, nsp = padded_network(p, section, tokens, segments, valid, positions)
    each = F.cross_entropy(mlm.flatten(0, 1), labels.flatten(), reduction="none")
    weights = weights.to(each.dtype)
    mlm_loss = (each * weights.flatten()).sum() / (weights.sum() + 1e-8)
    # Row 0 of the classifier is "next", in the folders of Hugging Face and so in ours.
    return mlm_loss, F.cross_entropy(nsp, 1 - is_next)


SECTION = ModelSection(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    hidden_act="relu",
    tie_word_embeddings=False,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=64,
)


def made_by_hand() -> Batch:
    """One-token sides, odd lengths, and a row without a prediction."""
    lengths = np.array([17, 9, 5, 5])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rng = np.random.default_rng(0)
    first = np.array([3, 8, 3, 3])
    masked_at = np.array([1, 4, 9, 16, 18, 27])  # none in the last sequence
    return Batch(
        token_ids=rng.integers(5, 50, 36),
        segment_ids=np.concatenate([np.arange(n) >= f for n, f in zip(lengths, first, strict=True)])
        .astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        sequence_starts=starts,
        masked_at=masked_at,
        masked_labels=rng.integers(5, 50, len(masked_at)),
        next_sentence_labels=np.array([1, 0, 0, 1]),
    )  # fmt: skip


@pytest.fixture(params=["by hand", "sentences", "segments"])
def batch(request, small_store) -> Batch:
    if request.param == "by hand":
        return made_by_hand()
    pairs = PairsSection(kind=request.param, max_length=40)
    return Batches(
        small_store.train, small_store.tokenizer, pairs, MaskingSection(), 16, 1, "text"
    ).batch_at(0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)
def test_losses_and_gradients_are_the_references(batch, dtype, tolerance):
    vocab_size = 1 + max(batch.token_ids.max(), batch.masked_labels.max())
    model = PretrainingModel(SECTION, int(vocab_size)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)

    ours = model(to_device(batch, torch.device("cpu")))
    mlm = ours.mlm / len(batch.masked_labels)
    nsp = ours.nsp / len(batch.next_sentence_labels)
    our_gradients = torch.autograd.grad(mlm + nsp, list(model.parameters()))

    p = dict(model.named_parameters())
    theirs = reference_losses(p, SECTION, pad_batch(batch, 64, 10, PAD))
    their_gradients = torch.autograd.grad(sum(theirs), list(p.values()))

    # Dividing by the weights plus 1e-8 makes the reference's first loss a hair smaller.
    slack = 1e-8 / len(batch.masked_labels)
    assert (mlm - theirs[0]).abs().item() <= (tolerance + slack) * mlm.item()
    assert (nsp - theirs[1]).abs().item() <= tolerance * nsp.item()
    whole = math.sqrt(sum((g**2).sum().item() for g in their_gradients))
    for name, one, two in zip(p, our_gradients, their_gradients, strict=True):
        assert (one - two).norm().item() <= (tolerance + slack) * whole, name


def test_rectangles_hold_the_batch(batch):
    padded = pad_batch(batch, 64, 10, PAD)
    assert padded.tokens.shape == padded.segments.shape == (len(batch.lengths), 64)
    assert padded.masked_positions.shape == (len(batch.lengths), 10)
    for row, (start, length) in enumerate(
        zip(batch.sequence_starts[:-1], batch.lengths, strict=True)
    ):
        assert padded.valid_lengths[row] == length
        assert (padded.tokens[row, :length] == batch.token_ids[start : start + length]).all()
        assert (padded.tokens[row, length:] == PAD).all()
        count = int(padded.mask_weights[row].sum())
        inside = batch.masked_at[(batch.masked_at >= start) & (batch.masked_at < start + length)]
        assert (padded.masked_positions[row, :count] == inside - start).all()
        assert not padded.masked_labels[row, count:].any()
    assert (padded.masked_labels[padded.mask_weights > 0] == batch.masked_labels).all()


def test_rectangles_that_are_too_narrow_are_refused():
    with pytest.raises(ValueError, match="17 tokens and 4 predictions"):
        pad_batch(made_by_hand(), 16, 10, PAD)
    with pytest.raises(ValueError, match="4 predictions"):
        pad_batch(made_by_hand(), 64, 3, PAD)
