"""How a run starts: the user's wishes become one frozen `Plan`, before training starts.

`plan_run` is for a new run, `plan_resume` for one that goes on. Whatever can be refused is refused
here, most of it before an hour of preparing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from bertmill.config import Recipe, read_recipe, recipe_from_dict
from bertmill.data.documents import Show
from bertmill.data.pairs import SEGMENTS_RULE
from bertmill.data.prepare import open_or_prepare
from bertmill.data.store import Store, is_store
from bertmill.errors import BertmillError, InputError, RunError, StoreError
from bertmill.model.folder import WEIGHTS_FILE, LoadedModel, load_model
from bertmill.storage import file_sha256
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.checkpoint import Checkpoint, newest_checkpoint
from bertmill.train.memory import allowed_memory, divide_step
from bertmill.train.precision import choose_precision
from bertmill.train.request import (
    Request,
    Say,
    change,
    choose_recipe,
    name_of_recipe,
    refuse_another_recipe,
    refuse_other_phases,
)
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import Facts, FirstWeights, RunFolder
from bertmill.train.world import World, open_world

_FEWEST_TOKENS = 8


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


def finds_run(request: Request) -> bool:
    """Whether there is a run in the folder of a new one: on all ranks what rank 0 sees there."""
    name = name_of_recipe(request)
    train = read_recipe(name, request.settings).get("train", {})
    world = open_world(recipe_from_dict({"name": name, "train": train}, name).train)
    return world.by_first(lambda: RunFolder(str(request.out)).holds_run)


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
    recipe = choose_recipe(request, source, from_store, say)
    world = _open_world(recipe)
    if request.out is not None and world.speaks:
        RunFolder(request.out).refuse_if_taken()
    _refuse_what_cannot_fit(recipe, world)
    if from_store:
        store = _open_prepared(request, recipe)
    else:
        read, vocabulary, workers = recipe.text, recipe.tokenizer, request.workers
        store = open_or_prepare(
            request.corpus, read, vocabulary, request.held_out, workers, say, show
        )
    _refuse_another_start(recipe, store, world)
    # From here on the recipe is what is done, not only what was asked for.
    sections = ("text", "tokenizer") if from_store else ("text",)
    recipe = change(recipe, {name: store.manifest[name] for name in sections})
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
    out = request.out or world.by_first(lambda: str(_new_folder(recipe.name)))
    return Plan(RunFolder(out), recipe, facts, data, world, source)


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
    world = _open_world(recipe)
    checkpoint = newest_checkpoint(run, say, world)
    made = 0 if checkpoint is None else checkpoint.state.step
    if checkpoint is not None:
        refuse_another_recipe(run, recipe, checkpoint)
    if steps is not None:
        if recipe.train.budget_seconds or facts.budget_seconds:
            raise InputError("`steps`", "the run has a time budget", "leave `steps` out")
        if steps < made:
            raise InputError(
                f"`steps` {steps}", f"is less than the {made} steps already made", "give more"
            )
        longer = change(recipe, {"train": {"steps": steps}})
        refuse_other_phases(recipe, longer, made)
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
    _refuse_another_start(recipe, store, world)
    recipe, data = _open_data(store, recipe, world, say, is_resumed=True)
    if has_moved:
        facts = facts.model_copy(update={"store": str(store.folder.resolve())})
    if world.speaks:
        run.write_facts(facts)
        run.write_recipe(recipe)
    say(f"going on from step {made:,} of {run.path}")
    return Plan(run, recipe, facts, data, world, start)


# --- what is decided before the start ------------------------------------------------------------


def _open_world(recipe: Recipe) -> World:
    world = open_world(recipe.train)
    if world.size > recipe.train.batch_size:
        raise InputError(
            f"{world.size} ranks",
            f"cannot share the {recipe.train.batch_size} sequences of a step",
            "start fewer (--nproc-per-node), or raise train.batch_size",
        )
    return world


def _refuse_another_start(recipe: Recipe, store: Store, world: World) -> None:
    """Raise `InputError` where ranks were given different recipes or text."""
    world.wait_for_all()
    knobs = recipe.model_dump(exclude={"name": True, "phases": True, "train": {"device"}})
    values = {f"{name}.{key}": value for name in knobs for key, value in knobs[name].items()}
    phases = [phase.model_dump() for phase in recipe.phases]
    world.refuse_unless_same({**values, "phases": phases, "the store": store.identity})


def _refuse_what_cannot_fit(recipe: Recipe, world: World) -> None:
    """Raise, before an hour of preparing, where a step is too large with any vocabulary."""
    precision = choose_precision(recipe, world.device, lambda line: None)
    chosen = change(recipe, {"train": {"precision": precision}})
    allowed = _allowed_on_all(chosen, world)
    divide_step(chosen, _FEWEST_TOKENS, world.device, lambda line: None, allowed, world.size)


def _allowed_on_all(recipe: Recipe, world: World, *, is_resumed: bool = False) -> int:
    """Return the least memory that a rank is allowed."""
    own = allowed_memory(recipe, world.device, is_resumed=is_resumed)
    return -int(world.largest(-own)[0])


def _open_data(
    store: Store, recipe: Recipe, world: World, say: Say, *, is_resumed: bool = False
) -> tuple[Recipe, RunData]:
    """Open the data; write down how a step is computed, so that a resume does the same."""
    data = RunData.open(store, recipe, world.device)
    precision = world.by_first(lambda: choose_precision(recipe, world.device, say))
    recipe = change(recipe, {"train": {"precision": precision}})
    size, allowed = store.tokenizer.size, _allowed_on_all(recipe, world, is_resumed=is_resumed)
    division = divide_step(
        recipe, size, world.device, say, allowed, world.size, is_resumed=is_resumed
    )
    return change(recipe, {"train": asdict(division)}), data


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
