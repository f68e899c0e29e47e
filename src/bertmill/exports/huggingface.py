"""Model folders for ``transformers`` and ``sentence-transformers``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bertmill.errors import InputError, ModelError
from bertmill.model.architecture import architecture_of
from bertmill.model.folder import load_model, save_model
from bertmill.model.pooling import (
    LENGTH_FILE,
    MODULES_FILE,
    POOLING_MODES,
    Pooling,
    default_pooling,
)
from bertmill.show.card import refuse_license, write_model_card
from bertmill.show.summary import summarize
from bertmill.storage import folder_that_appears_whole, refuse_if_there, write_json
from bertmill.train.run_folder import RunFolder

_MODULE_TYPE = "sentence_transformers.models."


def export_huggingface(
    model: str | Path, out: str | Path, license: str | None, say: Callable[[str], None]
) -> Path:
    """Write a folder that ``transformers`` and ``sentence-transformers`` open.

    Heads that the model was loaded without are left out. Sentence vectors are pooled as the model's
    own folder says, else as the mean of the token vectors.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    license : str, optional
        An identifier such as ``apache-2.0``, for the model card.
    say : callable
        Takes a line about what is left out.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ModelError
        The model cannot be opened, or ``transformers`` has no class for it.
    InputError
        `out` exists or cannot be written, or the license is not an identifier.
    """
    refuse_license(license)
    out = Path(out)
    refuse_if_there(out)
    loaded = load_model(model)
    section = loaded.model.section
    if reason := architecture_of(section).not_in_transformers(section):
        raise ModelError(
            loaded.folder,
            f"{reason}, so transformers has no class for it",
            "use it in bertmill, or train one of the recipes tiny to large or d2l",
        )
    pooling = default_pooling(loaded)
    with folder_that_appears_whole(out, InputError) as folder:
        save_model(
            folder,
            loaded.task_model or loaded.model,
            loaded.tokenizer,
            loaded.about,
            loaded.new_weights,
            pooling.max_length,
        )
        write_pooling(folder, pooling, section.hidden_size)
        run = RunFolder(model)
        summary = summarize(run) if run.holds_run else None
        write_model_card(folder, loaded, pooling, summary, license)
    if loaded.new_parts and loaded.task_model is None:
        say(f"left out: {', '.join(loaded.new_parts)}, which {loaded.folder} does not have")
    return out


def write_pooling(folder: Path, pooling: Pooling, hidden_size: int) -> None:
    """Write the files of ``sentence-transformers`` into a model folder; see `model.pooling`."""
    names = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULE_TYPE + name}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    write_json(folder / MODULES_FILE, modules)
    write_json(folder / LENGTH_FILE, {"max_seq_length": pooling.max_length, "do_lower_case": False})
    config = {"word_embedding_dimension": hidden_size}
    config |= {
        f"pooling_mode_{mode}_token{'s' * (mode == 'mean')}": mode == pooling.mode
        for mode in POOLING_MODES
    }
    (folder / paths[1]).mkdir()
    write_json(folder / paths[1] / "config.json", config)
