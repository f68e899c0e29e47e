"""The diagnosis of a run: what it has not learned, in plain words, and the likely causes."""

from __future__ import annotations

from bertmill.config import ModelSection, Recipe
from bertmill.train.validate import HeldOutScores

_NEAR = 0.1
"""Nats from the no-context level that count as being on it."""


def diagnose_masked_tokens(scores: HeldOutScores, recipe: Recipe, num_steps: int) -> list[str]:
    """Say whether the encoder has learned any context, and if not, why that may be.

    Parameters
    ----------
    scores : HeldOutScores
    recipe : Recipe
    num_steps : int
        Updates made so far.

    Returns
    -------
    list of str
        A line, or none where the held-out loss is below the no-context level.
    """
    loss, unigram, level = scores.mlm_loss, scores.unigram_nats, scores.no_context_nats
    if unigram is None or level is None or loss <= level - _NEAR:
        return []
    if loss > unigram:
        found = f"above that of word frequencies alone ({unigram:.3f}): not even these are learned"
    else:
        found = (
            f"not {_NEAR} below the no-context level ({level:.3f}): word frequencies are learned, "
            "what the neighbors of a token say about it is not"
        )
    return [f"the held-out MLM loss {loss:.3f} is {found}. {_causes(recipe, num_steps)}"]


def diagnose_pairs(scores: HeldOutScores) -> list[str]:
    """Say whether next sentence prediction, at the end, is better than counting shared words."""
    loss, level, share = scores.nsp_loss, scores.nsp_overlap_nats, scores.nsp_overlap_accuracy
    if loss is None or level is None or loss < level:
        return []
    return [
        f"the held-out NSP loss {loss:.3f} is no better than that of shared words and lengths "
        f"alone ({level:.3f}, {share:.1%} of pairs right): the segments are not compared yet. "
        "NSP falls after MLM does: make more steps (train.steps or train.budget_seconds), give it "
        "more weight (train.nsp_weight), or leave it out (pairs.kind=none)"
    ]


def _causes(recipe: Recipe, num_steps: int) -> str:
    """List what is most likely wrong, the likeliest first, and the knob that changes each."""
    warmup, model = recipe.schedule.warmup_steps, recipe.model
    causes = [
        f"too few steps, {num_steps:,} so far (train.steps or train.budget_seconds)",
        f"a learning rate of {recipe.optimizer.lr:g} that is too low, "
        "or too high if the loss jumps (optimizer.lr)",
    ]
    if 4 * warmup > num_steps:
        causes.insert(0, f"a warm-up of {warmup:,} steps, long for that (schedule.warmup_steps)")
    elif warmup == 0:
        causes.append("no warm-up (schedule.warmup_steps)")
    if isinstance(model, ModelSection) and (
        model.position_embedding == "absolute" or model.init == "normal"
    ):
        causes.append(
            "an initialization that leaves this level late (model.init=fan-in with "
            "model.position_embedding=rotary and model.norm=pre leaves it sooner)"
        )
    causes.append(
        f"a batch of {recipe.train.batch_size:,} sequences, of which the same text makes few steps "
        "(train.batch_size)"
    )
    return "Likely causes: " + "; ".join(causes)
