"""How good a model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bertmill.api.arguments import (
    Sources,
    list_sources,
    refuse_no_name,
    refuse_settings_without_text,
)
from bertmill.errors import InputError
from bertmill.evaluation.frozen_pairs import FrozenScores, evaluate_frozen_pairs
from bertmill.evaluation.held_out import evaluate_held_out
from bertmill.evaluation.minimal_pairs import MinimalPairScores, evaluate_minimal_pairs
from bertmill.evaluation.tasks import AllTaskScores, evaluate_tasks
from bertmill.model.folder import load_model
from bertmill.train.device import open_device
from bertmill.train.progress import RunProgress
from bertmill.train.validate import HeldOutScores


def evaluate(
    model: str | Path,
    *,
    held_out: Sources = (),
    frozen_pairs: str | Path | None = None,
    minimal_pairs: str | Path | None = None,
    tasks: str | Path | None = None,
    settings: Sequence[str] = (),
    mask_rest_of_word: bool = False,
    seeds: int = 3,
    probe_only: bool = False,
    device: str = "auto",
    stream: IO[str] | None = None,
) -> HeldOutScores | FrozenScores | MinimalPairScores | AllTaskScores:
    """Judge a model: give one of `held_out`, `frozen_pairs`, `minimal_pairs` and `tasks`.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    held_out : str, path, or sequence of them
        Text, as a corpus. It is cut into pairs and masked as the model's own was; where a folder
        does not say how that was, as the recipe's defaults are.
    frozen_pairs : str or Path, optional
        A file of pairs whose masks are drawn already; for word-level vocabularies.
    minimal_pairs : str or Path, optional
        A file of sentence pairs, ``sentence_good`` and ``sentence_bad``, of which the first should
        be more probable.
    tasks : str or Path, optional
        A folder with a folder for each labeled task, ``train`` and ``dev`` files in it: what a
        linear probe and fine-tuning reach, beside what is reached without pretraining.
    settings : sequence of str
        With `held_out`: changes to the sections ``text``, ``pairs`` and ``masking``.
    mask_rest_of_word : bool
        With `minimal_pairs`: mask the later pieces of a word too (Kauf and Ivanova 2023).
    seeds : int
        With `tasks`: how often what depends on chance is repeated.
    probe_only : bool
        With `tasks`: leave fine-tuning out, which takes most of the time.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    stream : file, optional
        Where progress goes; standard output by default.

    Raises
    ------
    BertmillError
        Anything that the caller can fix, in one line.
    """
    files = {
        "--frozen-pairs": frozen_pairs,
        "--minimal-pairs": minimal_pairs,
        "--tasks": tasks,
    }
    for option, value in files.items():
        refuse_no_name(option, value)
    sources = list_sources(held_out, "--held-out")
    if bool(sources) + sum(value is not None for value in files.values()) != 1:
        raise InputError(
            "evaluate", f"takes one of --held-out, {', '.join(files)}", "give one of them"
        )
    refuse_settings_without_text(settings, sources)
    if mask_rest_of_word and minimal_pairs is None:
        raise InputError("--mask-rest-of-word", "is for minimal pairs", "give --minimal-pairs")
    if probe_only and tasks is None:
        raise InputError("--probe-only", "is for labeled tasks", "give --tasks")
    loaded, where = load_model(model), open_device(device)
    with RunProgress(stream) as progress:
        if frozen_pairs is not None:
            return evaluate_frozen_pairs(loaded, str(frozen_pairs), where)
        if minimal_pairs is not None:
            return evaluate_minimal_pairs(loaded, str(minimal_pairs), mask_rest_of_word, where)
        if tasks is not None:
            return evaluate_tasks(loaded, str(tasks), seeds, not probe_only, where, progress.say)
        return evaluate_held_out(loaded, sources, settings, where, progress.say)
