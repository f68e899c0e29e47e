"""A batch laid out in rectangles, as programs that pad take it."""

from typing import NamedTuple

import numpy as np

from bertmill.data.batch import Batch


class PaddedBatch(NamedTuple):
    """The reference program's seven tensors: rectangles, L tokens wide and K predictions wide."""

    tokens: np.ndarray
    """[B, L]."""
    segments: np.ndarray
    """[B, L]."""
    valid_lengths: np.ndarray
    """[B]."""
    masked_positions: np.ndarray
    """Places inside the sequence, [B, K]."""
    mask_weights: np.ndarray
    """1 at a prediction, 0 at a filler, [B, K], float32."""
    masked_labels: np.ndarray
    """[B, K]."""
    next_sentence_labels: np.ndarray
    """1 = the second segment follows the first, [B]. Hugging Face's label is the other way."""


def pad_batch(batch: Batch, max_length: int, max_predictions: int, pad_id: int) -> PaddedBatch:
    """Lay a batch out in rectangles.

    Parameters
    ----------
    batch : Batch
    max_length : int
        Width of the token rectangles; no sequence may be longer.
    max_predictions : int
        Width of the prediction rectangles; no sequence may have more.
    pad_id : int

    Raises
    ------
    ValueError
        A sequence does not fit.
    """
    lengths = np.diff(batch.sequence_starts)
    owner = np.searchsorted(batch.sequence_starts, batch.masked_at, "right") - 1
    predictions = np.bincount(owner, minlength=len(lengths))
    if lengths.max() > max_length or predictions.max() > max_predictions:
        raise ValueError(
            f"a sequence has {lengths.max()} tokens and {predictions.max()} predictions at most"
        )
    has_token = np.arange(max_length) < lengths[:, None]
    has_prediction = np.arange(max_predictions) < predictions[:, None]

    def lay_out(values, where, fill):
        out = np.full(where.shape, fill, np.int64)
        out[where] = values
        return out

    return PaddedBatch(
        tokens=lay_out(batch.token_ids, has_token, pad_id),
        segments=lay_out(batch.segment_ids, has_token, 0),
        valid_lengths=lengths,
        masked_positions=lay_out(batch.masked_at - batch.sequence_starts[owner], has_prediction, 0),
        mask_weights=has_prediction.astype(np.float32),
        masked_labels=lay_out(batch.masked_labels, has_prediction, 0),
        next_sentence_labels=batch.next_sentence_labels,
    )
