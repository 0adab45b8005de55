"""A step is taken, or nothing changes; a fused optimiser decides without the host."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.train.optimization.optimizer import build_optimizer, restore_optimizer
from medseg.train.optimization.optimizer_step import OptimizerStep
from medseg.train.settings import OptimizerSettings

RECIPES = [
    OptimizerSettings(),
    OptimizerSettings(momentum=0),
    OptimizerSettings(name="adamw", lr=0.01, weight_decay=0.1),
]


class Scaler:
    """The part of the scaler of float16 gradients that is used, with a scale of 8."""

    def __init__(self) -> None:
        self.updates = 0

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 8

    def update(self) -> None:
        self.updates += 1


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def set_gradients(model: torch.nn.Module, step: int, broken: bool = False) -> None:
    for number, parameter in enumerate(model.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
        parameter.grad = values * (math.inf if broken and number == 1 else 1)


def train(settings, *, fused, failed=(), how="gradients", scaler=None, steps=6):
    """Return weights, state and results of some steps, of which the `failed` ones are not finite."""
    model = network()
    optimizer = build_optimizer(model, settings, fused=fused)
    step = OptimizerStep(optimizer, 1.0, scaler)
    results = []
    for number in range(steps):
        set_gradients(model, number, broken=number in failed and how == "gradients")
        loss = torch.tensor(math.nan if number in failed and how == "loss" else 2.0, dtype=torch.float64)
        results.append(step(loss))
    return [p.detach().clone() for p in model.parameters()], optimizer, results


def tensors_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        tensor
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    ]


@pytest.mark.parametrize("settings", RECIPES)
def test_a_fused_optimizer_takes_the_steps_of_the_plain_one(settings):
    plain, fused = train(settings, fused=False), train(settings, fused=True)
    for one, other in zip(plain[0], fused[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", RECIPES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", ["gradients", "loss"])
@pytest.mark.parametrize("failed", [{0}, {3}, {0, 1, 5}])
def test_a_failed_step_changes_nothing(settings, fused, how, failed):
    """As if the failed steps had never been tried: the first one included, in which buffers are created."""
    model = network()
    optimizer = build_optimizer(model, settings, fused=fused)
    step = OptimizerStep(optimizer, 1.0)
    for number in sorted(set(range(6)) - failed):
        set_gradients(model, number)
        step(torch.tensor(2.0))
    weights, tried, results = train(settings, fused=fused, failed=failed, how=how)
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(map(torch.equal, tensors_of(tried), tensors_of(optimizer)))
    assert [bool(result.skipped) for result in results] == [number in failed for number in range(6)]
    assert [math.isfinite(result.loss) for result in results] == [number not in failed for number in range(6)]


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_of_float16_skips_the_step_without_a_failure(fused):
    scaler = Scaler()
    _, _, results = train(OptimizerSettings(), fused=fused, failed={2}, scaler=scaler)
    assert [bool(result.skipped) for result in results] == [False, False, True, False, False, False]
    assert all(float(result.loss) == 2 for result in results)
    assert scaler.updates == 6
    _, _, results = train(OptimizerSettings(), fused=fused, failed={2}, how="loss", scaler=scaler)
    assert math.isnan(results[2].loss)


def test_gradients_are_clipped_after_they_are_unscaled():
    model = network()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1, momentum=0, weight_decay=0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    set_gradients(model, 0)
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()])) / 8
    expected = [b - p.grad / 8 / norm * 0.1 for b, p in zip(before, model.parameters(), strict=True)]
    OptimizerStep(optimizer, 0.1, Scaler())(torch.tensor(1.0))
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-6)


def test_a_fused_optimizer_takes_up_parameters_that_are_thawed_later():
    """Their momentum starts at 0, next to buffers of the others that have run for some steps."""
    results = []
    for fused in (False, True):
        model = network()
        optimizer = build_optimizer(model, OptimizerSettings(), fused=fused)
        step = OptimizerStep(optimizer, 1.0)
        for number in range(4):
            set_gradients(model, number)
            if number < 2:
                model[0].weight.grad = None
            step(torch.tensor(1.0))
        results.append(list(model.parameters()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", RECIPES)
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_state_is_continued_by_the_other_implementation(settings, before, after):
    """As a run that is begun on a processor and resumed on a CUDA device."""
    weights, optimizer, _ = train(settings, fused=before, steps=3)
    model = network()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    resumed = build_optimizer(model, settings, fused=after)
    restore_optimizer(resumed, optimizer.state_dict())
    assert [group["fused"] for group in resumed.param_groups] == [after]
    step = OptimizerStep(resumed, 1.0)
    for number in range(3, 6):
        set_gradients(model, number)
        step(torch.tensor(2.0))
    for one, other in zip(train(settings, fused=before)[0], model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)
