"""Held-out losses of any model folder, on text that is read and masked as its training text was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bertmill.config import Recipe, TokenizerSection, apply_settings
from bertmill.data.documents import Show
from bertmill.data.overlap import NUM_WEIGHTS, OverlapRule
from bertmill.data.prepare import open_or_prepare
from bertmill.data.yardsticks import TrainingStatistics
from bertmill.errors import InputError, ModelError
from bertmill.model.folder import LoadedModel, adopt_model
from bertmill.model.pretraining import PretrainingModel
from bertmill.train.validate import HeldOut, HeldOutScores
from bertmill.train.world import World
from bertmill.use.pretrained import refuse_without_masked_token_head
from bertmill.use.sequences import device_of


def open_held_out(
    loaded: LoadedModel,
    sources: Sequence[str],
    settings: Sequence[str],
    say: Callable[[str], None],
    workers: int | None = 1,
    show: Show = lambda line, done: None,
) -> HeldOut:
    """Read text for a model: all its pairs, with masks that are the same for every model.

    The text is cut into pairs and masked as the folder's ``bertmill.json`` says. Without that file
    the defaults of the recipe apply, and there are no yardsticks from the training text.

    Parameters
    ----------
    loaded : LoadedModel
    sources : sequence of str
        As a corpus.
    settings : sequence of str
        Changes to the sections ``text``, ``pairs`` and ``masking``.
    say : callable
        Takes a line for each stage.
    workers : int, optional
        Processes that prepare the text, as in `prepare`.
    show : callable
        Takes a line about preparing, a few times a second, and the share that is done.

    Raises
    ------
    ModelError
        The folder lacks the masked-token head.
    BertmillError
        The text cannot be read or gives no pairs; a setting is wrong.
    """
    refuse_without_masked_token_head(loaded)
    recipe, statistics = _how_to_read(loaded, settings), training_statistics(loaded)
    if loaded.about is None:
        pairs, masking = recipe.pairs, recipe.masking
        say(
            f"{loaded.folder} does not say how it was trained; using sentences by "
            f"{recipe.text.sentences}, pairs of {pairs.kind} up to {pairs.max_length} tokens, "
            f"{masking.mask_fraction:.0%} of them masked"
        )
    tokenizer = TokenizerSection(path=str(loaded.folder))
    store = open_or_prepare(sources, recipe.text, tokenizer, (), workers, say, show)
    if not has_next_sentence_head(loaded):
        say(f"{loaded.folder} has no next-sentence head: no NSP loss")
    name = ", ".join(sources)
    return HeldOut(store.train, loaded.tokenizer, recipe, statistics, None, name)


def score_held_out(
    loaded: LoadedModel, held_out: HeldOut, model: PretrainingModel
) -> HeldOutScores:
    """Score `model` with the heads of `loaded`; one that is untrained gives no NSP loss."""
    scores = held_out.score(model, World(device_of(model)))
    if has_next_sentence_head(loaded):
        return scores
    return dataclasses.replace(scores, nsp_loss=None, nsp_accuracy=None)


def has_next_sentence_head(loaded: LoadedModel) -> bool:
    """Whether the folder has both the pooler and the next-sentence head."""
    return not {"pooler", "next_sentence_head"} & set(loaded.new_parts)


def training_statistics(loaded: LoadedModel) -> TrainingStatistics | None:
    """Read the statistics of the training text, where the folder has them."""
    about = loaded.about
    if about is None:
        return None
    weights = about.overlap_weights
    if weights is not None and len(weights) != NUM_WEIGHTS:
        raise ModelError(
            loaded.folder / "bertmill.json",
            f"has {len(weights)} overlap_weights, not {NUM_WEIGHTS}",
            "fetch the folder again, or delete this file",
        )
    overlap = None if weights is None else OverlapRule(weights)
    return TrainingStatistics(np.array(about.token_counts, np.int64), overlap)


def _how_to_read(loaded: LoadedModel, settings: Sequence[str]) -> Recipe:
    """Combine what the folder says and the settings into a recipe; all of the text is scored."""
    for setting in settings:
        section, _, key = setting.partition("=")[0].partition(".")
        if section not in ("text", "pairs", "masking") or key == "held_out_fraction":
            raise InputError(
                f"`settings` {setting}",
                "does not change how text is read, cut into pairs or masked",
                "set a knob of the sections text, pairs or masking",
            )
    about = loaded.about
    values = {"name": "evaluate", "text": about.text.model_dump() if about else {}}
    apply_settings(values, [*settings, "text.held_out_fraction=0.0"])
    return adopt_model(values, "evaluate", loaded)
