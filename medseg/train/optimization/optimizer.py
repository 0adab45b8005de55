"""Optimisers and learning rates; the rate is a function of the step and its place in the schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medseg.train.optimization.parameter_groups import parameter_groups
from medseg.train.settings import OptimizerSettings


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, over all trained parameters.

    Args:
        model: Model whose trained parameters require gradients.
        settings: Optimiser and learning rate.
        fused: Update all parameters in one kernel, as is fastest on CUDA devices.

    Returns:
        The optimiser.
    """
    parameters = parameter_groups(model, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser that may have run on another kind of device.

    Args:
        optimizer: Optimiser, which keeps its own implementation: fused or not.
        state: State dict of an optimiser over the same parameters.
    """
    # Before loading, because the place of the counters of AdamW depends on it.
    groups = [
        {**saved, "fused": own["fused"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
