"""Hugging Face's names for our tensors and settings, in both directions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from bertmill.config import NetworkSection, first_problem
from bertmill.errors import ModelError
from bertmill.model.architecture import ARCHITECTURES, Architecture, architecture_of
from bertmill.model.task import Task

_IS_PAIR = "bertmill_is_pair"
_TASK_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "words": "ForTokenClassification",
}


def to_huggingface(architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors; one that has several of their names is cut into so many."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs = _their_names(architecture, name)
        out |= zip(theirs, (part.contiguous() for part in tensor.chunk(len(theirs))), strict=True)
    return architecture.with_copies(out)


def from_huggingface(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    required: Collection[str],
    where: object,
) -> dict[str, Tensor]:
    """Find our tensors among theirs.

    Parameters
    ----------
    architecture : Architecture
    tensors : mapping
        As saved by an encoder's class of transformers or by one with heads.
    wanted : mapping
        Our state dict: names and shapes.
    required : collection of str
        Parts of the model without which it is of no use.
    where : object
        What to call the tensors in an error.

    Returns
    -------
    dict
        The tensors that were found; those of a head that the folder lacks are left out.

    Raises
    ------
    ModelError
        A shape differs, or a required part is missing.
    """
    theirs = architecture.with_todays_names(tensors)
    found: dict[str, Tensor] = {}
    for name, ours in wanted.items():
        names = _their_names(architecture, name)
        if missing := [n for n in names if n not in theirs]:
            if name.partition(".")[0] in required:
                raise ModelError(where, f"{missing[0]} is missing", "fetch the folder again")
            continue
        wanted_shape = (len(ours) // len(names), *ours.shape[1:])
        for part in names:
            if theirs[part].shape != wanted_shape:
                raise ModelError(
                    where,
                    f"{part} has shape {tuple(theirs[part].shape)}, not {wanted_shape} as in "
                    "config.json",
                    "fix config.json or fetch the folder again",
                )
        found[name] = torch.cat([theirs[part] for part in names]).to(ours.dtype)
    return found


def to_config(
    section: NetworkSection,
    vocab_size: int,
    pad_id: int,
    state: Iterable[str],
    task: Task | None = None,
) -> dict[str, Any]:
    """Write ``config.json``; which class it names depends on the heads that `state` holds."""
    parts = {name.partition(".")[0] for name in state}
    if task is not None:
        kind = _TASK_CLASSES[task.kind]
    elif "next_sentence_head" in parts:
        kind = "ForPreTraining"
    else:
        kind = "ForMaskedLM" if "masked_token_head" in parts else "Model"
    return {
        **architecture_of(section).to_config(section, kind),
        **({} if task is None else _task_to_config(task)),
        "vocab_size": vocab_size,
        "pad_token_id": pad_id,
    }


def _task_to_config(task: Task) -> dict[str, Any]:
    labels = task.labels or ("LABEL_0",)
    values: dict[str, Any] = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if task.kind != "words":
        is_regression = task.kind == "regression"
        values["problem_type"] = "regression" if is_regression else "single_label_classification"
    return values if task.is_pair is None else {**values, _IS_PAIR: task.is_pair}


def task_from_config(config: Mapping[str, Any], where: object) -> Task | None:
    """Read from ``config.json`` what a fine-tuned model answers; None for any other model.

    Raises
    ------
    ModelError
        Its labels are damaged.
    """
    classes, is_pair = config.get("architectures"), config.get(_IS_PAIR)
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    if not name.endswith(tuple(_TASK_CLASSES.values())):
        return None
    is_words = name.endswith(_TASK_CLASSES["words"])
    kind = None if is_words else config.get("problem_type")
    if kind not in (None, "regression", "single_label_classification"):
        return None  # several labels at once: the encoder is good all the same
    listed = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # Hugging Face's default
    try:
        labels = tuple(listed[str(i)] for i in range(len(listed)))
        if not labels or not all(isinstance(label, str) for label in labels):
            raise ValueError(labels)
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            where, "id2label does not name the classes 0, 1, ...", "fetch the folder again"
        ) from None
    is_pair = is_pair if isinstance(is_pair, bool) else None
    if is_words or kind == "single_label_classification" or (kind is None and len(labels) > 1):
        return Task("words" if is_words else "classification", labels, is_pair)
    return Task("regression", (), is_pair) if len(labels) == 1 else None  # or several numbers


def from_config(config: Mapping[str, Any], where: object) -> tuple[NetworkSection, int]:
    """Read ``config.json``: the network's knobs and the vocabulary size.

    Raises
    ------
    ModelError
        Another architecture, or a setting that our encoder does not compute.
    """
    kind, known = config.get("model_type"), ARCHITECTURES.values()
    found = [each for each in known if kind in each.MODEL_TYPES]
    if not found:
        names = " or ".join(repr(each.MODEL_TYPES[0]) for each in known)
        raise ModelError(
            where, f"model_type is {kind!r}, not {names}", "give a BERT folder or a run of bertmill"
        )
    try:
        section = found[0].SECTION.model_validate(found[0].from_config(config, where))
    except ValidationError as error:
        raise ModelError(where, first_problem(error), "give another model") from None
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or not 1 <= vocab_size <= 2**24:
        raise ModelError(where, f"vocab_size is {vocab_size!r}", "fetch the folder again")
    return section, vocab_size


def _their_names(architecture: Architecture, name: str) -> list[str]:
    """Look up, for ``encoder.blocks.3.attention.output.weight``, the row of ``blocks.*``."""
    block = next((part for part in name.split(".") if part.isdigit()), "")
    pattern = name.replace(f".{block}.", ".*.") if block else name
    leaf = ""
    if pattern not in architecture.NAMES:
        pattern, _, leaf = pattern.rpartition(".")
        leaf = f".{leaf}"
    theirs = architecture.NAMES[pattern]
    stems = (theirs,) if isinstance(theirs, str) else theirs
    return [(stem + leaf).replace("*", block) for stem in stems]
