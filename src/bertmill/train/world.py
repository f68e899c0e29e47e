"""The processes that train together. Everything that they must share goes through `World`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from bertmill.config import TrainSection
from bertmill.errors import InputError
from bertmill.model.pretraining import PretrainingModel
from bertmill.train.device import open_device
from bertmill.train.watch import agree_on_start, begin_watch

if TYPE_CHECKING:  # takes a second to import
    from torch._C._distributed_c10d import Store
    from torch.distributed.fsdp import FSDPModule

Value = TypeVar("Value")

# Preparing may take so long on one machine that the others have done already.
_PATIENCE = timedelta(days=7)
_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class World:
    """One of the processes that train together, with its device.

    Whatever a run decides from outside the recipe (a clock, a signal, a measurement, a free folder)
    is decided by all ranks together, and whatever it adds up over the examples of a step is added
    up over all ranks. A single process is rank 0 of 1, and all of this does nothing.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    shards: bool = False
    """Whether each rank keeps a part of weights and moments (Rajbhandari et al. 2020, stage 3),
    instead of all of them."""
    store: Store | None = None
    """Small values that ranks leave for one another."""

    @property
    def speaks(self) -> bool:
        """Whether this rank writes to the run's folder and to the screen."""
        return self.rank == 0

    # --- the step --------------------------------------------------------------------------------

    def wrap(self, model: PretrainingModel) -> None:
        """Let the backward pass of a model sum its gradients over all ranks, in place.

        Each block is a group of parameters that travels by itself; all else (embeddings and heads,
        which share weights) is the root's group.

        The model must be on the device, and the same on all ranks.
        """
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        shape, names = (
            ((self.size,), ("shard",)) if self.shards else ((self.size, 1), ("copy", "shard"))
        )
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        for part in (*model.encoder.blocks, model):
            fully_shard(part, mesh=mesh)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                # Sums, not means: the loss is divided by the counts of all ranks already.
                part.set_force_sum_reduction_for_comms(True)
                part.set_gradient_divide_factor(1.0)
        register_fsdp_forward_method(model, "score")

    def will_reduce(self, model: PretrainingModel, is_wanted: bool) -> None:
        """Say whether the next backward pass sums gradients over ranks, or keeps its own."""
        if self.size > 1:
            cast("FSDPModule", model).set_requires_gradient_sync(is_wanted)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over all ranks, in place and on the device."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    # --- between steps ---------------------------------------------------------------------------

    def totals(self, *numbers: float) -> list[float]:
        """Add numbers up over all ranks."""
        return self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def largest(self, *numbers: float) -> list[float]:
        """Return the largest of each number that a rank has."""
        values = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values.tolist()

    def each(self, value: Value) -> list[Value]:
        """Return the value of every rank; they must be such as JSON has."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        sizes = [int(size) for size in self._gather(torch.tensor(len(text)))]
        data = torch.zeros(max(sizes), dtype=torch.uint8)
        data[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        found = zip(self._gather(data), sizes, strict=True)
        return [json.loads(one[:size].numpy().tobytes()) for one, size in found]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, tensor)
        return gathered

    def by_first(self, make: Callable[[], Value]) -> Value:
        """Return on every rank what rank 0 makes, a value that JSON has."""
        return self.each(make() if self.speaks else None)[0]  # type: ignore[return-value]

    def agree(self, value: Value) -> Value:
        """Return rank 0's value on every rank."""
        return self.by_first(lambda: value)

    def wait(self) -> None:
        """Wait until every rank has come here."""
        self.each(None)

    def wait_for_all(self) -> None:
        """Wait until every rank has come here, however long that takes."""
        if self.store is not None:
            time = self.store.add(f"came/{self.rank}", 1)
            self.store.set(f"here/{time}/{self.rank}", "")
            self.store.wait([f"here/{time}/{rank}" for rank in range(self.size)], _PATIENCE)

    def refuse_unless_same(self, values: Mapping[str, Any]) -> None:
        """Raise `InputError` where a rank was started with other values than rank 0."""
        for name, first in self.agree(dict(values)).items():
            if values.get(name) != first:
                raise InputError(
                    name,
                    f"is {values.get(name)!r} here and {first!r} on rank 0",
                    "start all ranks with the same command on the same text",
                )


def open_world(section: TrainSection) -> World:
    """Join the processes that torchrun has started with this one, if it has.

    Of several CUDA devices on a machine each rank takes its own.
    """
    device = section.device
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    if size > 1 and device.startswith("cuda:") and section.device == device:
        raise InputError(
            f"train.device={device}",
            "would be the same device for every rank of a machine",
            "set train.device=cuda: each rank takes its own",
        )
    opened = open_device(device)
    if size == 1:
        return World(opened)
    if opened.type == "cuda":
        torch.cuda.set_device(opened)
    store = _join(opened.type, section.timeout_seconds)
    return World(opened, int(os.environ["RANK"]), size, section.shard == "full", store)


_joined: Store | None = None


def _join(device_type: str, timeout_seconds: float) -> Store:
    """Join the other ranks, once in a process."""
    global _joined
    if _joined is not None:
        return _joined
    # torch exports these without saying so.
    distributed: Any = torch.distributed
    store, rank, size = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(agree_on_start(store, rank, size), store)
    watch = begin_watch(distributed.PrefixStore("watch", store), rank, size, timeout_seconds)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=distributed.PrefixStore("groups", store),
        rank=rank,
        world_size=size,
        # The watch can say which rank it was, so it is to speak first.
        timeout=timedelta(seconds=2 * timeout_seconds + _GRACE_SECONDS),
    )
    watch.begin()
    _joined = distributed.PrefixStore("bertmill", store)
    return _joined
