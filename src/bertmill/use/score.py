"""Pseudo-log-likelihood: how probable a masked language model finds a sentence.

Salazar et al. 2020, section 2: the sum over tokens of the log-probability of each, masked, given
all others. Kauf and Ivanova 2023 (PLL-word-l2r): where a word has several pieces, those after the
one that is scored are masked too, so that a rare word is not given away by its own pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from bertmill.arrays import Ints
from bertmill.data.layout import spans
from bertmill.errors import InputError
from bertmill.model.pretraining import PretrainingModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.parallel import map_by_length
from bertmill.use.sequences import device_of, make_sequences


def pseudo_log_likelihoods(
    model: PretrainingModel, tokenizer: Tokenizer, texts: Sequence[str], mask_rest_of_word: bool
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
    if too_long := sequences.num_cut:
        what = f"{too_long} of {len(texts)} have more tokens than the model takes, {longest}"
        raise InputError("texts", what, "shorten them")
    # Each distinct sequence is computed once: in another batch its last bits would differ.
    bounds = itertools.pairwise(sequences.starts.tolist())
    keys = [sequences.token_ids[start:stop].tobytes() for start, stop in bounds]
    first_row: dict[bytes, int] = {}
    same_as = np.array([first_row.setdefault(key, row) for row, key in enumerate(keys)], np.int64)
    distinct = np.flatnonzero(same_as == np.arange(len(same_as)))
    # A copy of a sequence for each of its tokens, with that token masked: of [CLS] a b [SEP] there
    # are two, [CLS] [MASK] b [SEP] and [CLS] a [MASK] [SEP].
    inner = sequences.lengths[distinct] - 2
    owners = np.repeat(distinct, inner)
    lengths, targets = sequences.lengths[owners], spans(sequences.starts[distinct] + 1, inner)
    num_masked = np.ones_like(targets)
    if mask_rest_of_word:
        # Places where a word ends: the next token begins another one.
        ends = np.flatnonzero(~tokenizer.continues_word[sequences.token_ids])
        num_masked = ends[np.searchsorted(ends, targets, "right")] - targets
    device = device_of(model)

    @torch.inference_mode()
    def surprisals(copies: Ints) -> npt.NDArray[np.float32]:
        packed = sequences.pack(owners[copies], torch.device("cpu"))
        starts = np.cumsum(lengths[copies]) - lengths[copies]
        places = starts + targets[copies] - sequences.starts[owners[copies]]
        labels = packed.token_ids[places].to(device)
        packed.token_ids[spans(places, num_masked[copies])] = tokenizer.mask_id
        hidden = model.encode(packed.to(device))
        logits = model.masked_token_logits(
            hidden.index_select(0, torch.from_numpy(places).to(device))
        )
        logits = logits[:, : tokenizer.size]  # the rest pads the vocabulary to a round number
        return F.cross_entropy(logits, labels, reduction="none").cpu().numpy()

    totals = np.zeros(len(sequences))
    for copies, nats in map_by_length(surprisals, lengths, device):
        np.add.at(totals, owners[copies], -nats.astype(np.float64))
    return totals[same_as]
