"""Learning rates are functions of the step."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.train.optimization.optimizer import build_optimizer
from medseg.train.optimization.schedule import ScheduleProgress
from medseg.train.optimization.schedule import learning_rate as rate_on_course
from medseg.train.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return the learning rate in a training of a fixed number of steps."""
    return rate_on_course(settings, step, ScheduleProgress(0, settings.warmup_steps, 0, 0.0, steps))


def test_poly_is_exact():
    settings = OptimizerSettings(lr=0.01)
    assert [learning_rate(settings, step, 1000) for step in (0, 250, 500, 999)] == [
        0.01,
        0.01 * 0.75**0.9,
        0.01 * 0.5**0.9,
        0.01 * (1 - 999 / 1000) ** 0.9,
    ]
    assert learning_rate(settings, 500, 1000) == pytest.approx(0.005358867312681467)


def test_cosine_and_constant():
    cosine = OptimizerSettings(lr=2.0, schedule="cosine")
    assert [learning_rate(cosine, step, 4) for step in range(4)] == pytest.approx(
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    )
    constant = OptimizerSettings(lr=2.0, schedule="constant")
    assert {learning_rate(constant, step, 4) for step in range(4)} == {2.0}


def test_warmup_rises_linearly_and_never_from_zero():
    settings = OptimizerSettings(lr=1.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(settings, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_optimizers_have_the_chosen_settings():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    sgd = build_optimizer(model, OptimizerSettings())
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    assert [p is model.weight for p in group["params"]] == [True]
    assert not build_optimizer(model, OptimizerSettings(momentum=0)).param_groups[0]["nesterov"]
    adamw = build_optimizer(model, OptimizerSettings(name="adamw", lr=0.1, weight_decay=0.2))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.1, 0.2)
