"""How much arithmetic a training step needs, by formula: nothing is run to count it."""

from __future__ import annotations

from collections.abc import Sequence

from bertmill.config import ModelSection


def count_step_flops(
    section: ModelSection,
    vocab_size: int,
    lengths: Sequence[int],
    num_predictions: int,
    num_pairs: int,
) -> int:
    """Count the floating point operations of all matrix products of a training step.

    A product of [m, k] and [k, n] is 2 m k n operations, and its backward pass, two products of
    that size, twice as many. What each token needs besides (norms, activations, embedding rows) is
    not counted, and neither is padding, because none is computed.

    Parameters
    ----------
    section : ModelSection
    vocab_size : int
    lengths : sequence of int
        Tokens in each sequence.
    num_predictions : int
        Masked tokens to be told.
    num_pairs : int
        Sequences whose next-sentence label is to be told: all of them, or 0.
    """
    width, inner = section.hidden_size, section.intermediate_size
    # Query, key, value and output of the attention, and both maps of the feed-forward.
    per_token = 4 * width * width + 2 * width * inner
    # Every token is scored against every token of its sequence, and mixes them by that.
    attention = 2 * width * sum(length * length for length in lengths)
    blocks = section.num_hidden_layers * (sum(lengths) * per_token + attention)
    masked_tokens = num_predictions * (width * width + width * vocab_size)
    next_sentence = num_pairs * (width * width + 2 * width)
    return 3 * 2 * (blocks + masked_tokens + next_sentence)
