"""AdamW, with weight decay where BERT has it, and without the updates that would spoil the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertmill.config import OptimizerSection


def make_optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Group the parameters: biases and LayerNorm, all of them vectors, are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=section.lr,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        fused=True,
    )


def update(optimizer: torch.optim.AdamW, loss: Tensor, clip_norm: float) -> Tensor:
    """Clip the gradients and update the weights; skip that where something is not finite.

    The fused kernel reads on the device whether to skip (weights, moments and step counts stay as
    they are), so that the host never waits for the answer.

    Parameters
    ----------
    optimizer : AdamW
    loss : Tensor
        Whose gradients the parameters hold, [].
    clip_norm : float
        Largest norm of the whole gradient; 0: no clipping.

    Returns
    -------
    Tensor
        Whether the update was skipped, [], bool, on the device.
    """
    parameters = [
        p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    is_skipped = ~(loss.detach().isfinite() & norm.isfinite())
    optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return is_skipped
