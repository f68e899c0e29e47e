"""What the user wants of a run, and the recipe that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmill.config import Recipe, TrainSection, read_recipe, recipe_from_dict
from bertmill.errors import InputError, RunError
from bertmill.model.folder import LoadedModel, adopt_model
from bertmill.train.checkpoint import Checkpoint
from bertmill.train.run_folder import RunFolder

DEFAULT_RECIPE = "quick"
_CONTINUE_RECIPE = "continue"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user wants of a new run."""

    corpus: Sequence[str]
    held_out: Sequence[str] = ()
    recipe: str | None = None
    """A name or a file; None: `DEFAULT_RECIPE`, or ``continue`` with `init_from`."""
    settings: Sequence[str] = ()
    """``section.key=value``."""
    tokenizer: str | None = None
    init_from: str | None = None
    out: str | None = None
    workers: int | None = 1


def name_of_recipe(request: Request) -> str:
    """Return the recipe that is asked for, or the default."""
    return request.recipe or (DEFAULT_RECIPE if request.init_from is None else _CONTINUE_RECIPE)


def choose_recipe(
    request: Request, source: LoadedModel | None, from_store: bool, say: Say
) -> Recipe:
    """Read the recipe that was asked for; a pretrained model brings its network and tokenizer."""
    name = name_of_recipe(request)
    if source is None and name == _CONTINUE_RECIPE:
        raise InputError(
            f"`recipe` {name}", "has no network of its own", "give `init_from` a model"
        )
    values = read_recipe(name, request.settings)
    if source is None:
        recipe = recipe_from_dict(values, name)
    else:
        brings_tokenizer = "tokenizer" in values
        is_set = any(setting.startswith("tokenizer.") for setting in request.settings)
        takes_own = not (request.tokenizer or from_store or is_set)
        if takes_own:
            values["tokenizer"] = {"path": str(source.folder.absolute())}
        recipe = adopt_model(values, name, source)
        if takes_own and brings_tokenizer:
            say("the tokenizer is the model's own, not the recipe's, unless one is given")
        length, longer = recipe.pairs.max_length, source.about and source.about.pairs.max_length
        if longer and length < longer:
            say(
                f"the model takes {longer} tokens, and will take {length} after this run: more are "
                f"cut off (pairs.max_length={longer} keeps them)"
            )
    if request.tokenizer is not None:
        path = str(Path(request.tokenizer).absolute())
        recipe = change(recipe, {"tokenizer": {"path": path}})
    return _fit_warmup(recipe, read_recipe(name).get("train", {}), request.settings, say)


def _fit_warmup(
    recipe: Recipe, own: Mapping[str, Any], settings: Sequence[str], say: Say
) -> Recipe:
    """Shorten the warm-up in proportion where settings make the run shorter than its recipe.

    `own` is the recipe's section ``train`` before these settings.
    """
    warmup, train = recipe.schedule.warmup_steps, recipe.train
    own_steps = own.get("steps", TrainSection().steps)
    is_set = any(setting.strip().startswith("schedule.warmup_") for setting in settings)
    if is_set or not warmup or own.get("budget_seconds"):
        return recipe
    share = min(1.0, warmup / own_steps)
    if train.budget_seconds:
        length, changes = f"{share:.1%} of the budget", {"warmup_fraction": share}
    elif train.steps < own_steps:
        steps = round(share * train.steps)
        length, changes = f"{steps:,} of {train.steps:,} steps", {"warmup_steps": steps}
    else:
        return recipe
    say(
        f"warm-up: {length}, in proportion to {warmup:,} of {own_steps:,} steps in the "
        "recipe; schedule.warmup_steps=N sets it"
    )
    return change(recipe, {"schedule": changes})


def change(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> Recipe:
    """Change knobs of some sections, and check the whole again."""
    values = recipe.model_dump()
    for section, knobs in changes.items():
        values[section] |= knobs
    return recipe_from_dict(values, recipe.name)


_FREE = {"name"} | {
    f"train.{knob}"
    for knob in ("steps", "memory", "micro_batch_tokens", "recompute", "shard", "timeout_seconds")
}
"""What may be changed in the recipe of a run: its length, and how its steps are divided."""


def refuse_another_recipe(run: RunFolder, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `RunError` where the run's recipe is not what it began with."""
    # A run from before there was such a knob began with its default.
    began = _knobs(type(recipe)(name="any").model_dump()) | _knobs(checkpoint.state.recipe)
    for key, value in _knobs(recipe.model_dump()).items():
        if value != began[key] and key not in _FREE:
            raise RunError(
                run.path / "recipe.toml",
                f"{key} is {value!r}, the run began with {began[key]!r}",
                "put it back, or start a new run with `init_from`",
            )


def _knobs(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give each value of a recipe by its ``section.key``."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        knobs = value.items() if isinstance(value, Mapping) else [("", value)]
        found |= {f"{name}.{key}".rstrip("."): each for key, each in knobs}
    return found


def refuse_other_phases(recipe: Recipe, longer: Recipe, made: int) -> None:
    """Raise `InputError` where another number of steps puts steps already made in another phase."""
    for old, new in zip(recipe.phase_starts(), longer.phase_starts(), strict=True):
        if min(old, made) != min(new, made):
            raise InputError(
                f"`steps` {longer.train.steps}",
                f"moves the start of a phase from step {old:,} to {new:,}, and {made:,} are made",
                "leave `steps` out, or start a new run with `init_from`",
            )
