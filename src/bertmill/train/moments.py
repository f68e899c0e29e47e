"""Weights and moments of a model whose parameters may be in parts, one on each rank."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from bertmill.errors import RunError
from bertmill.model.folder import save_tensors
from bertmill.model.pretraining import PretrainingModel, shapes_alone
from bertmill.train.world import World

_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


def gather_model(model: PretrainingModel, world: World) -> PretrainingModel | None:
    """Return the whole model on rank 0, on the CPU where ranks share it, and None elsewhere."""
    if world.size == 1:
        return model
    from torch.distributed.fsdp import FSDPModule

    for part in model.modules():
        if isinstance(part, FSDPModule):  # validation keeps weights gathered
            part.reshard()
    state = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor()
        if world.speaks:
            state[name] = whole.cpu()
    if not world.speaks:
        return None
    with shapes_alone():
        gathered = PretrainingModel(model.section, model.vocab_size, model.kernels)
    gathered.load_state_dict(state, assign=True)
    return gathered


def save_moments(
    folder: Path, model: PretrainingModel, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Write the optimizer's state by parameter name: on rank 0, or each rank its own part."""
    if not (world.speaks or world.shards):
        return
    tensors = {}
    for name, parameter in model.named_parameters():
        for key in _STATE_KEYS if parameter in optimizer.state else ():
            value = optimizer.state[parameter][key].detach()
            local = value.to_local() if hasattr(value, "to_local") else value
            tensors[f"{name}/{key}"] = local.cpu().contiguous()
    save_tensors(folder / moments_file(world.rank, world), tensors)


def moments_file(rank: int, world: World) -> str:
    """Name the file that a rank writes its moments to; unless they are in parts, all have one."""
    if not world.shards:
        return "optimizer.safetensors"
    return f"optimizer-{rank}-of-{world.size}.safetensors"


def restore_moments(
    folder: Path, model: PretrainingModel, optimizer: torch.optim.Optimizer
) -> None:
    """Put the optimizer's state back, bit for bit; of a model on any number of ranks."""
    paths = sorted(folder.glob("optimizer*.safetensors"), key=_rank_of)
    try:
        with ExitStack() as opened:
            files = [opened.enter_context(safetensors.safe_open(p, "pt")) for p in paths]
            known = set(files[0].keys())
            for name, parameter in model.named_parameters():
                keys = [key for key in _STATE_KEYS if f"{name}/{key}" in known]
                state = {key: _join([f.get_tensor(f"{name}/{key}") for f in files]) for key in keys}
                if state:
                    _refuse_other_shapes(state, parameter, paths[0], name)
                    placed = {key: _place(tensor, parameter) for key, tensor in state.items()}
                    optimizer.state[parameter] = placed
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(paths[0], f"cannot be read ({error})", "start a new run") from None


def _rank_of(path: Path) -> int:
    return int((re.findall(r"\d+", path.name) or ["0"])[0])


def _join(parts: list[Tensor]) -> Tensor:
    """Join what the ranks had of a tensor: its first dimension is what is dealt out."""
    return torch.cat(parts) if parts[0].ndim else parts[0]


def _refuse_other_shapes(
    state: dict[str, Tensor], parameter: Tensor, path: Path, name: str
) -> None:
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    found = {key: tensor.shape for key, tensor in state.items()}
    if found != shapes or any(tensor.dtype != torch.float32 for tensor in state.values()):
        raise RunError(path, f"does not fit {name}", "start a new run")


def _place(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Copy a tensor to where a parameter is; of one in parts, this rank's part."""
    tensor = tensor.to(parameter.device)
    if not (tensor.ndim and hasattr(parameter, "device_mesh")):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
