"""AdamW, with weight decay where BERT has it."""

from __future__ import annotations

import torch
from torch import nn

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
