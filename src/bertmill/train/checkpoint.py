"""Checkpoints: a folder a step, whole or absent, without pickle.

::

    step-500/model/                  the model folder, Hugging Face's layout
    step-500/optimizer.safetensors   moments and step counts, by parameter name
    step-500/state.json              step, training time, open sums, and each file's SHA-256
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bertmill.disk import file_sha256, flush_to_disk
from bertmill.errors import RunError
from bertmill.model.folder import About, load_model, save_model, save_tensors
from bertmill.model.heads import PretrainingModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.run_folder import RunFolder


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all as they were written."""

    folder: Path
    state: dict[str, Any]
    """``step``, ``seconds``, and what the loop put there."""


def save_checkpoint(
    run: RunFolder,
    state: dict[str, Any],
    model: PretrainingModel,
    tokenizer: Tokenizer,
    about: About,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    """Write ``step-N`` under another name, flush it, rename it, and point ``model`` at it.

    Raises
    ------
    RunError
        The disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final = run.checkpoints / f"step-{state['step']}"
    part = run.checkpoints / f".{final.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / "model").mkdir(parents=True)
        save_model(part / "model", model, tokenizer, about)
        moments = _flatten(model, optimizer)
        save_tensors(part / "optimizer.safetensors", moments)
        digests = {str(f.relative_to(part)): file_sha256(f) for f in _files(part)}
        (part / "state.json").write_text(json.dumps({**state, "sha256": digests}), "utf-8")
        for path in [*_files(part), part / "model", part]:
            flush_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        flush_to_disk(run.checkpoints)
        _point(run.model, final / "model")
        for old in _by_step(run)[:-keep]:
            shutil.rmtree(old)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(
            final,
            f"cannot be written ({error})",
            f"make room, then go on with: bertmill pretrain --resume {run.path}",
        ) from None


def newest_checkpoint(run: RunFolder, say: Callable[[str], None]) -> Checkpoint | None:
    """Find the newest checkpoint whose files are whole, and make it the run's newest of all.

    Newer ones, which are damaged, are named and deleted, and so is what an unfinished save left.

    Raises
    ------
    RunError
        All are damaged. A run that was stopped before its first one has None.
    """
    found = _by_step(run)
    damaged: list[Path] = []
    for folder in reversed(found):
        try:
            state = json.loads((folder / "state.json").read_text("utf-8"))
            digests = {name: file_sha256(folder / name) for name in state["sha256"]}
            bad = [name for name, digest in digests.items() if state["sha256"][name] != digest]
        except (OSError, ValueError, KeyError, TypeError) as error:
            bad = [str(error)]
        if not bad:
            for rest in [*damaged, *run.checkpoints.glob(".*.part")]:
                shutil.rmtree(rest, ignore_errors=True)
            _point(run.model, folder / "model")
            return Checkpoint(folder, state)
        say(f"{folder} is damaged ({bad[0]}); falling back to the one before it")
        damaged.append(folder)
    if found:
        raise RunError(run.path, "holds no whole checkpoint", "start again in another folder")
    return None


def restore(
    checkpoint: Checkpoint, model: PretrainingModel, optimizer: torch.optim.Optimizer
) -> None:
    """Put weights and optimizer state back, bit by bit."""
    model.load_state_dict(load_model(checkpoint.folder / "model").model.state_dict())
    moments = safetensors.torch.load_file(checkpoint.folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        state = {key: moments[f"{name}/{key}"] for key in _STATE_KEYS if f"{name}/{key}" in moments}
        if state:
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}


_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


def _flatten(model: PretrainingModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in _STATE_KEYS
    }


def _by_step(run: RunFolder) -> list[Path]:
    found = [p for p in run.checkpoints.glob("step-*") if p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def _point(link: Path, target: Path) -> None:
    """Replace a link in one step, as a folder cannot be."""
    fresh = link.with_name(f".{link.name}.part")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())
