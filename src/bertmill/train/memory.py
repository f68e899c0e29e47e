"""How much memory a training step takes, and how it is divided so that it fits.

A step is cut into micro-batches, or its blocks are computed a second time in the backward pass.
That is decided before the run starts, by the recipe and the size of the device, never by what
happens to be free there, so that the same command computes the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import torch

from bertmill.config import NetworkSection, Recipe, load_recipe, parse_bytes
from bertmill.errors import RecipeError
from bertmill.model.architecture import architecture_of
from bertmill.model.kernels import vocabulary_loss
from bertmill.model.pretraining import PretrainingModel, shapes_alone
from bertmill.train.validate import SEQUENCES_AT_ONCE

SHARES = {"cpu": 0.6, "cuda": 0.9}
"""Of the device's whole memory, where ``train.memory`` is empty: a machine has other programs."""

_FIXED = {"cpu": 0.45e9, "cuda": 1.0e9}
"""Interpreter, libraries and data; on CUDA the driver's context and cuBLAS's workspace."""
_HOLES = {"cpu": 0.3, "cuda": 0.1}
"""Freed memory between what is in use, for each byte of that: on a CPU measured by
tests/train/test_memory.py, on CUDA assumed."""
_BY_SIZE = ("large", "base", "medium", "small", "mini", "tiny")


@dataclass(frozen=True)
class StepMemory:
    """What a process holds at the peak of a training step, in bytes."""

    weights: int
    gradients: int
    moments: int
    activations: int
    """What the backward pass needs, and the factors in 16 bits with bf16."""
    vocabulary_loss: int
    rest: int
    """Interpreter, libraries, data, and the holes that an allocator leaves."""

    @property
    def total(self) -> int:
        """All of it."""
        return int(sum(astuple(self)))


def estimate(
    recipe: Recipe,
    vocab_size: int,
    num_tokens: int,
    device_type: str,
    recompute: bool = False,
    num_ranks: int = 1,
) -> StepMemory:
    """Tell what a step takes, from what the code keeps for the backward pass.

    Sequences count as long as those of the longest phase may be. A test compares it with what is
    measured on a CPU, to 15 %. A checkpoint takes less than a step, because there are no gradients
    then.

    Parameters
    ----------
    recipe : Recipe
        ``train.precision`` is chosen; ``auto`` counts as fp32.
    vocab_size : int
    num_tokens : int
        Of a micro-batch.
    device_type : str
        ``cpu`` or ``cuda``.
    recompute : bool
        Whether blocks are computed again in the backward pass.
    num_ranks : int
        Processes that train together; ``train.shard`` says what each of them keeps.
    """
    section, length = recipe.model, recipe.longest
    is_bf16, on_cpu = recipe.train.precision == "bf16", device_type == "cpu"
    num_selected = math.ceil(recipe.masking.mask_fraction * num_tokens + num_tokens / length)
    kept = architecture_of(section).activation_bytes(
        section, num_tokens, num_selected, length, is_bf16, on_cpu
    )
    num_blocks = section.num_hidden_layers
    if recompute:  # one block at a time is there as a whole
        in_blocks = num_blocks * kept.block_input + kept.block
    else:
        in_blocks = (num_blocks - 1) * kept.block + kept.last_block
    by_token, parameters = vocab_size * section.hidden_size, _count_parameters(section, vocab_size)
    factors = 2 * (parameters - by_token) if is_bf16 else 0
    # The gradient of the output weights, and the same scaled; a chunk of the logits.
    chunk = 4 * vocab_size * vocabulary_loss.rows_at_once(torch.device(device_type))
    own = math.ceil(parameters / num_ranks) if recipe.train.shard == "full" else parameters
    # Several ranks copy the weights that they compute with, all others and two blocks at a time,
    # and keep whole gradients until those of the last micro-batch are there.
    copied = by_token + 2 * (parameters - by_token) // num_blocks if num_ranks > 1 else 0
    parts = (
        4 * (own + copied),
        4 * (own + (parameters if num_ranks > 1 else 0)),
        8 * own,
        kept.embeddings + in_blocks + factors,
        2 * 4 * by_token + chunk,
    )
    # A validation has no gradients, but many sequences at once.
    validation = (
        SEQUENCES_AT_ONCE * length * 4 * (4 * section.hidden_size + 2 * section.intermediate_size)
    )
    beyond = max(0, validation + 2 * chunk - parts[1] - parts[3] - parts[4])
    rest = _FIXED[device_type] + _HOLES[device_type] * sum(parts) + beyond
    return StepMemory(*parts, int(rest))


@cache
def _count_parameters(section: NetworkSection, vocab_size: int) -> int:
    with shapes_alone():
        return PretrainingModel(section, vocab_size).count_parameters()["total"]


@dataclass(frozen=True)
class Division:
    """How a step is computed so that it fits."""

    micro_batch_tokens: int
    """0: the batch is not divided."""
    recompute: bool


