"""What a run reads: both splits of its store as batches, and what the yardsticks need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bertmill.config import Recipe
from bertmill.data.batch import Batches
from bertmill.data.overlap import OverlapRule
from bertmill.data.store import Store
from bertmill.data.yardsticks import TrainingStatistics
from bertmill.errors import CorpusError
from bertmill.model.folder import About
from bertmill.train.validate import HeldOut

# Training pairs that the word-overlap yardstick is fitted to, and how many are drawn at a time.
_OVERLAP_PAIRS, _OVERLAP_PAIRS_AT_ONCE = 16_384, 512


@dataclass(frozen=True)
class RunData:
    """What a run reads: made before its folder, because it may refuse."""

    store: Store
    train: Batches
    held_out: HeldOut | None
    """None where the store holds nothing out."""
    about: About
    """The training, for whoever judges the model."""
    device: torch.device

    @classmethod
    def open(cls, store: Store, recipe: Recipe, device: torch.device) -> RunData:
        """Open both splits for the recipe's pairs.

        Raises
        ------
        CorpusError
            A split gives no example, or is a single document where random seconds are needed.
        """
        pairs, masking, knobs = recipe.pairs, recipe.masking, recipe.train
        corpus, own = (", ".join(store.manifest[name]) for name in ("corpus", "held_out"))
        train = Batches(
            store.train, store.tokenizer, pairs, masking, knobs.batch_size, knobs.seed, corpus
        )
        overlap = None if pairs.kind == "none" else _fit_overlap(train, store)
        held_out = None
        if own or store.held_out.num_documents:
            statistics = TrainingStatistics(store.token_counts, overlap)
            name = own or "the held-out share of the corpus"
            try:
                limit = knobs.validation_pairs
                held_out = HeldOut(store.held_out, store.tokenizer, recipe, statistics, limit, name)
            except CorpusError:
                if own:  # a share of a small corpus may be too little, given text must be good
                    raise
        about = About(
            text=recipe.text,
            pairs=pairs,
            masking=masking,
            token_counts=tuple(store.token_counts.tolist()),
            overlap_weights=overlap.weights if overlap else None,
        )
        return cls(store, train, held_out, about, device)


def _fit_overlap(train: Batches, store: Store) -> OverlapRule:
    """Fit the word-overlap yardstick to the first training pairs, some at a time."""
    num_pairs = min(_OVERLAP_PAIRS, train.num_examples)
    batches = (
        train.batch_of(np.arange(start, min(start + _OVERLAP_PAIRS_AT_ONCE, num_pairs)))
        for start in range(0, num_pairs, _OVERLAP_PAIRS_AT_ONCE)
    )
    return OverlapRule.fit(batches, store.token_counts, store.tokenizer)
