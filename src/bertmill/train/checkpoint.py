"""Checkpoints: one folder per step, whole or absent, without pickle.

::

    step-500/model/                  the model folder, Hugging Face's layout
    step-500/optimizer.safetensors   moments and step counts, by parameter name; with
                                     ``train.shard=full`` one file for each rank's part
    step-500/state.json              `State`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bertmill.config import Section
from bertmill.errors import RunError
from bertmill.model.folder import LoadedModel, load_model
from bertmill.model.pretraining import PretrainingModel
from bertmill.storage import file_sha256, flush_to_disk
from bertmill.train.metrics import SUM_NAMES
from bertmill.train.moments import moments_file
from bertmill.train.run_folder import RunFolder
from bertmill.train.world import World


class State(Section):
    """What a run needs besides weights and moments. The data needs the step alone."""

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0.0)]
    """Training time so far."""
    losses: dict[str, float]
    """The open sums of `LossMeter`."""
    held_out_loss: float | None
    """Loss of masked tokens, where this step was validated."""
    phase: int = 0
    """Of its last step: losses of two phases, on other sequences, cannot be compared."""
    recipe: dict[str, Any]
    """Resolved, so that a change of the run's recipe is seen."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of every other file of the checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all as they were written."""

    folder: Path
    state: State


@contextmanager
def new_checkpoint(run: RunFolder, state: State, world: World, keep: int) -> Iterator[Path]:
    """Give a folder to write to, with ``model`` in it, that becomes ``step-N`` at the end.

    All ranks take part, each hashes its own files, and rank 0 makes the checkpoint whole: it writes
    the state last, flushes, renames, and points the run's links at it. The newest `keep`
    checkpoints stay, and the best by held-out loss.

    Raises
    ------
    RunError
        The disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final = run.checkpoints / f"step-{state.step}"
    part = run.checkpoints / f".{final.name}.part"
    with run.writing(final), ExitStack() as unfinished:
        if world.speaks:
            unfinished.callback(shutil.rmtree, part, ignore_errors=True)
            shutil.rmtree(part, ignore_errors=True)
            (part / "model").mkdir(parents=True)
        world.wait()
        yield part
        owners = {moments_file(rank, world): rank for rank in reversed(range(world.size))}
        mine = [file for file in _files(part) if owners.get(file.name, 0) == world.rank]
        digests = {str(file.relative_to(part)): file_sha256(file) for file in mine}
        for file in mine:
            flush_to_disk(file)
        every = world.each(digests)
        if world.speaks:
            whole = {name: digest for own in every for name, digest in own.items()}
            text = state.model_copy(update={"sha256": whole}).model_dump_json()
            (part / _STATE_FILE).write_text(text, "utf-8")
            for path in [part / _STATE_FILE, part / "model", part, *run.path.glob("metrics.jsonl")]:
                flush_to_disk(path)
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            flush_to_disk(run.checkpoints)
            _delete_old(run, keep)
        world.wait()


def _delete_old(run: RunFolder, keep: int) -> None:
    found = _by_step(run)
    best = _point_at(run, found)
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)


def newest_checkpoint(
    run: RunFolder, say: Callable[[str], None], world: World
) -> Checkpoint | None:
    """Find the newest checkpoint whose files are whole, and make it the run's newest of all.

    Newer ones, which are damaged, are named and deleted, and so is what an unfinished save left.
    Rank 0 does that for all ranks.

    Raises
    ------
    RunError
        All are damaged. A run that was stopped before its first one has None.
    """
    name = world.by_first(lambda: _find_newest(run, say))
    if name is None:
        return None
    return Checkpoint(run.checkpoints / name, _read_state(run.checkpoints / name))


def _find_newest(run: RunFolder, say: Callable[[str], None]) -> str | None:
    found = _by_step(run)
    for number, folder in reversed(list(enumerate(found, 1))):
        try:
            _refuse_damaged(folder)
        except (OSError, ValueError) as error:
            what = " ".join(str(error).split())
            say(f"{folder} is damaged ({what}); falling back to the one before it")
            continue
        with run.writing(folder):
            # Links first: a process that is killed in between must not leave them dangling.
            _point_at(run, found[:number])
            for rest in [*found[number:], *run.checkpoints.glob(".*.part")]:
                shutil.rmtree(rest, ignore_errors=True)
        return folder.name
    if found:
        raise RunError(run.path, "has no undamaged checkpoint", "start again in another folder")
    return None


def restore_weights(checkpoint: Checkpoint, model: PretrainingModel) -> LoadedModel:
    """Put the weights back, bit for bit; return the model that was saved."""
    loaded = load_model(checkpoint.folder / "model")
    model.load_state_dict(loaded.model.state_dict())
    return loaded


_STATE_FILE = "state.json"


def _read_state(folder: Path) -> State:
    """Read a checkpoint's state; ValueError where it does not belong to this folder."""
    state = State.model_validate_json((folder / _STATE_FILE).read_bytes())
    files = {str(path.relative_to(folder)) for path in _files(folder)} - {_STATE_FILE}
    if folder.name != f"step-{state.step}" or state.losses.keys() != set(SUM_NAMES):
        raise ValueError(f"{_STATE_FILE} belongs to another checkpoint")
    if files != state.sha256.keys():
        raise ValueError(
            f"missing or unexpected files: {', '.join(sorted(files ^ state.sha256.keys()))}"
        )
    return state


def _refuse_damaged(folder: Path) -> None:
    """Raise ValueError where the state or another file is not as it was written."""
    for name, sha256 in _read_state(folder).sha256.items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(name)


def _best(checkpoints: Iterable[Path]) -> Path | None:
    """Find the lowest held-out loss of the latest phase that has one; the earlier one of equals."""
    losses: dict[Path, tuple[int, float]] = {}
    for folder in checkpoints:
        with suppress(OSError, ValueError):
            state = _read_state(folder)
            if state.held_out_loss is not None:
                losses[folder] = -state.phase, state.held_out_loss
    return min(losses, key=losses.__getitem__, default=None)


def _by_step(run: RunFolder) -> list[Path]:
    found = [p for p in run.checkpoints.glob("step-*") if p.name[5:].isdecimal()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def _point_at(run: RunFolder, checkpoints: Sequence[Path]) -> Path | None:
    """Point the run's links at its newest and its best checkpoint, and return the latter."""
    _point(run.model, checkpoints[-1] / "model")
    best = _best(checkpoints)
    if best is not None:
        _point(run.best, best / "model")
    else:
        run.best.unlink(missing_ok=True)
    return best


def _point(link: Path, target: Path) -> None:
    """Replace a link in one step, as a folder cannot be."""
    if link.is_dir() and not link.is_symlink():
        raise RunError(
            link, "is a folder, where a run has a link", "delete it, then resume the run"
        )
    fresh = link.with_name(f".{link.name}.part")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())
