"""AdamW, with weight decay where BERT has it, and without the updates that would spoil the run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bertmill.config import OptimizerSection


def make_optimizer(
    model: nn.Module, section: OptimizerSection, kernels: Literal["auto", "plain"] = "auto"
) -> torch.optim.AdamW:
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
        fused=kernels == "auto",
    )


def update(optimizer: torch.optim.AdamW, loss: Tensor, clip_norm: float) -> Tensor:
    """Clip the gradients and update the weights; skip that where something is not finite.

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
    if hasattr(norm, "full_tensor"):  # of parameters in parts on several ranks
        norm = norm.full_tensor()
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    is_skipped = ~(loss.detach().isfinite() & norm.isfinite())
    _step_unless(optimizer, is_skipped)
    optimizer.zero_grad(set_to_none=True)
    return is_skipped


def _step_unless(optimizer: torch.optim.AdamW, is_skipped: Tensor) -> None:
    """Take a step, or leave weights, moments and step counts as they are.

    The plain form waits for the device::

        if not is_skipped:
            optimizer.step()

    The fused optimizer reads `found_inf` on the device by itself, so that the host does not wait.
    Only ``torch.amp.GradScaler`` is meant to set it: torch documents neither that attribute nor the
    one that says whether an optimizer heeds it. Without these the plain form serves.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not is_skipped:
        optimizer.step()
