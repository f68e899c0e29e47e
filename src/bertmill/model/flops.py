"""How much arithmetic a training step needs, by formula: nothing is run to count it."""

from __future__ import annotations

from collections.abc import Sequence

from bertmill.config import ModelSection


def count_step_flops(
    section: ModelSection,
    vocab_size: int,
    lengths: Sequence[int],
    num_selected: Sequence[int],
    num_predictions: int,
    num_pairs: int,
) -> int:
    """Count the floating point operations of all matrix products of a training step.

    A product of [m, k] and [k, n] is 2 m k n operations, and its backward pass, two products of
    that size, twice as many. What each token needs besides (norms, activations, embedding rows) is
    not counted; neither is padding, nor what the last block would make of tokens that no loss
    reads: neither is computed.

    Parameters
    ----------
    section : ModelSection
    vocab_size : int
    lengths : sequence of int
        Tokens in each sequence.
    num_selected : sequence of int
        Tokens of each sequence whose vectors the losses read.
    num_predictions : int
        Masked tokens to be told.
    num_pairs : int
        Sequences whose next-sentence label is to be told: all of them, or 0.
    """
    width, inner = section.hidden_size, section.intermediate_size

    def block(num_asking: Sequence[int]) -> int:
        keys_values = 2 * width * width * sum(lengths)
        # Query and output of the attention, and both maps of the feed-forward.
        per_token = 2 * width * width + 2 * width * inner
        # A token is scored against every token of its sequence, and mixes them by that.
        attention = 2 * width * sum(n * m for n, m in zip(num_asking, lengths, strict=True))
        return keys_values + per_token * sum(num_asking) + attention

    blocks = (section.num_hidden_layers - 1) * block(lengths) + block(num_selected)
    masked_tokens = num_predictions * (width * width + width * vocab_size)
    next_sentence = num_pairs * (width * width + 2 * width)
    return 3 * 2 * (blocks + masked_tokens + next_sentence)
