"""Exports for onnxruntime that say how good they are, by the same judge as the model itself."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bertmill.disk import folder_that_appears_whole, refuse_if_there
from bertmill.errors import InputError
from bertmill.judge.held_out import open_held_out, score_held_out
from bertmill.model.folder import LoadedModel, load_model
from bertmill.model.heads import PretrainingModel
from bertmill.train.validate import HeldOut, HeldOutScores
from bertmill.use.onnx import OnnxEncoder, refuse_without_onnx_packages, write_int8, write_onnx

_REPORT_FILE = "onnx.json"


def export_onnx(
    model: str | Path,
    out: str | Path,
    int8: bool,
    sources: Sequence[str],
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    """Write a folder for onnxruntime: the encoder, the tokenizer, and how exact and good they are.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    int8 : bool
        Whether to write the encoder with weights of 8 bits too.
    sources, settings, say
        Text to judge the files on, as in `judge_held_out`; without text they are not judged.

    Returns
    -------
    Path
        `out`. Its ``onnx.json`` holds the largest difference between the vectors of onnxruntime
        and torch, and `judge_onnx`'s scores.

    Raises
    ------
    MissingExtraError
        A package of the extra ``onnx`` is not installed.
    InputError
        `out` exists or cannot be written.
    BertmillError
        The model cannot be opened or has no masked-token head to judge, onnxruntime computes other
        vectors, or the text cannot be read.
    """
    out = Path(out)
    refuse_if_there(out)
    refuse_without_onnx_packages()
    loaded = load_model(model)
    held_out = open_held_out(loaded, sources, settings, say) if sources else None
    with folder_that_appears_whole(out, InputError) as folder:
        if loaded.task_model is not None:
            say("the files are the encoder alone, without what was fine-tuned on top of it")
        report: dict[str, Any] = {"largest_difference": write_onnx(folder, loaded)}
        if int8:
            write_int8(folder)
        if held_out is not None:
            scores = judge_onnx(loaded, folder, held_out)
            report["held_out"] = {n: dataclasses.asdict(each) for n, each in scores.items()}
        (folder / _REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return out


def judge_onnx(loaded: LoadedModel, folder: Path, held_out: HeldOut) -> dict[str, HeldOutScores]:
    """Score a model and the ONNX files that were made of it on the same pairs and masks.

    Parameters
    ----------
    loaded : LoadedModel
        Its heads are used with every file.
    folder : Path
        Holds the files.
    held_out : HeldOut
        Of `open_held_out`.

    Returns
    -------
    dict
        The scores of ``torch`` and of each file by its name.
    """
    models = {"torch": loaded.model}
    models |= {path.name: _with_file(loaded.model, path) for path in sorted(folder.glob("*.onnx"))}
    cpu = torch.device("cpu")
    return {name: score_held_out(loaded, held_out, each, cpu) for name, each in models.items()}


def _with_file(model: PretrainingModel, path: Path) -> PretrainingModel:
    """Copy a model, with an ONNX file in the place of its encoder."""
    twin = copy.deepcopy(model)
    twin.add_module("encoder", OnnxEncoder(path, twin.encoder.embeddings))
    return twin
