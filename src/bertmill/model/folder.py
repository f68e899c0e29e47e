"""Model folders: Hugging Face's layout, written and read without pickle.

::

    config.json  model.safetensors            the network
    tokenizer.json  tokenizer_config.json  vocab.txt
    bertmill.json                             how it was trained, so that others can judge it
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, TypeAdapter

from bertmill.config import (
    MaskingSection,
    NetworkSection,
    PairsSection,
    Recipe,
    Section,
    TextSection,
    read_json,
    recipe_from_dict,
)
from bertmill.errors import ModelError, RecipeError
from bertmill.model import conversion
from bertmill.model.architecture import architecture_of
from bertmill.model.pooling import Pooling
from bertmill.model.pretraining import PretrainingModel, initialize, shapes_alone
from bertmill.model.task import Task, TaskModel
from bertmill.storage import model_folder, write_json
from bertmill.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS_FILE = "model.safetensors"
_ABOUT_FILE = "bertmill.json"
_OBJECT = TypeAdapter(dict[str, Any])
# What may differ between a pretrained model and the recipe that goes on from it.
_FREE_TO_CHANGE = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "init"
}  # fmt: skip


class About(Section):
    """How a model was trained: what a judge needs for the same pairs, masks and yardsticks."""

    text: TextSection
    pairs: PairsSection
    masking: MaskingSection
    token_counts: tuple[Annotated[int, Field(ge=0, le=2**53)], ...]
    """Occurrences of each id in the training text."""
    overlap_weights: tuple[Annotated[float, Field(ge=-1e9, le=1e9)], ...] | None
    """The word-overlap yardstick of the training pairs; None without pairs."""
    pooling: Pooling | None = None
    """How sentence vectors are made, where the model that it was begun with says so."""


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds."""

    folder: Path
    model: PretrainingModel
    tokenizer: Tokenizer
    about: About | None
    """None in folders of other programs."""
    new_weights: tuple[str, ...]
    """Names of tensors that the folder lacks (a head); they are freshly drawn."""
    task_model: TaskModel | None = None
    """The same encoder with the head of a task that it was fine-tuned for."""

    @property
    def new_parts(self) -> list[str]:
        """The parts of the model that these belong to, sorted."""
        return sorted({name.partition(".")[0] for name in self.new_weights})


def save_model(
    folder: Path,
    model: PretrainingModel | TaskModel,
    tokenizer: Tokenizer,
    about: About | None,
    leave_out: Collection[str] = (),
    max_length: int | None = None,
) -> None:
    """Write a model folder; the caller makes it appear whole.

    Parameters
    ----------
    folder : Path
    model : PretrainingModel or TaskModel
    tokenizer : Tokenizer
    about : About or None
    leave_out : collection of str
        Tensors that were never trained: those of heads that the model was loaded without.
    max_length : int, optional
        Tokens of a text at most, for programs that cut off what is more.
    """
    state = {n: t.detach().cpu() for n, t in model.state_dict().items() if n not in leave_out}
    save_description(folder, model, tokenizer, about, state, max_length)
    architecture = architecture_of(model.section)
    save_tensors(folder / WEIGHTS_FILE, conversion.to_huggingface(architecture, state))


def save_description(
    folder: Path,
    model: PretrainingModel | TaskModel,
    tokenizer: Tokenizer,
    about: About | None,
    state: Iterable[str],
    max_length: int | None = None,
) -> None:
    """Write all of a model folder but the tensors; `state` names those that go with it."""
    tokenizer.save(folder, max_length)
    task = model.task if isinstance(model, TaskModel) else None
    config = conversion.to_config(model.section, model.vocab_size, tokenizer.pad_id, state, task)
    write_json(folder / "config.json", config)
    if about is not None:
        left_out = {"pooling"} if about.pooling is None else None
        text = about.model_dump_json(exclude=left_out) + "\n"
        (folder / _ABOUT_FILE).write_text(text, "utf-8")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write safetensors that others may read, as the user's umask says."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # what the disk says, in another class
        raise OSError(errno.EIO, str(error), str(path)) from None
    path.chmod(mode)  # the library's own files are closed to everybody else