def divide_step(
    recipe: Recipe,
    vocab_size: int,
    device: torch.device,
    say: Callable[[str], None],
    allowed: int,
    num_ranks: int = 1,
    *,
    is_resumed: bool = False,
) -> Division:
    """Choose how a step is computed: whole, in the fewest equal parts, or with recompute too.

    What the recipe gives is taken, and only checked. A run that is resumed keeps its parts if they
    fit; blocks may be computed again there, which changes no bit. A batch that was not divided, but
    no longer fits because fewer ranks share it, is divided.

    Parameters
    ----------
    recipe : Recipe
        Its precision is chosen.
    vocab_size : int
    device : torch.device
    say : callable
        Takes a line where the step is divided.
    allowed : int
        Bytes, of `allowed_memory`.
    num_ranks : int
        Processes that share the sequences of a step.
    is_resumed : bool

    Raises
    ------
    RecipeError
        It cannot fit; the message says what would.
    """
    train, length = recipe.train, recipe.longest
    num_rows = math.ceil(train.batch_size / num_ranks)
    whole, given = num_rows * length, train.micro_batch_tokens
    sizes: Iterable[int] = sorted(
        {math.ceil(num_rows / parts) * length for parts in range(1, num_rows + 1)}, reverse=True
    )
    if given:
        sizes = [min(whole, max(given, length))]
    is_free = train.recompute == "auto" or (is_resumed and not train.recompute)
    choices = (False, True) if is_free else (bool(train.recompute),)
    order = [(recompute, size) for recompute in choices for size in sizes]
    if is_resumed and not given:  # rather to the same bits than in parts
        order = [(recompute, size) for size in sizes for recompute in choices]
    for recompute, size in order:
        needed = estimate(recipe, vocab_size, size, device.type, recompute, num_ranks).total
        if needed <= allowed:
            is_cut = size < whole and not given
            if is_cut or (recompute and is_free):
                parts = math.ceil(whole / size)
                up_to = "up to " if recipe.phases else ""
                of_them = f"{up_to}{parts} micro-batches a step" if parts > 1 else "the whole step"
                more = ", whose blocks are computed twice" if recompute else ""
                say(f"memory: {_show(allowed)} allows {size:,} tokens at once: {of_them}{more}")
            return Division(size if is_cut else given, recompute)
    raise RecipeError(
        f"train.memory={train.memory}" if train.memory and not is_resumed else "memory",
        f"a step needs {_show(needed)} at least, {_show(allowed)} is allowed",
        "go on with more memory or more ranks"
        if is_resumed
        else _what_fits(recipe, vocab_size, device.type, allowed, num_ranks),
    )


def _what_fits(
    recipe: Recipe, vocab_size: int, device_type: str, allowed: int, num_ranks: int
) -> str:
    """Name a longest sequence of this network, or a network, of which a step fits."""

    def fits(network: NetworkSection, length: int) -> bool:
        pairs = recipe.pairs.model_copy(update={"max_length": length})
        changed = recipe.model_copy(update={"model": network, "pairs": pairs, "phases": []})
        needed = estimate(changed, vocab_size, length, device_type, True, num_ranks)
        return needed.total <= allowed

    given, length = recipe.train.micro_batch_tokens, recipe.longest
    if given > length and fits(recipe.model, length):
        return "lower train.micro_batch_tokens, or leave it out"
    if fits(recipe.model, length):
        return "set train.recompute=true"
    shorter = [length // 2**n for n in range(1, 7) if length // 2**n >= 8]
    for fitting in (n for n in shorter if fits(recipe.model, n)):
        return f"pairs.max_length={fitting} fits"
    for name in (name for name in _BY_SIZE if fits(load_recipe(name).model, length)):
        return f"the network of the recipe {name} fits"
    return "allow more"


def allowed_memory(recipe: Recipe, device: torch.device, *, is_resumed: bool = False) -> int:
    """Return the bytes that a step may take here: ``train.memory``, or its share of the device.

    A run that is resumed may have all of the device, so that it goes on with the same bits.

    Raises
    ------
    RecipeError
        ``train.memory`` is more than there is.
    """
    whole, given = device_memory(device), parse_bytes(recipe.train.memory)
    if is_resumed:
        return whole
    if given is not None and given > whole:
        raise RecipeError(
            f"train.memory={recipe.train.memory}",
            f"is more than the {_show(whole)} that this process can have",
            "lower it, or leave it out",
        )
    return int(SHARES[device.type] * whole if given is None else given)


def _show(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def device_memory(device: torch.device) -> int:
    """Return the bytes that this process may take at all, whether they are free now or not.

    On a CPU that is the machine's memory or the limit of the control group (of a container), by the
    number of ranks that ``torchrun`` started here.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits()]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cgroup_limits(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Read the limits of this process's control group and of those above it, both versions."""
    limits: list[int] = []
    for line in own.read_text("utf-8").splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (
            (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        )
        group = top / path.strip("/")
        for folder in [group, *group.parents]:
            file = folder / name
            text = file.read_text("utf-8").strip() if file.is_file() else ""
            limits += [int(text)] if text.isdecimal() else []  # without a limit: max
    return limits
