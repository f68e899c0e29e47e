"""Batches of similar length side by side on the CPU, one thread each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from bertmill.arrays import Ints

_TOKENS_AT_ONCE = 2048
"""As many as keep a core's matrix products busy and their results in its cache."""

_Result = TypeVar("_Result")
_one_caller = Lock()


def map_by_length(
    compute: Callable[[Ints], _Result], lengths: Ints, device: torch.device
) -> list[tuple[Ints, _Result]]:
    """Compute something for sequences, a batch of similar length per core and at a time.

    On the CPU this sets ``torch.set_num_threads(1)``, a setting of the whole process, while the
    batches are computed, and restores it afterwards: with one thread per batch no core waits in
    every layer. Callers from several threads take turns.

    Parameters
    ----------
    compute : callable
        Takes the rows of a batch; must be safe to call from several threads.
    lengths : ndarray of int64
        Tokens of each sequence.
    device : torch.device
        On anything but the CPU the batches are computed one after another.

    Returns
    -------
    list of tuple
        The rows of each batch, and what was computed for them.
    """
    batches = group_by_length(lengths)
    with _one_caller:
        num_threads = torch.get_num_threads()
        if device.type != "cpu" or num_threads == 1 or len(batches) == 1:
            return [(rows, compute(rows)) for rows in batches]
        try:
            with ThreadPoolExecutor(num_threads, "", torch.set_num_threads, (1,)) as pool:
                return list(zip(batches, pool.map(compute, batches), strict=True))
        finally:
            torch.set_num_threads(num_threads)  # new threads would inherit the workers' setting


def group_by_length(lengths: Ints, tokens_at_once: int = _TOKENS_AT_ONCE) -> list[Ints]:
    """Group rows, longest first, into groups of about so many tokens, each of one row or more."""
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    group = (np.cumsum(lengths[order]) - 1) // tokens_at_once
    return np.split(order, np.flatnonzero(np.diff(group)) + 1)
