"""What is inside a recipe, a store, a run or a model folder, as plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from bertmill.config import MaskingSection, PairsSection, load_recipe, recipe_names
from bertmill.data.batch import Batch, Batches
from bertmill.data.store import Store, is_store
from bertmill.errors import CorpusError, InputError
from bertmill.model.folder import load_model
from bertmill.model.pretraining import PretrainingModel, shapes_alone
from bertmill.storage import model_folder
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.run_folder import RunFolder


def describe(target: str | Path, num_pairs: int = 3, check: bool = False) -> dict[str, Any]:
    """Describe a recipe (name or file), a store, a run or a model folder.

    Parameters
    ----------
    target : str or Path
    num_pairs : int
        Training sequences of a store or run to show; see `masked_samples`.
    check : bool
        Read all of a store, or of a run's store, and compare it with its hashes.

    Returns
    -------
    dict
        ``kind`` says which of the four; the other keys are documented.

    Raises
    ------
    InputError
        Nothing is there.
    ModelError
        A folder of something else.
    StoreError
        With `check`: the store is damaged.
    """
    path = Path(target)
    if str(target) in recipe_names() or os.path.isfile(path):
        return _describe_recipe(str(target))
    if is_store(path):
        return _describe_store(path, num_pairs, check)
    if os.path.isfile(path / "recipe.toml"):
        return _describe_run(RunFolder(path), num_pairs, check)
    if os.path.isdir(path):
        return _describe_model(path)
    raise InputError(
        target,
        "does not exist",
        f"give a recipe ({', '.join(recipe_names())}), a store, a run or a model folder",
    )


def _describe_recipe(target: str) -> dict[str, Any]:
    recipe = load_recipe(target)
    counts = None
    # Distinct words are not known without the text, and `continue` takes any model's network.
    if recipe.tokenizer.kind == "wordpiece" and recipe.name != "continue":
        with shapes_alone():
            model = PretrainingModel(recipe.model, recipe.tokenizer.vocab_size)
        counts = model.count_parameters()
    return {"kind": "recipe", "parameters": counts, "recipe": recipe.model_dump()}


def _describe_store(path: Path, num_pairs: int, check: bool) -> dict[str, Any]:
    store, counts = _open_store(path, check)
    split = store.manifest["text"]["sentences"] == "spaced-period"
    pairs = PairsSection(kind="sentences" if split else "segments")
    return {
        "kind": "store",
        **counts,
        "text": store.manifest["text"],
        **masked_samples(store, pairs, MaskingSection(), 1, num_pairs),
    }


def _describe_run(run: RunFolder, num_pairs: int, check: bool) -> dict[str, Any]:
    recipe, facts = run.read()
    last = {r.to_dict()["split"]: r.to_dict() for records in run.metrics() for r in records[-1:]}
    found: dict[str, Any] = {"kind": "run", "facts": facts.model_dump(), "last": last}
    if run.model.exists():
        found["model"] = _describe_model(run.model)
    if is_store(facts.store):
        store, counts = _open_store(facts.store, check)
        pairs, masking, seed = recipe.phase_pairs()[0], recipe.masking, recipe.train.seed
        found |= {**counts, **masked_samples(store, pairs, masking, seed, num_pairs)}
    return {**found, "recipe": recipe.model_dump()}


def _open_store(path: str | Path, check: bool) -> tuple[Store, dict[str, Any]]:
    """Open a store, and count what is in it."""
    store = Store(path)
    if check:
        store.check()
    counted = ("num_documents", "num_sentences", "num_tokens")
    splits = {"train": store.train, "held_out": store.held_out}
    return store, {
        "vocab_size": store.manifest["vocab_size"],
        "tokenizer_identity": store.manifest["tokenizer_identity"],
        "splits": {
            name: {what: getattr(split, what) for what in counted} for name, split in splits.items()
        },
    }


def _describe_model(path: Path) -> dict[str, Any]:
    loaded = load_model(path)
    return {
        "kind": "model",
        "folder": str(model_folder(path)),
        "parameters": loaded.model.count_parameters(),
        "vocab_size": loaded.model.vocab_size,
        "tokenizer_identity": loaded.tokenizer.identity,
        "special_tokens": list(loaded.tokenizer.special_tokens),
        "new_weights": list(loaded.new_weights),
        "model": loaded.model.section.model_dump(),
    }


def masked_samples(
    store: Store, pairs: PairsSection, masking: MaskingSection, seed: int, count: int
) -> dict[str, Any]:
    """Draw the first training sequences of a run; none where the store cannot give such pairs.

    Returns
    -------
    dict
        ``seen_fraction``: share of the training tokens that an epoch sees; None without sequences.
        ``pairs``: of each sequence ``is_next``, whether the second segment follows the first (None
        without pairs), and ``text``: ``[MASK](senate)`` hides "senate", ``dog(senate)`` shows a
        random token, ``senate(=)`` is shown but predicted.
    """
    nothing: dict[str, Any] = {"seen_fraction": None, "pairs": []}
    if count < 1:
        return nothing
    tokenizer = store.tokenizer
    try:
        batches = Batches(store.train, tokenizer, pairs, masking, 1, seed, "the corpus")
    except CorpusError:
        return nothing
    samples = []
    for i in range(min(count, batches.num_examples)):
        batch = batches.batch_of(np.array([i]))
        labels = batch.next_sentence_labels
        is_next = bool(labels[0]) if len(labels) else None
        samples.append({"is_next": is_next, "text": _with_masks_visible(batch, tokenizer)})
    return {"seen_fraction": batches.seen_fraction(), "pairs": samples}


def _with_masks_visible(batch: Batch, tokenizer: Tokenizer) -> str:
    names = tokenizer.tokens(batch.token_ids)
    for at, label in zip(batch.masked_at.tolist(), batch.masked_labels.tolist(), strict=True):
        true = "=" if batch.token_ids[at] == label else tokenizer.tokens([label])[0]
        names[at] += f"({true})"
    return " ".join(names)
