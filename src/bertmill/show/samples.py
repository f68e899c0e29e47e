"""Training sequences as a reader sees them, with their masks visible."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batch, Batches
from bertmill.data.store import Store
from bertmill.errors import CorpusError
from bertmill.text.tokenizer import Tokenizer


def masked_samples(
    store: Store, pairs: PairsSection, masking: MaskingSection, seed: int, count: int
) -> dict[str, Any]:
    """Draw the first training sequences of a run; none where the store cannot give such pairs.

    Returns
    -------
    dict
        ``seen_fraction``: share of the training tokens that an epoch sees; None without sequences.
        ``pairs``: of each sequence ``is_next``, whether the second segment follows the first (None
        without pairs), and ``text``: ``[MASK](senate)`` hides "senate", ``dog(senate)`` shows a
        random token, ``senate(=)`` is shown but predicted.
    """
    nothing: dict[str, Any] = {"seen_fraction": None, "pairs": []}
    if count < 1:
        return nothing
    tokenizer = store.tokenizer
    try:
        batches = Batches(store.train, tokenizer, pairs, masking, 1, seed, "the corpus")
    except CorpusError:
        return nothing
    samples = []
    for i in range(min(count, batches.num_examples)):
        batch = batches.batch_of(np.array([i]))
        labels = batch.next_sentence_labels
        is_next = bool(labels[0]) if len(labels) else None
        samples.append({"is_next": is_next, "text": _with_masks_visible(batch, tokenizer)})
    return {"seen_fraction": batches.seen_fraction(), "pairs": samples}


def _with_masks_visible(batch: Batch, tokenizer: Tokenizer) -> str:
    names = tokenizer.tokens(batch.token_ids)
    for at, label in zip(batch.masked_at.tolist(), batch.masked_labels.tolist(), strict=True):
        true = "=" if batch.token_ids[at] == label else tokenizer.tokens([label])[0]
        names[at] += f"({true})"
    return " ".join(names)
