"""Model folders for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from bertmill.disk import folder_that_appears_whole
from bertmill.errors import InputError, ModelError
from bertmill.model.folder import load_model, save_model
from bertmill.model.huggingface import is_bert
from bertmill.use.pooling import Pooling, read_pooling, write_pooling


def export_huggingface(model: str | Path, out: str | Path) -> Path:
    """Write a folder that ``transformers`` and ``sentence-transformers`` open.

    Heads that the model was loaded without are left out. Sentence vectors are pooled as the model's
    own folder says, else as the mean of the token vectors.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ModelError
        The model cannot be opened, or ``transformers`` has no class for it.
    InputError
        `out` exists or cannot be written.
    """
    out = Path(out)
    if os.path.exists(out):
        raise InputError(out, "already exists", "choose another --out")
    loaded = load_model(model)
    section = loaded.model.section
    if not is_bert(section):
        raise ModelError(
            loaded.folder,
            f"is no BERT as published (position_embedding={section.position_embedding}, "
            f"norm={section.norm}), so transformers has no class for it",
            "use it in bertmill, or train one of the recipes tiny to large or d2l",
        )
    longest = section.max_position_embeddings
    if loaded.about is not None:
        longest = min(longest, loaded.about.pairs.max_length)
    pooling = read_pooling(loaded.folder, section.max_position_embeddings) or Pooling(
        "mean", False, longest
    )
    with folder_that_appears_whole(out, InputError) as folder:
        save_model(folder, loaded.model, loaded.tokenizer, loaded.about, loaded.new_weights)
        write_pooling(folder, pooling, section.hidden_size)
    return out
