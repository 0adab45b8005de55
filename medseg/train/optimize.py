"""Optimisers and learning rates; the rate is a function of the step, so resuming needs no state."""

from __future__ import annotations

import math

import torch
from torch import nn

from medseg.train.parameters import parameter_groups
from medseg.train.settings import OptimizerSettings

POLY_EXPONENT = 0.9


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all parameters that are trained."""
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


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Rate of the step that follows `step` finished ones."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    progress = step / steps
    falls = {
        "poly": float((1 - progress) ** POLY_EXPONENT),
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": 1.0,
    }
    return settings.lr * rise * falls[settings.schedule]
