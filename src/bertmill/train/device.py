"""Where a run computes: the device, its name and its speed, and batches copied to it."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils import deterministic

from bertmill.arrays import Ints
from bertmill.data.batch import Batch
from bertmill.errors import RecipeError
from bertmill.model.packed import PackedTokens, Selection, copy_to
from bertmill.model.pretraining import PretrainingInput

# Wide enough that the product is all that counts, and done often enough to see the best.
_PEAK_WIDTH, _PEAK_PRODUCTS = {"cpu": 1024, "cuda": 8192}, 6


def open_device(name: str) -> torch.device:
    """Return the device of ``train.device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    RecipeError
        An unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    where, fix = f"train.device={name}", "set auto, cpu, cuda or cuda:N"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RecipeError(where, "is not a device that bertmill trains on", fix)
    if name != "cpu":  # `repeatable_kernels` needs it, and cuBLAS reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(where, f"cannot be used ({str(error).splitlines()[0]})", fix) from None


def device_name(device: torch.device) -> str:
    """Name the device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def repeatable_kernels(device: torch.device) -> Iterator[None]:
    """Have the same bits computed from the same numbers, on CUDA too.

    On a CPU they are, as long as rows are taken with ``index_select`` and ``F.embedding``.
    """
    before = torch.are_deterministic_algorithms_enabled()
    filling: Any = deterministic  # a module, whose setting only its class knows
    filled_before = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cuda")
    # Else every new tensor is filled first; none is read before it is written.
    filling.fill_uninitialized_memory = filled_before and device.type != "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        filling.fill_uninitialized_memory = filled_before


def measure_peak_flops(device: torch.device, precision: str) -> float:
    """Measure operations per second of a wide matrix product, the best of several."""
    width = _PEAK_WIDTH[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.rand(2, width, width, device=device).to(dtype)
    best = math.inf
    for _ in range(_PEAK_PRODUCTS):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * width**3 / best


def to_device(batch: Batch, device: torch.device) -> PretrainingInput:
    """Copy a batch to the device, without waiting; on a CPU the arrays' memory is shared.

    Off the CPU a last sequence fills it up, so that few sizes ever come: see `num_filler`.
    """
    if device.type != "cuda":
        return _to_device(batch, device)
    copies, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):  # beside what is being computed
        made = _to_device(batch, device)
    computing.wait_stream(copies)
    for tensor in (*made.packed[:4], *made.selection[:2], *made[2:5]):
        tensor.record_stream(computing)  # so that no other copy gets its memory before it is read
    return made


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _to_device(batch: Batch, device: torch.device) -> PretrainingInput:
    def tensor(array: Ints, filler: int = 0, value: int = 0) -> torch.Tensor:
        filled = np.pad(array, (0, filler), constant_values=value) if filler else array
        return copy_to(device, torch.from_numpy(filled))

    starts, selected_at, size = batch.sequence_starts, batch.selected_at, len(batch.token_ids)
    selected_starts = np.searchsorted(selected_at, starts)
    tokens = selected = 0
    if has_filler := _takes_filler(device):
        longest = int(np.diff(starts).max())
        tokens, selected = num_filler(size, longest), num_filler(len(selected_at), longest)
        starts = np.append(starts, size + tokens)
        selected_starts = np.append(selected_starts, len(selected_at) + selected)
    return PretrainingInput(
        PackedTokens(
            tensor(batch.token_ids, tokens),
            tensor(batch.segment_ids, tokens),
            tensor(batch.position_ids, tokens),
            tensor(starts.astype(np.int32)),
            np.diff(starts).tolist(),
        ),
        Selection(
            tensor(selected_at, selected, size),  # the filler's first token, again and again
            tensor(selected_starts.astype(np.int32)),
            np.diff(selected_starts).tolist(),
        ),
        tensor(np.searchsorted(selected_at, batch.masked_at)),
        tensor(batch.masked_labels),
        tensor(batch.next_sentence_labels),
        has_filler,
    )


def _takes_filler(device: torch.device) -> bool:
    return device.type != "cpu"


def num_filler(size: int, longest: int) -> int:
    """Count what fills a size up to a multiple of a power of two: one at least, 1 % of it at most.

    Batches of about 30,000 tokens become multiples of 256, micro-batches of just below 16,384
    become that. No filler is longer than `longest`; below a hundred it is one.
    """
    unit = 1 << max(0, min(size // 100, longest).bit_length() - 1)
    return unit - size % unit
