"""Checkpoints: one folder per step, whole or absent, without pickle.

::

    step-500/model/                  the model folder, Hugging Face's layout
    step-500/optimizer.safetensors   moments and step counts, by parameter name
    step-500/state.json              `State`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field

from bertmill.config import Section
from bertmill.errors import RunError
from bertmill.model.folder import About, LoadedModel, load_model, save_model, save_tensors
from bertmill.model.pretraining import PretrainingModel
from bertmill.storage import file_sha256, flush_to_disk
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.metrics import SUM_NAMES
from bertmill.train.run_folder import RunFolder


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


def save_checkpoint(
    run: RunFolder,
    state: State,
    model: PretrainingModel,
    tokenizer: Tokenizer,
    about: About,
    optimizer: torch.optim.Optimizer,
    keep: int,
    leave_out: Collection[str] = (),
) -> None:
    """Write ``step-N`` under another name, flush it, rename it, and point the links at it.

    The newest `keep` checkpoints stay, and the best by held-out loss. Tensors that were never
    trained, in `leave_out`, are not saved.

    Raises
    ------
    RunError
        The disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final = run.checkpoints / f"step-{state.step}"
    part = run.checkpoints / f".{final.name}.part"
    with run.writing(final), ExitStack() as unfinished:
        unfinished.callback(shutil.rmtree, part, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        (part / "model").mkdir(parents=True)
        save_model(part / "model", model, tokenizer, about, leave_out)
        save_tensors(part / "optimizer.safetensors", _flatten(model, optimizer))
        digests = {str(f.relative_to(part)): file_sha256(f) for f in _files(part)}
        whole = state.model_copy(update={"sha256": digests})
        (part / _STATE_FILE).write_text(whole.model_dump_json(), "utf-8")
        for path in [*_files(part), part / "model", part, *run.path.glob("metrics.jsonl")]:
            flush_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        flush_to_disk(run.checkpoints)
        found = _by_step(run)
        best = _point_at(run, found)
        for old in found[:-keep]:
            if old != best:
                shutil.rmtree(old)


def newest_checkpoint(run: RunFolder, say: Callable[[str], None]) -> Checkpoint | None:
    """Find the newest checkpoint whose files are whole, and make it the run's newest of all.

    Newer ones, which are damaged, are named and deleted, and so is what an unfinished save left.

    Raises
    ------
    RunError
        All are damaged. A run that was stopped before its first one has None.
    """
    found = _by_step(run)
    for number, folder in reversed(list(enumerate(found, 1))):
        try:
            state = _read_whole(folder)
        except (OSError, ValueError) as error:
            what = " ".join(str(error).split())
            say(f"{folder} is damaged ({what}); falling back to the one before it")
            continue
        with run.writing(folder):
            # Links first: a process that is killed in between must not leave them dangling.
            _point_at(run, found[:number])
            for rest in [*found[number:], *run.checkpoints.glob(".*.part")]:
                shutil.rmtree(rest, ignore_errors=True)
        return Checkpoint(folder, state)
    if found:
        raise RunError(run.path, "has no undamaged checkpoint", "start again in another folder")
    return None


def restore(
    checkpoint: Checkpoint, model: PretrainingModel, optimizer: torch.optim.Optimizer
) -> LoadedModel:
    """Put weights and optimizer state back, bit for bit; return the model that was saved."""
    loaded = load_model(checkpoint.folder / "model")
    model.load_state_dict(loaded.model.state_dict())
    path = checkpoint.folder / "optimizer.safetensors"
    try:
        moments = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(path, f"cannot be read ({error})", "start a new run") from None
    for name, parameter in model.named_parameters():
        state = {key: moments[f"{name}/{key}"] for key in _STATE_KEYS if f"{name}/{key}" in moments}
        if not state:
            continue
        shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        found = {key: tensor.shape for key, tensor in state.items()}
        if found != shapes or any(tensor.dtype != torch.float32 for tensor in state.values()):
            raise RunError(path, f"does not fit {name}", "start a new run")
        optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
    return loaded


_STATE_FILE = "state.json"
_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


def _flatten(model: PretrainingModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in _STATE_KEYS
    }


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


def _read_whole(folder: Path) -> State:
    """Read a checkpoint's state; ValueError where it or another file is not as it was written."""
    state = _read_state(folder)
    for name, sha256 in state.sha256.items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(name)
    return state


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
