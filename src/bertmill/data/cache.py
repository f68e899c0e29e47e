"""The cache of prepared stores: what is in it, and how it is made smaller."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from bertmill.data.prepare import cache_folder
from bertmill.data.store import Store
from bertmill.errors import BertmillError
from bertmill.storage import is_held, remove


@dataclass(frozen=True)
class CachedStore:
    """A prepared store in the cache."""

    folder: Path
    corpus: tuple[str, ...]
    """What it was made of; nothing where the store is damaged."""
    num_tokens: int
    num_bytes: int
    seconds_unused: float
    """Since a run or an evaluation last opened it."""
    in_use: bool
    """Whether another process has it open; it is not removed."""


@dataclass(frozen=True)
class CacheContents:
    """What `cache` found, and what it removed."""

    folder: Path
    num_bytes: int
    """Of the stores that are left."""
    stores: tuple[CachedStore, ...]
    """Those that are left, the one that was used last first."""
    removed: tuple[CachedStore, ...]


def prune_cache(max_seconds: float = math.inf, max_bytes: float = math.inf) -> CacheContents:
    """List the stores of the cache, and remove those that are too old or too many.

    What a killed process left unfinished is removed too.

    Parameters
    ----------
    max_seconds : float
        A store that was not used for longer is removed.
    max_bytes : float
        Of the others those that were used last are kept, as many as fit into so much.
    """
    folder = cache_folder() / "stores"
    for unfinished in folder.glob(".*"):
        locks = list(unfinished.glob("*.lock"))
        if not any(map(is_held, locks)):
            remove(unfinished)
    kept, removed, num_bytes = [], [], 0
    stores = [_describe(path) for path in folder.glob("[!.]*")]
    for store in sorted(stores, key=lambda each: each.seconds_unused):
        fits = store.seconds_unused <= max_seconds and num_bytes + store.num_bytes <= max_bytes
        if fits or store.in_use:
            kept.append(store)
            num_bytes += store.num_bytes
        else:
            remove(store.folder)
            removed.append(store)
    return CacheContents(folder.parent, num_bytes, tuple(kept), tuple(removed))


def _describe(folder: Path) -> CachedStore:
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    seconds = max(0.0, time.time() - folder.stat().st_mtime)
    try:
        store = Store(folder)
    except BertmillError:
        return CachedStore(folder, (), 0, num_bytes, seconds, in_use=False)
    corpus, num_tokens = tuple(store.manifest["corpus"]), store.train.num_tokens
    return CachedStore(folder, corpus, num_tokens, num_bytes, seconds, is_held(store.manifest_file))
