"""One step of the optimiser, which is skipped if the loss or the gradients are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer


@dataclass(frozen=True)
class StepResult:
    """The result of a step, on the device, where it need not be known yet.

    Attributes:
        loss: Loss `()` of the step; not finite if the step counts as failed.
        skipped: Whether the step was skipped, `()` bool: weights and optimiser are unchanged.
    """

    loss: Tensor
    skipped: Tensor


class OptimizerStep:
    """Clips the gradients and takes a step, or skips it.

    Reading a number from a CUDA device waits for all of its work. Fused optimisers therefore decide on the device: they get
    a flag, and a step with the flag set changes nothing. Other optimisers run on the processor, where the flag is read.

    Args:
        optimizer: Optimiser of the model.
        max_norm: Largest norm of all gradients together; larger gradients are scaled down to it.
        scaler: Scaler of the gradients in float16, or None. An overflow is then expected: the step is skipped, the scale is
            lowered, and the step does not count as failed.
    """

    def __init__(self, optimizer: Optimizer, max_norm: float, scaler: GradScaler | None = None) -> None:
        self._optimizer, self._max_norm, self._scaler = optimizer, max_norm, scaler
        self._fused = is_fused(optimizer)

    def __call__(self, loss: Tensor) -> StepResult:
        """Take a step with the gradients of the parameters.

        Args:
            loss: Loss `()` whose gradients they are.

        Returns:
            The result; on a CUDA device, the host has not waited for it.
        """
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        norm = clip_grad_norm_(parameters, self._max_norm, error_if_nonfinite=False)
        skipped = ~(loss.isfinite() & norm.isfinite().to(loss.device))
        if self._fused:
            self._step_unless(skipped)
        elif not bool(skipped):
            self._optimizer.step()
        if self._scaler is not None:
            self._scaler.update()
            return StepResult(loss, skipped)
        return StepResult(loss.masked_fill(skipped & loss.isfinite(), math.nan), skipped)

    def _step_unless(self, skipped: Tensor) -> None:
        """Take a step of a fused optimiser, which changes nothing if `skipped` is true."""
        _fill_momentum(self._optimizer)
        # The interface that the gradient scaler of PyTorch uses. Gradients are unscaled already.
        flag = skipped.float()
        self._optimizer.grad_scale, self._optimizer.found_inf = None, flag  # type: ignore[attr-defined]
        self._optimizer.step()
        del self._optimizer.grad_scale, self._optimizer.found_inf  # type: ignore[attr-defined]


def is_fused(optimizer: Optimizer) -> bool:
    """Return whether all parameters are updated by fused kernels."""
    return all(bool(group.get("fused")) for group in optimizer.param_groups)


def _fill_momentum(optimizer: Optimizer) -> None:
    """Start momentum at 0, where the first step equals that without a buffer.

    A fused step would otherwise begin with a buffer of arbitrary memory, which stays if that step is skipped, and it cannot
    mix parameters with and without a buffer, as there are when a frozen part is thawed.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
