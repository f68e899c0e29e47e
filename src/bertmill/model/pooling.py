"""How token vectors become one sentence vector, in the files that ``sentence-transformers`` reads.

::

    modules.json                 the modules in order, each with its folder
    sentence_bert_config.json    most tokens of a sentence
    1_Pooling/config.json        mean or cls

A third module, ``Normalize``, scales vectors to length 1; it has no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bertmill.errors import ModelError
from bertmill.model.packed import PackedTokens

if TYPE_CHECKING:
    from bertmill.model.folder import LoadedModel

POOLING_MODES = ("mean", "cls")
MODULES_FILE, LENGTH_FILE = "modules.json", "sentence_bert_config.json"
_TOKENIZER_FILE = "tokenizer_config.json"
_SHORTEST = 3
"""The special tokens of two texts, with nothing between them."""


@dataclass(frozen=True)
class Pooling:
    """How a sentence vector is made of a sentence's token vectors."""

    mode: Annotated[str, Field(pattern="^(mean|cls)$")]
    """``mean`` of all token vectors, special tokens included, or that of ``cls``."""
    normalize: bool
    """Whether the vector is scaled to length 1."""
    max_length: Annotated[int, Field(ge=_SHORTEST)]
    """Most tokens of a sentence; the rest is cut off."""

    def pool(self, hidden: Tensor, packed: PackedTokens) -> Tensor:
        """Make one vector per sequence: [N, D] to [B, D]."""
        if self.mode == "cls":
            pooled = hidden.index_select(0, packed.starts[:-1])
        else:
            sizes = packed.starts.diff()
            pooled = torch.segment_reduce(hidden, "mean", lengths=sizes, unsafe=True)
        return F.normalize(pooled) if self.normalize else pooled


_MEAN = Pooling("mean", False, _SHORTEST)


def default_pooling(loaded: LoadedModel) -> Pooling:
    """Return what the model's folder says, else the mean of all tokens.

    Raises
    ------
    ModelError
        What the folder says is damaged, or not computed by bertmill.
    """
    own = read_pooling(loaded.folder, loaded.model.section.max_position_embeddings)
    kept = None if loaded.about is None else loaded.about.pooling
    return own or replace(kept or _MEAN, max_length=longest_text(loaded))


def pooling_to_keep(loaded: LoadedModel, trained_length: int) -> Pooling | None:
    """Return how the model pools, for another that goes on from it on texts of this length.

    None where its folder does not say.

    Raises
    ------
    ModelError
        As `default_pooling`.
    """
    says = (loaded.folder / MODULES_FILE).is_file() or read_max_length(loaded.folder) is not None
    if not says and (loaded.about is None or loaded.about.pooling is None):
        return None
    own = default_pooling(loaded)
    return replace(own, max_length=max(own.max_length, trained_length))


def longest_text(loaded: LoadedModel) -> int:
    """Return the most tokens of a text: as the folder says, or as the model was trained on.

    Raises
    ------
    ModelError
        What the folder says is damaged.
    """
    longest = loaded.model.section.max_position_embeddings
    length = read_max_length(loaded.folder)
    if length is None and loaded.about is not None:
        length = (loaded.about.pooling or loaded.about.pairs).max_length
    return min(length or longest, longest)


def read_pooling(folder: Path, longest: int) -> Pooling | None:
    """Read how a model folder pools; None where it does not say.

    Parameters
    ----------
    folder : Path
    longest : int
        Positions of the model.

    Raises
    ------
    ModelError
        Damaged, or made of modules that bertmill does not compute.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    try:
        modules = _read_json(folder / MODULES_FILE)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
            raise ValueError(f"unsupported modules {', '.join(kinds)}")
        own, pooling = (str(module["path"]) for module in modules[:2])
        # A path that leads out of the folder is not followed.
        if own or Path(pooling).name != pooling or pooling in ("", "..") or len(pooling) > 255:
            raise ValueError(f"unsupported path {(own or pooling)[:80]!r}")
        config = _read_json(folder / pooling / "config.json")
        mode = config.get("pooling_mode") or ", ".join(
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True
        )
        if mode not in POOLING_MODES:
            raise ValueError(f"unsupported pooling {mode!r}")
        length = read_max_length(folder)
    except (LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ModelError(
            folder / MODULES_FILE,
            f"cannot be used ({error})",
            "bertmill computes mean or cls; delete this file to use the mean",
        ) from None
    return Pooling(mode, len(kinds) == 3, min(length or longest, longest))


def read_max_length(folder: Path) -> int | None:
    """Read the most tokens of a text, where a model folder says it.

    Raises
    ------
    ModelError
        Damaged, or not a whole number of 3 or more.
    """
    for name, key in ((LENGTH_FILE, "max_seq_length"), (_TOKENIZER_FILE, "model_max_length")):
        try:
            length = _read_json(folder / name).get(key) if (folder / name).is_file() else None
            if length is None:
                continue
            if type(length) is not int or length < _SHORTEST:
                raise ValueError(f"{key} is {length!r}")
            return length
        except (ValueError, AttributeError, OSError, RecursionError) as error:
            raise ModelError(
                folder / name, f"cannot be used ({error})", "fix or delete this file"
            ) from None
    return None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
