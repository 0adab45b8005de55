"""An exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch

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
    def update(self, model: Model, step: int) -> None:
        """Update after step `step` of `model`; running statistics of norms are averaged, counters are copied."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own = chain(self.model.parameters(), self.model.buffers())
        for kept, fresh in zip(own, chain(model.parameters(), model.buffers()), strict=True):
            if kept.is_floating_point():
                kept.lerp_(fresh, weight)
            else:
                kept.copy_(fresh)
