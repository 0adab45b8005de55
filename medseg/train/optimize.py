"""Optimisers and learning rates; the rate is a function of the step and its place in the schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from medseg.train.course import Course
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


def learning_rate(settings: OptimizerSettings, step: int, course: Course) -> float:
    """Rate of the step that follows `step` finished ones.

    ``wsd`` falls as 1 − √x over its last part, which Hägele et al. 2024 (arXiv:2405.18392) found better than a line.
    """
    rise = min(1.0, (step - course.begin + 1) / course.rise) if course.rise else 1.0
    share = course.share(step)
    falling = max(0.0, 1 - (1 - share) / settings.decay_share)
    falls = {
        "poly": float((1 - share) ** POLY_EXPONENT),
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "constant": 1.0,
        "wsd": 1 - math.sqrt(falling),
    }
    return settings.lr * rise * falls[settings.schedule]
