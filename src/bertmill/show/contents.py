"""What is inside a recipe, a store, a run or a model folder, as plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from bertmill.config import MaskingSection, ModelSection, PairsSection, load_recipe, recipe_names
from bertmill.data.batch import Batch, Batches
from bertmill.data.store import Store, is_store
from bertmill.errors import CorpusError, InputError
from bertmill.model.folder import load_model, model_folder
from bertmill.model.pretraining import PretrainingModel, shapes_alone
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.run_folder import RunFolder


def describe(target: str | Path, num_pairs: int = 3) -> dict[str, Any]:
    """Describe a recipe (name or file), a store, a run or a model folder.

    Parameters
    ----------
    target : str or Path
    num_pairs : int
        Training sequences of a store or run to show, masks visible: ``[MASK](senate)`` hides
        "senate", ``dog(senate)`` shows a random token, ``senate(=)`` is shown but predicted.

    Returns
    -------
    dict
        ``kind`` says which; the other keys are documented in the README.

    Raises
    ------
    InputError
        None of the four.
    """
    path = Path(target)
    if str(target) in recipe_names() or os.path.isfile(path):
        return _describe_recipe(str(target))
    if is_store(path):
        return _describe_store(path, num_pairs)
    if os.path.isfile(path / "recipe.toml"):
        return _describe_run(RunFolder(path), num_pairs)
    if os.path.isdir(path):
        if os.path.isfile(path / "config.json") or os.path.isdir(path / "model"):
            return _describe_model(path)
        raise InputError(path, "is no store, run or model folder (no config.json)", "give another")
    raise InputError(
        target,
        "is not there",
        f"give a recipe ({', '.join(recipe_names())}), a store, a run or a model folder",
    )


def count_parameters(section: ModelSection, vocab_size: int) -> dict[str, int]:
    """Count a network's parameters without making it."""
    with shapes_alone():
        return PretrainingModel(section, vocab_size).count_parameters()


def _describe_recipe(target: str) -> dict[str, Any]:
    recipe = load_recipe(target)
    # How many words a text has is only known when it is read.
    is_known = recipe.tokenizer.kind == "wordpiece"
    return {
        "kind": "recipe",
        "parameters": count_parameters(recipe.model, recipe.tokenizer.vocab_size)
        if is_known
        else None,
        "recipe": recipe.model_dump(),
    }


def _describe_store(path: Path, num_pairs: int) -> dict[str, Any]:
    store = Store(path)
    split = store.manifest["text"]["sentences"] == "spaced-period"
    pairs = PairsSection(kind="sentences" if split else "segments")
    return {
        "kind": "store",
        **_counts(store),
        "text": store.manifest["text"],
        "pairs": _show_pairs(store, pairs, MaskingSection(), 1, num_pairs),
    }


def _describe_run(run: RunFolder, num_pairs: int) -> dict[str, Any]:
    recipe, facts = run.read()
    last = {record["split"]: record for record in run.metrics()}
    found: dict[str, Any] = {"kind": "run", "facts": facts, "last": last}
    if run.model.exists():
        found["model"] = _describe_model(run.model)
    if is_store(facts["store"]):
        store = Store(facts["store"])
        found |= _counts(store)
        found["pairs"] = _show_pairs(
            store, recipe.pairs, recipe.masking, recipe.train.seed, num_pairs
        )
    return {**found, "recipe": recipe.model_dump()}


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


def _counts(store: Store) -> dict[str, Any]:
    splits = {"train": store.train, "held_out": store.held_out}
    return {
        "vocab_size": store.manifest["vocab_size"],
        "tokenizer_identity": store.manifest["tokenizer_identity"],
        "splits": {
            name: {
                "num_documents": split.num_documents,
                "num_sentences": split.num_sentences,
                "num_tokens": split.num_tokens,
            }
            for name, split in splits.items()
        },
    }


def _show_pairs(
    store: Store, pairs: PairsSection, masking: MaskingSection, seed: int, num_pairs: int
) -> list[dict[str, Any]]:
    if num_pairs < 1:
        return []
    tokenizer = store.tokenizer
    try:
        batches = Batches(store.train, tokenizer, pairs, masking, 1, seed, "the corpus")
    except CorpusError:  # a store is good even where these pairs cannot be made of it
        return []
    shown = []
    for i in range(min(num_pairs, batches.num_examples)):
        batch = batches.batch_of(np.array([i]))
        labels = batch.next_sentence_labels
        shown.append(
            {
                "is_next": bool(labels[0]) if len(labels) else None,
                "text": _with_masks_visible(batch, tokenizer),
            }
        )
    return shown


def _with_masks_visible(batch: Batch, tokenizer: Tokenizer) -> str:
    names = tokenizer.tokens(batch.token_ids)
    for at, label in zip(batch.masked_at.tolist(), batch.masked_labels.tolist(), strict=True):
        true = "=" if batch.token_ids[at] == label else tokenizer.tokens([label])[0]
        names[at] += f"({true})"
    return " ".join(names)
