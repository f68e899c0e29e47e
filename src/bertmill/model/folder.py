"""Model folders: Hugging Face's layout, written and read without pickle.

::

    config.json  model.safetensors            the network
    tokenizer.json  tokenizer_config.json  vocab.txt
    bertmill.json                             how the text was read and masked, and token counts
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bertmill.config import ModelSection
from bertmill.errors import ModelError
from bertmill.model.encoder import initialise
from bertmill.model.heads import PretrainingModel
from bertmill.model.huggingface import from_config, from_huggingface, to_config, to_huggingface
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds."""

    model: PretrainingModel
    tokenizer: Tokenizer
    about: dict[str, Any]
    """``bertmill.json``, empty for folders of other programs."""
    new_weights: tuple[str, ...]
    """Names of tensors that the folder lacks (a head); they are freshly drawn."""


def save_model(
    folder: Path, model: PretrainingModel, tokenizer: Tokenizer, about: dict[str, Any]
) -> None:
    """Write a model folder; the caller makes it appear whole."""
    tokenizer.save(folder)
    config = to_config(model.section, model.vocab_size, tokenizer.pad_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "bertmill.json").write_text(json.dumps(about) + "\n", "utf-8")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_tensors(folder / WEIGHTS_FILE, to_huggingface(state))


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write safetensors that others may read, as the user's umask says."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # the library's own files are closed to everybody else


def load_model(path: str | Path) -> LoadedModel:
    """Open a run folder, a bertmill model folder or a Hugging Face BERT folder.

    Raises
    ------
    ModelError, TokenizerError
        Nothing there, another architecture, damaged, or without a tokenizer.
    """
    folder = model_folder(path)
    section, vocab_size = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(folder, f"has no {WEIGHTS_FILE}", "give a folder with safetensors weights")
    model = PretrainingModel(section, vocab_size)
    initialise(model, section, torch.Generator().manual_seed(0))
    wanted = model.state_dict()
    try:
        found = from_huggingface(safetensors.torch.load_file(weights), wanted)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(weights, f"cannot be read ({error})", "fetch the folder again") from None
    except ModelError as error:
        raise ModelError(weights, error.what, error.fix) from None
    model.load_state_dict(found, strict=False)
    tokenizer = load_tokenizer(folder)
    if tokenizer.size > vocab_size:
        raise ModelError(
            folder,
            f"the tokenizer has {tokenizer.size:,} entries, the model {vocab_size:,}",
            "put the tokenizer that the model was trained with into the folder",
        )
    about = folder / "bertmill.json"
    return LoadedModel(
        model.eval(),
        tokenizer,
        _read_json(about) if about.is_file() else {},
        tuple(name for name in wanted if name not in found),
    )


def model_folder(path: str | Path) -> Path:
    """Return the model's own folder: a run keeps it under ``model``."""
    path = Path(path)
    for folder in (path / "model", path):
        if os.path.isfile(folder / "config.json"):
            return folder
    if not os.path.exists(path):
        raise ModelError(path, "does not exist", "give a run folder or a model folder")
    raise ModelError(
        path, "is no store, run or model folder (no config.json)", "give another folder"
    )


def read_config(folder: Path) -> tuple[ModelSection, int]:
    """Read the model section and the vocabulary size from a model's own folder."""
    return from_config(_read_json(folder / "config.json"), folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(path, f"cannot be read ({error})", "fetch the folder again") from None
    if not isinstance(values, dict):
        raise ModelError(path, "is not a JSON object", "fetch the folder again")
    return values
