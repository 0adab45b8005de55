"""An exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from medseg.models.base import Model


class EMA:
    """A copy of a model whose weights are an exponential moving average (Polyak and Juditsky 1992).

    The decay of step `s` is ``min(decay, (1 + s) / (10 + s))``, so that the initial weights are soon forgotten.

    Args:
        model: The trained model.
        decay: Decay per step, in (0, 1).
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, step: int, skipped: Tensor | None = None) -> None:
        """Update after step `step` of `model`; running statistics of norms are averaged, counters are copied.

        Args:
            model: The trained model.
            step: Number of the step.
            skipped: Whether the step was skipped, `()` bool, so that the average stays; None if it was not.
        """
        if skipped is not None and skipped.device.type == "cpu":
            if bool(skipped):
                return
            skipped = None
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        kept, fresh = self._tensors(self.model), self._tensors(model)
        for own, new in zip(kept, fresh, strict=True):
            if not own.is_floating_point():
                own.copy_(new)
        kept, fresh = ([one for one in every if one.is_floating_point()] for every in (kept, fresh))
        if skipped is None:
            torch._foreach_lerp_(kept, fresh, weight)
        else:
            lerp_unless(skipped, kept, fresh, weight)

    @staticmethod
    def _tensors(model: Model) -> list[Tensor]:
        return [*model.parameters(), *model.buffers()]


def lerp_unless(skipped: Tensor, kept: list[Tensor], fresh: list[Tensor], weight: float) -> None:
    """Move `kept` towards `fresh` in place by `weight`, or not at all if `skipped`, without waiting for the device.

    Args:
        skipped: Flag `()` bool on the device of the tensors.
        kept: Floating-point tensors, overwritten.
        fresh: Tensors of the same shapes.
        weight: Share of the way, in [0, 1].
    """
    way = torch._foreach_sub(fresh, kept)
    torch._foreach_mul_(way, (~skipped).float() * weight)
    torch._foreach_add_(kept, way)
