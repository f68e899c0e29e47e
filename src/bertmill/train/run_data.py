"""What a run reads: both splits of its store as batches, and what the yardsticks need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bertmill.config import Recipe
from bertmill.data.batch import Batches
from bertmill.data.overlap import OverlapRule
from bertmill.data.randomness import make_key
from bertmill.data.store import Store
from bertmill.data.yardsticks import TrainingStatistics
from bertmill.errors import CorpusError
from bertmill.model.folder import About
from bertmill.train.validate import HeldOut

# Training pairs that the word-overlap yardstick is fitted to, and how many are drawn at a time.
_OVERLAP_PAIRS, _OVERLAP_PAIRS_AT_ONCE = 16_384, 512


@dataclass(frozen=True)
class PhaseData:
    """What one phase of a run reads."""

    number: int
    """Of the recipe's phases, from 0."""
    first_step: int
    train: Batches
    """Of the phase's steps, counted from its first one."""
    held_out: HeldOut | None
    """None where the store holds nothing out."""
    about: About
    """The training, for whoever judges the model."""

    @property
    def lengths(self) -> str:
        """What it has, in words."""
        return f"sequences of up to {self.about.pairs.max_length:,} tokens"


@dataclass(frozen=True)
class RunData:
    """What a run reads: made before its folder, because it may refuse."""

    store: Store
    phases: tuple[PhaseData, ...]
    """Those that have steps."""
    device: torch.device

    @classmethod
    def open(cls, store: Store, recipe: Recipe, device: torch.device) -> RunData:
        """Open both splits for the pairs of each phase.

        Raises
        ------
        CorpusError
            A split gives no example, or is a single document where random seconds are needed.
        """
        starts, found = recipe.phase_starts(), []
        stops = [*starts[1:], recipe.train.steps]
        for number, (first, stop) in enumerate(zip(starts, stops, strict=True)):
            if first < stop:
                pairs = recipe.phase_pairs()[number]
                own = recipe.model_copy(update={"pairs": pairs})
                found.append(_open_phase(store, own, number, first))
        return cls(store, tuple(found), device)

    def phase_of(self, step: int) -> PhaseData:
        """Return the phase that a step, counted from 0, belongs to."""
        return [phase for phase in self.phases if phase.first_step <= max(step, 0)][-1]

    def count_epochs(self, num_steps: int) -> float:
        """Count how often a run of so many steps reads the text."""
        stops = [phase.first_step for phase in self.phases[1:]] + [num_steps]
        return sum(
            (stop - phase.first_step) * phase.train.batch_size / phase.train.num_examples
            for phase, stop in zip(self.phases, stops, strict=True)
        )


def _open_phase(store: Store, recipe: Recipe, number: int, first_step: int) -> PhaseData:
    """Open both splits for the recipe's pairs."""
    pairs, masking, knobs = recipe.pairs, recipe.masking, recipe.train
    corpus, own = (", ".join(store.manifest[name]) for name in ("corpus", "held_out"))
    # Draws of another phase are others, also where the length is the same.
    seed = make_key(knobs.seed, "phase", number) if number else knobs.seed
    train = Batches(store.train, store.tokenizer, pairs, masking, knobs.batch_size, seed, corpus)
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
    return PhaseData(number, first_step, train, held_out, about)


def _fit_overlap(train: Batches, store: Store) -> OverlapRule:
    """Fit the word-overlap yardstick to the first training pairs, some at a time."""
    num_pairs = min(_OVERLAP_PAIRS, train.num_examples)
    batches = (
        train.batch_of(np.arange(start, min(start + _OVERLAP_PAIRS_AT_ONCE, num_pairs)))
        for start in range(0, num_pairs, _OVERLAP_PAIRS_AT_ONCE)
    )
    return OverlapRule.fit(batches, store.token_counts, store.tokenizer)
