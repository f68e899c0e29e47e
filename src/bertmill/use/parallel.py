"""Batches side by side on the CPU, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

from bertmill.arrays import Ints

_Result = TypeVar("_Result")
_one_caller = Lock()


def map_batches(
    compute: Callable[[Ints], _Result], batches: Sequence[Ints], device: torch.device
) -> list[_Result]:
    """Compute something for each batch, one batch per core, so that no core waits in every layer.

    On the CPU this sets ``torch.set_num_threads(1)``, a setting of the whole process, while the
    batches are computed, and restores it afterwards. Callers from several threads take turns.

    Parameters
    ----------
    compute : callable
        Takes the rows of a batch; must be safe to call from several threads.
    batches : sequence of ndarray of int64
    device : torch.device
        On anything but the CPU the batches are computed one after another.
    """
    with _one_caller:
        num_threads = torch.get_num_threads()
        if device.type != "cpu" or num_threads == 1 or len(batches) == 1:
            return [compute(batch) for batch in batches]
        try:
            with ThreadPoolExecutor(num_threads, "", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(compute, batches))
        finally:
            torch.set_num_threads(num_threads)  # new threads would inherit the workers' setting