def load_model(path: str | Path) -> LoadedModel:
    """Open a run folder, a bertmill model folder or a Hugging Face BERT folder.

    Raises
    ------
    ModelError, TokenizerError
        Nothing there, another architecture, damaged, or without a tokenizer.
    """
    folder = model_folder(path)
    config_file = folder / "config.json"
    config = read_json(config_file, _OBJECT.validate_json, ModelError, "fetch the folder again")
    section, vocab_size = conversion.from_config(config, config_file)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(folder, f"has no {WEIGHTS_FILE}", "give a folder with safetensors weights")
    task = conversion.task_from_config(config, config_file)
    try:
        tensors = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(weights, f"cannot be read ({error})", "fetch the folder again") from None
    # A stranger's config.json may give any size: memory is taken only for what the file has too.
    if section.num_hidden_layers > len(tensors):
        raise ModelError(
            weights, "is too small for the network of config.json", "fetch the folder again"
        )
    with shapes_alone():
        model, task_model = _make(section, vocab_size, task)
    wanted, required = model.state_dict(), {"encoder"}
    if task_model is not None:
        wanted |= task_model.state_dict()
        required |= {name.partition(".")[0] for name in task_model.state_dict()}
    architecture = architecture_of(section)
    found = conversion.from_huggingface(architecture, tensors, wanted, required, weights)
    new_weights = tuple(name for name in wanted if name not in found)
    if new_weights:
        model, task_model = _make(section, vocab_size, task)
        initialize(model, section, torch.Generator().manual_seed(0))
    for part in (model, task_model):
        if part is not None:
            part.load_state_dict(found, strict=False, assign=not new_weights)
    tokenizer = load_tokenizer(folder)
    if tokenizer.size > vocab_size:
        raise ModelError(
            folder,
            f"the tokenizer has {tokenizer.size:,} entries, the model {vocab_size:,}",
            "put the tokenizer that the model was trained with into the folder",
        )
    about = _read_about(folder / _ABOUT_FILE, tokenizer)
    return LoadedModel(folder, model, tokenizer, about, new_weights, task_model)


def adopt_model(values: Mapping[str, Any], source: str, loaded: LoadedModel) -> Recipe:
    """Make a recipe for a pretrained model: what the values leave open is the model's own.

    Parameters
    ----------
    values : mapping
        Of `read_recipe`. They may repeat the network's shape but not change it; dropout they may
        change.
    source : str
        What to call them in an error.
    loaded : LoadedModel
        Where it does not say how it was trained, the recipe's defaults serve.

    Raises
    ------
    RecipeError
        Another shape is asked for, or sequences longer than the model's positions.
    """
    about, network = loaded.about, loaded.model.section
    pairs = about.pairs if about else PairsSection()
    fitting = min(pairs.max_length, network.max_position_embeddings)
    own = {
        "model": network.model_dump(),
        "pairs": pairs.model_dump() | {"max_length": fitting},
        "masking": about.masking.model_dump() if about else {},
    }
    asked = {name: values.get(name, {}) for name in own}
    for key, value in own["model"].items() if isinstance(asked["model"], Mapping) else ():
        if key not in _FREE_TO_CHANGE and asked["model"].get(key, value) != value:
            raise RecipeError(
                f"recipe {source}: model.{key}",
                f"is {asked['model'][key]!r}, but the pretrained model has {value!r}",
                "leave it out (the recipe `continue` does): the network is the model's own",
            )
    # What is not a section is refused with everything else that is wrong.
    whole = {k: own[k] | dict(v) if isinstance(v, Mapping) else v for k, v in asked.items()}
    return recipe_from_dict({**values, **whole}, source)


def _make(
    section: NetworkSection, vocab_size: int, task: Task | None
) -> tuple[PretrainingModel, TaskModel | None]:
    model = PretrainingModel(section, vocab_size).eval()
    return model, None if task is None else TaskModel(model, task).eval()


def _read_about(path: Path, tokenizer: Tokenizer) -> About | None:
    if not path.is_file():
        return None
    fix = "fetch the folder again, or delete this file"
    about = read_json(path, About.model_validate_json, ModelError, fix)
    if len(about.token_counts) != tokenizer.size:
        counted = f"{len(about.token_counts):,} tokens, not {tokenizer.size:,}"
        raise ModelError(path, f"counts {counted}", fix)
    return about
