"""Hugging Face's names for our tensors and settings: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from bertmill.config import ModelSection
from bertmill.errors import ModelError
from bertmill.model.task import Task

# Ours, theirs; the `*` in a row stands for the number of a block.
_NAMES = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.segment": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.blocks.*.attention.output": "bert.encoder.layer.*.attention.output.dense",
    "encoder.blocks.*.attention_norm": "bert.encoder.layer.*.attention.output.LayerNorm",
    "encoder.blocks.*.feed_forward.input": "bert.encoder.layer.*.intermediate.dense",
    "encoder.blocks.*.feed_forward.output": "bert.encoder.layer.*.output.dense",
    "encoder.blocks.*.feed_forward_norm": "bert.encoder.layer.*.output.LayerNorm",
    "encoder.final_norm": "bert.encoder.norm",  # pre-norm only: not in BERT
    "pooler": "bert.pooler.dense",
    "masked_token_head.dense": "cls.predictions.transform.dense",
    "masked_token_head.norm": "cls.predictions.transform.LayerNorm",
    "masked_token_head.decoder": "cls.predictions.decoder",
    "masked_token_head.bias": "cls.predictions.bias",
    "next_sentence_head": "cls.seq_relationship",
    "task_head": "classifier",
}
# An untied decoder has a bias of its own in transformers, and `cls.predictions.bias` is not used.
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_DECODER = "cls.predictions.decoder.weight"
_FUSED = "encoder.blocks.*.attention.query_key_value"
_SEPARATE = tuple(f"bert.encoder.layer.*.attention.self.{n}" for n in ("query", "key", "value"))

# Hugging Face's mark of an architecture that transformers has no class for.
_OUR_MODEL_TYPE = "bertmill"
_IS_PAIR = "bertmill_is_pair"
_OURS_ONLY = ("position_embedding", "norm", "init")
_TASK_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "words": "ForTokenClassification",
}


def is_bert(section: ModelSection) -> bool:
    """Whether the network is BERT as published, which ``transformers.BertModel`` computes too."""
    return section.position_embedding == "absolute" and section.norm == "post"


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors; the fused query-key-value map becomes three."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        pattern, block = _pattern(name)
        stem, _, leaf = pattern.rpartition(".")
        if stem == _FUSED:
            parts = tensor.chunk(3)
            for theirs, part in zip(_SEPARATE, parts, strict=True):
                out[f"{theirs}.{leaf}".replace("*", block)] = part.contiguous()
        else:
            out[_translate(pattern).replace("*", block)] = tensor.contiguous()
    if _DECODER in out:
        out[_DECODER_BIAS] = out[_BIAS].clone()
    return out


def from_huggingface(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    required: Collection[str] = ("encoder",),
) -> dict[str, Tensor]:
    """Find our tensors among theirs.

    Parameters
    ----------
    tensors : mapping
        As saved by ``BertModel`` (no prefix) or a class with heads (prefix ``bert.``).
    wanted : mapping
        Our state dict: names and shapes.
    required : collection of str
        Parts of the model without which it is of no use.

    Returns
    -------
    dict
        The tensors that were found; those of a head that the folder lacks are left out.

    Raises
    ------
    ModelError
        A shape differs, or a required part is missing.
    """
    theirs = {_modern(name): tensor for name, tensor in tensors.items()}
    if _DECODER_BIAS in theirs:
        theirs[_BIAS] = theirs[_DECODER_BIAS]
    found: dict[str, Tensor] = {}
    for name, ours in wanted.items():
        pattern, block = _pattern(name)
        stem, _, leaf = pattern.rpartition(".")
        if stem == _FUSED:
            names = [f"{part}.{leaf}".replace("*", block) for part in _SEPARATE]
        else:
            names = [_translate(pattern).replace("*", block)]
        if missing := [n for n in names if n not in theirs]:
            if name.partition(".")[0] in required:
                raise ModelError("weights", f"{missing[0]} is missing", "fetch the folder again")
            continue
        wanted_shape = (len(ours) // len(names), *ours.shape[1:])
        for part in names:
            if theirs[part].shape != wanted_shape:
                raise ModelError(
                    "weights",
                    f"{part} has shape {tuple(theirs[part].shape)}, config.json asks for "
                    f"{wanted_shape}",
                    "mend config.json or fetch the folder again",
                )
        found[name] = torch.cat([theirs[part] for part in names]).to(ours.dtype)
    return found


def to_config(
    section: ModelSection,
    vocab_size: int,
    pad_id: int,
    state: Iterable[str],
    task: Task | None = None,
    is_pair: bool | None = None,
) -> dict[str, Any]:
    """Write ``config.json``: BERT as published is a class of transformers, by the heads it has."""
    values = section.model_dump()
    parts = {name.partition(".")[0] for name in state}
    if task is not None:
        kind = _TASK_CLASSES[task.kind]
    elif "next_sentence_head" in parts:
        kind = "ForPreTraining"
    else:
        kind = "ForMaskedLM" if "masked_token_head" in parts else "Model"
    if is_bert(section):
        values = {key: value for key, value in values.items() if key not in _OURS_ONLY}
        names = {"architectures": [f"Bert{kind}"], "model_type": "bert"}
    else:
        names = {"architectures": [f"Bertmill{kind}"], "model_type": _OUR_MODEL_TYPE}
    return {
        **names,
        **values,
        **({} if task is None else _task_to_config(task)),
        **({} if is_pair is None else {_IS_PAIR: is_pair}),
        "vocab_size": vocab_size,
        "pad_token_id": pad_id,
    }


def is_pair_from_config(config: Mapping[str, Any]) -> bool | None:
    """Read whether a fine-tuned model learned from pairs of texts; None where nothing is said."""
    found = config.get(_IS_PAIR)
    return found if isinstance(found, bool) else None


def _task_to_config(task: Task) -> dict[str, Any]:
    labels = task.labels or ("LABEL_0",)
    values: dict[str, Any] = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if task.kind != "words":
        is_regression = task.kind == "regression"
        values["problem_type"] = "regression" if is_regression else "single_label_classification"
    return values


def task_from_config(config: Mapping[str, Any], where: object) -> Task | None:
    """Read from ``config.json`` what a fine-tuned model answers; None for any other model.

    Raises
    ------
    ModelError
        Its labels are damaged.
    """
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    is_words = name.endswith(_TASK_CLASSES["words"])
    kind = config.get("problem_type")
    if not is_words and not name.endswith(_TASK_CLASSES["classification"]):
        return None
    if not is_words and kind not in (None, "regression", "single_label_classification"):
        return None  # several labels at once: the encoder is good all the same
    listed = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # Hugging Face's default
    try:
        labels = tuple(listed[str(i)] for i in range(len(listed)))
        if not labels or not all(isinstance(label, str) for label in labels):
            raise ValueError(labels)
        "".join(labels).encode("utf-8")  # half a character could be written nowhere
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            where, "id2label does not name the classes 0, 1, ...", "fetch the folder again"
        ) from None
    if is_words:
        return Task("words", labels)
    if kind == "single_label_classification" or (kind is None and len(labels) > 1):
        return Task("classification", labels)
    return Task("regression", ()) if len(labels) == 1 else None  # or several numbers at once


def from_config(config: Mapping[str, Any], where: object) -> tuple[ModelSection, int]:
    """Read ``config.json``: the model section and the vocabulary size.

    Raises
    ------
    ModelError
        Another architecture, or a setting that our encoder does not compute.
    """
    kind = config.get("model_type")
    if kind not in ("bert", _OUR_MODEL_TYPE):
        raise ModelError(
            where, f"model_type is {kind!r}, not 'bert'", "give a BERT folder or a run of bertmill"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            where,
            f"position_embedding_type {config['position_embedding_type']!r} is not supported",
            "give a model with absolute positions",
        )
    if config.get("is_decoder"):
        raise ModelError(where, "is a decoder (is_decoder is true)", "give an encoder")
    known = {key: config[key] for key in ModelSection.model_fields if key in config}
    try:
        section = ModelSection.model_validate(known)
    except ValidationError as error:
        problem = error.errors()[0]
        what = (
            str(problem["ctx"]["error"]).partition("; ")[0]
            if problem["type"] == "value_error"
            else f"{problem['loc'][0]} is {problem['input']!r}: {problem['msg']}"
        )
        raise ModelError(where, what, "give another model") from None
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or not 1 <= vocab_size <= 2**24:
        raise ModelError(where, f"vocab_size is {vocab_size!r}", "fetch the folder again")
    return section, vocab_size


def _modern(name: str) -> str:
    """Bring a saved name into today's form: with its prefix, and LayerNorm's weight and bias."""
    name = name if name.startswith(("bert.", "cls.", "classifier.")) else f"bert.{name}"
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _pattern(name: str) -> tuple[str, str]:
    """Take a block's number out: ``blocks.3.output`` becomes ``blocks.*.output`` and ``3``."""
    parts = name.split(".")
    block = next((part for part in parts if part.isdigit()), "")
    return ".".join("*" if part == block and block else part for part in parts), block


def _translate(pattern: str) -> str:
    if pattern in _NAMES:
        return _NAMES[pattern]
    stem, _, leaf = pattern.rpartition(".")
    return f"{_NAMES[stem]}.{leaf}"
