"""How token vectors become one sentence vector, in the files that ``sentence-transformers`` reads.

::

    modules.json                 the modules in order, each with its folder
    sentence_bert_config.json    tokens of a sentence at most
    1_Pooling/config.json        mean or cls

A third module, ``Normalize``, brings vectors to length 1; it has no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmill.errors import ModelError
from bertmill.model.folder import LoadedModel
from bertmill.model.packed import PackedTokens

POOLING_MODES = ("mean", "cls")
_MODULES_FILE, _LENGTH_FILE = "modules.json", "sentence_bert_config.json"
_TOKENIZER_FILE = "tokenizer_config.json"
_SHORTEST = 3
"""The special tokens of two texts, with nothing between them."""
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"
_MODULE_TYPE = "sentence_transformers.models."


@dataclass(frozen=True)
class Pooling:
    """How a sentence vector is made of a sentence's token vectors."""

    mode: str
    """``mean`` of all token vectors, special tokens included, or that of ``cls``."""
    normalize: bool
    """Whether the vector is brought to length 1."""
    max_length: int
    """Tokens of a sentence at most; the rest is cut off."""

    def pool(self, hidden: Tensor, packed: PackedTokens) -> Tensor:
        """Make a vector of each sequence: [N, D] to [B, D]."""
        if self.mode == "cls":
            pooled = hidden.index_select(0, packed.starts[:-1])
        else:
            sizes = packed.starts.diff()
            pooled = torch.segment_reduce(hidden, "mean", lengths=sizes, unsafe=True)
        return F.normalize(pooled) if self.normalize else pooled


def default_pooling(loaded: LoadedModel) -> Pooling:
    """Return what the model's folder says, else the mean of all tokens.

    Raises
    ------
    ModelError
        What the folder says is damaged, or nothing that bertmill computes.
    """
    told = read_pooling(loaded.folder, loaded.model.section.max_position_embeddings)
    return told or Pooling("mean", False, longest_text(loaded))


def longest_text(loaded: LoadedModel) -> int:
    """Tell how many tokens a text should have at most: as the folder says, or was trained on.

    Raises
    ------
    ModelError
        What the folder says is damaged.
    """
    longest = loaded.model.section.max_position_embeddings
    told = read_max_length(loaded.folder)
    if told is None and loaded.about is not None:
        told = loaded.about.pairs.max_length
    return min(told or longest, longest)


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
    if not (folder / _MODULES_FILE).is_file():
        return None
    try:
        modules = _read_json(folder / _MODULES_FILE)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
            raise ValueError(f"modules {', '.join(kinds)}")
        own, pooling = (str(module["path"]) for module in modules[:2])
        # The folder's own files only: a path out of it is not followed.
        if own or Path(pooling).name != pooling or pooling in ("", "..") or len(pooling) > 255:
            raise ValueError(f"a module in {(own or pooling)[:80]!r}")
        config = _read_json(folder / pooling / "config.json")
        mode = config.get("pooling_mode") or ", ".join(
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True
        )
        if mode not in POOLING_MODES:
            raise ValueError(f"pooling {mode!r}")
        length = read_max_length(folder)
    except (LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ModelError(
            folder / _MODULES_FILE,
            f"cannot be followed ({error})",
            "give a folder with mean or cls pooling, or delete this file",
        ) from None
    return Pooling(mode, len(kinds) == 3, min(length or longest, longest))


def read_max_length(folder: Path) -> int | None:
    """Read how many tokens a text has at most, where a model folder says it.

    Raises
    ------
    ModelError
        It says something else.
    """
    for name, key in ((_LENGTH_FILE, "max_seq_length"), (_TOKENIZER_FILE, "model_max_length")):
        try:
            length = _read_json(folder / name).get(key) if (folder / name).is_file() else None
            if length is None:
                continue
            if type(length) is not int or length < _SHORTEST:
                raise ValueError(f"{key} {length!r}")
            return length
        except (ValueError, AttributeError, OSError, RecursionError) as error:
            raise ModelError(
                folder / name, f"cannot be followed ({error})", "mend or delete it"
            ) from None
    return None


def write_pooling(folder: Path, pooling: Pooling, hidden_size: int) -> None:
    """Write the files of ``sentence-transformers`` into a model folder."""
    names = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", _POOLING, _NORMALIZE]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULE_TYPE + name}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    _write_json(folder / _MODULES_FILE, modules)
    _write_json(
        folder / _LENGTH_FILE, {"max_seq_length": pooling.max_length, "do_lower_case": False}
    )
    config = {"word_embedding_dimension": hidden_size}
    config |= {
        f"pooling_mode_{mode}_token{'s' * (mode == 'mean')}": mode == pooling.mode
        for mode in POOLING_MODES
    }
    (folder / _POOLING).mkdir()
    _write_json(folder / _POOLING / "config.json", config)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
