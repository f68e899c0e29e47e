"""The diagnosis of a run: in three lines at most, what it has not learned and the likely causes."""

from __future__ import annotations

from bertmill.config import ModelSection, Recipe
from bertmill.train.validate import HeldOutScores

_NEAR = 0.1
"""Nats from the no-context level that count as being on it."""
_GAP = 0.5
"""Nats between training and held-out text that count as learning by heart."""
_FEW_MASKS, _FEW_PAIRS = 200, 50
"""Of fewer answers the mean loss is known to no more than about 0.2 and 0.05 nats."""
_NUM_CAUSES = 3


def diagnose(
    scores: HeldOutScores,
    recipe: Recipe,
    num_steps: int,
    train_loss: float | None = None,
    *,
    is_given: bool = False,
) -> list[str]:
    """Say what a finished run has not learned.

    Parameters
    ----------
    scores : HeldOutScores
    recipe : Recipe
    num_steps : int
        Updates made.
    train_loss : float or None
        Loss of masked tokens over the last log interval.
    is_given : bool
        The network is that of a pretrained model.

    Returns
    -------
    list of str
        Three lines at most; none where all is well, or ``train.diagnosis`` is false.
    """
    if not recipe.train.diagnosis:
        return []
    masks, pairs, same = scores.num_predictions, scores.num_pairs, one_label(recipe)
    few = [f"{masks:,} masks"] if masks < _FEW_MASKS else []
    few += [f"{pairs:,} pairs"] if 0 < pairs < _FEW_PAIRS and not same else []
    if few:
        found = f"{' and '.join(few)} of held-out text are too few to judge"
        few = [f"{found}: give more such text, or raise text.held_out_fraction"]
    of_masks = _diagnose_gap(scores, train_loss)
    of_masks = of_masks or diagnose_masked_tokens(scores, recipe, num_steps, is_given=is_given)
    return [*of_masks, *(same or diagnose_pairs(scores)), *few]


def diagnose_masked_tokens(
    scores: HeldOutScores, recipe: Recipe, num_steps: int, *, is_given: bool = False
) -> list[str]:
    """Say whether the encoder has learned any context, and if not, why that may be.

    Returns
    -------
    list of str
        Two lines, or none where the held-out loss is below the no-context level.
    """
    loss, unigram, level = scores.mlm_loss, scores.unigram_nats, scores.no_context_nats
    is_known = recipe.train.diagnosis and scores.num_predictions >= _FEW_MASKS
    if not is_known or unigram is None or level is None or loss <= level - _NEAR:
        return []
    if loss > unigram:
        found = f"above that of word frequencies alone ({unigram:.3f}): not even these are learned"
    else:
        found = (
            f"not {_NEAR} below the no-context level ({level:.3f}): word frequencies are learned, "
            "what the neighbors of a token say about it is not"
        )
    causes = _causes(recipe, num_steps, is_given)[:_NUM_CAUSES]
    return [
        f"the held-out MLM loss {loss:.3f} is {found}",
        f"likely causes: {'; '.join(causes)}",
    ]


def diagnose_pairs(scores: HeldOutScores) -> list[str]:
    """Say whether next sentence prediction, at the end, is better than counting shared words."""
    loss, level, share = scores.nsp_loss, scores.nsp_overlap_nats, scores.nsp_overlap_accuracy
    if loss is None or level is None or loss < level or scores.num_pairs < _FEW_PAIRS:
        return []
    return [
        f"the held-out NSP loss {loss:.3f} is no better than that of shared words alone "
        f"({level:.3f}, {share:.1%} of pairs right); it falls after MLM does: make more steps, "
        "raise train.nsp_weight, or leave it out (pairs.kind=none)"
    ]


def one_label(recipe: Recipe) -> list[str]:
    """Say where next sentence prediction has nothing to learn, because its answer is known."""
    share = recipe.pairs.next_fraction
    if recipe.pairs.kind == "none" or 0 < share < 1:
        return []
    return [
        f"with pairs.next_fraction={share:g} all, or almost all, next-sentence labels are the same "
        "and teach nothing: BERT's share is 0.5; pairs.kind=none leaves them out"
    ]


def _diagnose_gap(scores: HeldOutScores, train_loss: float | None) -> list[str]:
    """Say where the training text is learned by heart."""
    loss = scores.mlm_loss
    if train_loss is None or loss - train_loss < _GAP or scores.num_predictions < _FEW_MASKS:
        return []
    return [
        f"the MLM loss of the training text, {train_loss:.3f}, is far below that of held-out text, "
        f"{loss:.3f}: it is learned by heart (overfitting); give more text or fewer steps"
    ]


def _causes(recipe: Recipe, num_steps: int, is_given: bool) -> list[str]:
    """List what is most likely wrong, the likeliest first, and the knob that changes each."""
    schedule, model = recipe.schedule, recipe.model
    causes = [f"too few steps, {num_steps:,} so far (train.steps or train.budget_seconds)"]
    if not schedule.warmup_fraction and 4 * schedule.warmup_steps > num_steps:
        long = f"a warm-up of {schedule.warmup_steps:,} steps, long for that"
        causes.insert(0, f"{long} (schedule.warmup_steps)")
    is_published = isinstance(model, ModelSection) and (
        model.position_embedding == "absolute" or model.init == "normal"
    )
    if is_published and not is_given:
        causes.append(
            "an initialization that leaves this level late (model.init=fan-in with "
            "model.position_embedding=rotary and model.norm=pre leaves it sooner)"
        )
    causes.append(
        f"a learning rate of {recipe.optimizer.lr:g} that is too low, or too high if the loss "
        "jumps (optimizer.lr)"
    )
    if schedule.warmup_steps == 0:
        causes.append("no warm-up (schedule.warmup_steps)")
    return [*causes, f"a batch of {recipe.train.batch_size:,} sequences (train.batch_size)"]
