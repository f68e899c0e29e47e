"""Pseudo-log-likelihood: how probable a masked language model finds a sentence.

Salazar et al. 2020, section 2: the sum over tokens of the log-probability of each, masked, given
all others. Kauf and Ivanova 2023 (PLL-word-l2r): where a word has several pieces, those after the
one that is scored are masked too, so that a rare word is not given away by its own pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from bertmill.arrays import Ints
from bertmill.data.layout import spans
from bertmill.errors import InputError
from bertmill.model.packed import PackedTokens
from bertmill.model.pretraining import PretrainingModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.parallel import map_batches
from bertmill.use.sequences import Sequences, group_by_length, make_sequences


def pseudo_log_likelihoods(
    model: PretrainingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    mask_rest_of_word: bool,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Score each text, in nats; equal token sequences get equal scores, to the bit.

    Returns
    -------
    ndarray of float64, shape (len(texts),)
        0 for a text without tokens.

    Raises
    ------
    InputError
        Something is not text, or longer than the model's positions.
    """
    longest = model.section.max_position_embeddings
    sequences = make_sequences(tokenizer, texts, None, longest)
    if sequences.num_cut:
        raise InputError(
            "texts",
            f"{sequences.num_cut} of {len(texts)} have more tokens than the model takes, {longest}",
            "shorten them",
        )
    # Each distinct sequence is computed once: in another batch its last bits would differ.
    first_row: dict[bytes, int] = {}
    starts = sequences.starts.tolist()
    same_as = np.array(
        [
            first_row.setdefault(sequences.token_ids[starts[row] : starts[row + 1]].tobytes(), row)
            for row in range(len(sequences))
        ],
        np.int64,
    )
    distinct = np.flatnonzero(same_as == np.arange(len(same_as)))
    copies = _MaskedCopies(sequences, distinct, tokenizer, mask_rest_of_word)

    @torch.inference_mode()
    def surprisals(rows: Ints) -> npt.NDArray[np.float32]:
        packed, targets, labels = copies.pack(rows, device)
        logits = model.masked_token_logits(model.encode(packed).index_select(0, targets))
        logits = logits[:, : tokenizer.size]  # the rest pads the vocabulary to a round number
        return F.cross_entropy(logits, labels, reduction="none").cpu().numpy()

    totals = np.zeros(len(sequences))
    batches = group_by_length(copies.lengths)
    for rows, nats in zip(batches, map_batches(surprisals, batches, device), strict=True):
        np.add.at(totals, copies.owners[rows], -nats.astype(np.float64))
    return totals[same_as]


class _MaskedCopies:
    """A copy of a sequence for each of its tokens, with that token masked.

    [CLS] a b [SEP] has two copies, [CLS] [MASK] b [SEP] and [CLS] a [MASK] [SEP].
    """

    def __init__(
        self, sequences: Sequences, rows: Ints, tokenizer: Tokenizer, mask_rest_of_word: bool
    ) -> None:
        self._sequences, self._mask_id = sequences, tokenizer.mask_id
        inner = sequences.lengths[rows] - 2
        self.owners = np.repeat(rows, inner)
        self._targets = spans(sequences.starts[rows] + 1, inner)
        self.lengths = sequences.lengths[self.owners]
        self._num_masked = np.ones_like(self._targets)
        if mask_rest_of_word:
            # Places where a word ends: the next token begins another one.
            ends = np.flatnonzero(~tokenizer.continues_word[sequences.token_ids])
            self._num_masked = ends[np.searchsorted(ends, self._targets, "right")] - self._targets

    def pack(
        self, copies: Ints, device: torch.device
    ) -> tuple[PackedTokens, torch.Tensor, torch.Tensor]:
        """Pack these copies; return the position and the id of each one's target too, [copies]."""
        packed = self._sequences.pack(self.owners[copies], torch.device("cpu"))
        lengths = self.lengths[copies]
        starts = np.cumsum(lengths) - lengths
        targets = starts + self._targets[copies] - self._sequences.starts[self.owners[copies]]
        labels = packed.token_ids[targets]
        packed.token_ids[spans(targets, self._num_masked[copies])] = self._mask_id
        return packed.to(device), torch.from_numpy(targets).to(device), labels.to(device)
