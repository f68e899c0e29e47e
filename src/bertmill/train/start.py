"""How a run starts: the user's wishes become one frozen `Plan`, before training starts.

`plan_run` is for a new run, `plan_resume` for one that goes on. Whatever can be refused is refused
here, most of it before an hour of preparing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bertmill.config import Recipe, TrainSection, read_recipe, recipe_from_dict
from bertmill.data.documents import Show
from bertmill.data.pairs import SEGMENTS_RULE
from bertmill.data.prepare import open_or_prepare
from bertmill.data.store import Store, is_store
from bertmill.errors import BertmillError, InputError, RunError, StoreError
from bertmill.model.folder import WEIGHTS_FILE, LoadedModel, adopt_model, load_model
from bertmill.storage import file_sha256
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.checkpoint import Checkpoint, newest_checkpoint
from bertmill.train.device import open_device
from bertmill.train.memory import divide_step
from bertmill.train.precision import choose_precision
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import Facts, FirstWeights, RunFolder
from bertmill.train.world import World

DEFAULT_RECIPE = "quick"
_CONTINUE_RECIPE = "continue"
_FEWEST_TOKENS = 8

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


@dataclass(frozen=True)
class Plan:
    """All that a session of a run needs to know before it starts."""

    run: RunFolder
    recipe: Recipe
    """Resolved: how the text was read, which tokenizer, which precision."""
    facts: Facts
    data: RunData
    world: World
    start: Checkpoint | LoadedModel | None
    """Go on from this checkpoint; begin with the weights of this model; or with fresh ones."""

    @property
    def budget_seconds(self) -> float | None:
        """Training time over all sessions; None for a run by steps."""
        return self.recipe.train.budget_seconds or self.facts.budget_seconds


def plan_run(request: Request, say: Say, show: Show = lambda line, done: None) -> Plan:
    """Plan a new run; its folder is created by the caller.

    Parameters
    ----------
    request : Request
    say : callable
        Takes one line about each stage.
    show : callable
        Takes a line about preparing, a few times a second, and the share that is done.

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    source = None if request.init_from is None else load_model(request.init_from)
    from_store = any(is_store(found) for found in request.corpus)
    recipe = _choose_recipe(request, source, from_store, say)
    world = World(open_device(recipe.train.device))
    if request.out is not None:
        RunFolder(request.out).refuse_if_taken()
    _refuse_what_cannot_fit(recipe, world)
    if from_store:
        store = _open_prepared(request, recipe)
    else:
        read, vocabulary, workers = recipe.text, recipe.tokenizer, request.workers
        store = open_or_prepare(
            request.corpus, read, vocabulary, request.held_out, workers, say, show
        )
    # From here on the recipe is what is done, not only what was asked for.
    sections = ("text", "tokenizer") if from_store else ("text",)
    recipe = _changed(recipe, {name: store.manifest[name] for name in sections})
    recipe, data = _open_data(store, recipe, world, say)
    facts = Facts(
        corpus=[_from_anywhere(name) for name in request.corpus],
        held_out=[_from_anywhere(name) for name in request.held_out],
        store=str(store.folder.resolve()),
        store_identity=store.identity,
        init_from=None if source is None else _weights_of(source),
        versions={
            "bertmill": metadata.version("bertmill"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        segments_rule=SEGMENTS_RULE,
    )
    folder = request.out if request.out is not None else world.agree(_new_folder(recipe.name))
    return Plan(RunFolder(folder), recipe, facts, data, world, source)


def plan_resume(
    run: RunFolder,
    steps: int | None,
    corpus: Sequence[str],
    held_out: Sequence[str],
    workers: int | None,
    say: Say,
    show: Show = lambda line, done: None,
) -> Plan:
    """Plan how a run goes on from its newest whole checkpoint, and write down what changes.

    Parameters
    ----------
    run : RunFolder
        Locked by the caller.
    steps : int or None
        Instead of the recipe's.
    corpus, held_out : sequence of str
        Where the text or the store is now, if it has moved.
    workers : int or None
        Processes that prepare the text, if its store is gone.
    say : callable
        Takes one line about each stage.
    show : callable
        Takes a line about preparing, a few times a second, and the share that is done.

    Raises
    ------
    BertmillError
        Anything that the caller can fix.
    """
    recipe, facts = run.read()
    checkpoint = newest_checkpoint(run, say)
    made = 0 if checkpoint is None else checkpoint.state.step
    if checkpoint is not None:
        _refuse_another_recipe(run, recipe, checkpoint)
    if steps is not None:
        if recipe.train.budget_seconds or facts.budget_seconds:
            raise InputError("`steps`", "the run has a time budget", "leave `steps` out")
        if steps < made:
            raise InputError(
                f"`steps` {steps}", f"is less than the {made} steps already made", "give more"
            )
        longer = _changed(recipe, {"train": {"steps": steps}})
        _refuse_other_phases(recipe, longer, made)
        if steps != recipe.train.steps:
            say(f"the run was to have {recipe.train.steps:,} steps, now {steps:,}")
        recipe = longer
    if recipe.pairs.kind == "segments" and facts.segments_rule != SEGMENTS_RULE:
        raise RunError(
            run.path,
            "was begun by an earlier version, which made other pairs of the same text",
            "start a new run; `init_from` takes this one's weights",
        )
    has_moved = bool(corpus or held_out)
    if has_moved:
        sources = {"corpus": corpus or facts.corpus, "held_out": held_out or facts.held_out}
        moved = {key: [_from_anywhere(name) for name in names] for key, names in sources.items()}
        facts = facts.model_copy(update={**moved, "store": ""})
    store = _store_of_the_run(facts, recipe, workers, say, show)
    if store.identity != facts.store_identity:
        raise RunError(
            run.path,
            f"the store {store.folder} is not the one that the run began with",
            "bring the old text or store back, or start a new run",
        )
    start = checkpoint or _first_weights(run, facts)
    world = World(open_device(recipe.train.device))
    recipe, data = _open_data(store, recipe, world, say, is_resumed=True)
    if has_moved:
        facts = facts.model_copy(update={"store": str(store.folder.resolve())})
        run.write_facts(facts)
    run.write_recipe(recipe)
    say(f"going on from step {made:,} of {run.path}")
    return Plan(run, recipe, facts, data, world, start)


# --- the recipe ----------------------------------------------------------------------------------


def _choose_recipe(
    request: Request, source: LoadedModel | None, from_store: bool, say: Say
) -> Recipe:
    """Read the recipe that was asked for; a pretrained model brings its network and tokenizer."""
    name = request.recipe or (DEFAULT_RECIPE if source is None else _CONTINUE_RECIPE)
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
        recipe = _changed(recipe, {"tokenizer": {"path": path}})
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
    return _changed(recipe, {"schedule": changes})


def _changed(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> Recipe:
    """Change knobs of some sections, and check the whole again."""
    values = recipe.model_dump()
    for section, knobs in changes.items():
        values[section] |= knobs
    return recipe_from_dict(values, recipe.name)


def _refuse_what_cannot_fit(recipe: Recipe, world: World) -> None:
    """Raise, before an hour of preparing, where a step is too large with any vocabulary."""
    precision = choose_precision(recipe, world.device, lambda line: None)
    chosen = _changed(recipe, {"train": {"precision": precision}})
    divide_step(chosen, _FEWEST_TOKENS, world.device, lambda line: None, world.size)


def _open_data(
    store: Store, recipe: Recipe, world: World, say: Say, *, is_resumed: bool = False
) -> tuple[Recipe, RunData]:
    """Open the data; write down how a step is computed, so that a resume does the same."""
    data = RunData.open(store, recipe, world.device)
    precision = world.agree(choose_precision(recipe, world.device, say))
    recipe = _changed(recipe, {"train": {"precision": precision}})
    size = store.tokenizer.size
    division = divide_step(recipe, size, world.device, say, world.size, is_resumed=is_resumed)
    return _changed(recipe, {"train": asdict(division)}), data


def _refuse_another_recipe(run: RunFolder, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `RunError` where the run's recipe is not what it began with."""
    # These change no bit of a step.
    free = {"name", "train.steps", "train.memory", "train.recompute"}
    # A run from before there was such a knob began with its default.
    began = _knobs(type(recipe)(name="any").model_dump()) | _knobs(checkpoint.state.recipe)
    for key, value in _knobs(recipe.model_dump()).items():
        if value != began[key] and key not in free:
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


def _refuse_other_phases(recipe: Recipe, longer: Recipe, made: int) -> None:
    """Raise `InputError` where another number of steps puts steps already made in another phase."""
    for old, new in zip(recipe.phase_starts(), longer.phase_starts(), strict=True):
        if min(old, made) != min(new, made):
            raise InputError(
                f"`steps` {longer.train.steps}",
                f"moves the start of a phase from step {old:,} to {new:,}, and {made:,} are made",
                "leave `steps` out, or start a new run with `init_from`",
            )


# --- the store -----------------------------------------------------------------------------------


def _open_prepared(request: Request, recipe: Recipe) -> Store:
    """Open a store that `prepare` made, which must have been made as the recipe says."""
    if len(request.corpus) > 1 or request.held_out:
        raise InputError(
            "`corpus`",
            "a prepared store cannot be combined with other text",
            "prepare all the text into one store",
        )
    folder = request.corpus[0]
    for setting in request.settings:
        if setting.startswith(("text.", "tokenizer.")):
            raise InputError(
                f"`settings` {setting}",
                f"comes too late for the store {folder}, which is prepared already",
                "prepare the text with this setting",
            )
    store = Store(folder)
    if recipe.tokenizer.path:
        wanted = load_tokenizer(recipe.tokenizer.path, recipe.tokenizer)
        if wanted.identity != store.manifest["tokenizer_identity"]:
            raise StoreError(
                store.folder,
                f"was not made with the tokenizer {recipe.tokenizer.path} (other identity)",
                "prepare the corpus with that tokenizer, or leave it out",
            )
    return store


def _store_of_the_run(
    facts: Facts, recipe: Recipe, workers: int | None, say: Say, show: Show
) -> Store:
    """Open the run's store, or prepare its text again where it is gone, damaged or has moved."""
    if is_store(facts.corpus[0]):
        return Store(facts.corpus[0])
    if facts.store and is_store(facts.store):
        try:
            store = Store(facts.store)
            store.check_changed()
            return store
        except BertmillError as error:
            say(str(error))
    say("preparing the corpus again")
    return open_or_prepare(
        facts.corpus, recipe.text, recipe.tokenizer, facts.held_out, workers, say, show
    )


# --- names and weights ---------------------------------------------------------------------------


def _first_weights(run: RunFolder, facts: Facts) -> LoadedModel | None:
    """Open the model that a run without a checkpoint was to begin with."""
    if facts.init_from is None:
        return None
    source = load_model(facts.init_from.folder)
    if _weights_of(source) != facts.init_from:
        raise RunError(
            run.path,
            f"the weights in {source.folder} are not those that the run was to begin with",
            "bring the old ones back, or start a new run",
        )
    return source


def _weights_of(source: LoadedModel) -> FirstWeights:
    return FirstWeights(
        folder=str(source.folder.absolute()), sha256=file_sha256(source.folder / WEIGHTS_FILE)
    )


def _from_anywhere(source: str) -> str:
    """Make a local path absolute, so that the run goes on from any working folder."""
    is_local = "://" not in source and "::" not in source and not source.startswith("sample:")
    return os.path.abspath(source) if is_local else source  # noqa: PTH100 - globs keep their stars


def _new_folder(name: str) -> Path:
    """Make and return the first free ``runs/<name>-<n>``; two runs never get the same."""
    n = 1
    while True:
        path = Path("runs") / f"{name}-{n}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            n += 1
        except OSError as error:
            raise RunError(path, f"cannot be made ({error.strerror})", "give `out`") from None
