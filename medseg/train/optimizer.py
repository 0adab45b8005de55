"""Optimisers and learning rates; the rate is a function of the step and its place in the schedule."""

from __future__ import annotations

import torch
from torch import nn

from medseg.train.parameter_groups import parameter_groups
from medseg.train.settings import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, over all trained parameters."""
    parameters = parameter_groups(model, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
