"""An exponential moving average of a model's weights."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch

from medseg.models.base import Model


class EMA:
    """A copy of a model whose weights follow the trained ones slowly (Polyak and Juditsky 1992).

    Early on it follows faster: the decay of step `s` is ``min(decay, (1 + s) / (10 + s))``, so that the fresh weights are
    soon forgotten.

    Args:
        model: the trained model. decay: in (0, 1).
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Follow `model` after its step number `step`; figures of norms follow too, counters are copied."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own = chain(self.model.parameters(), self.model.buffers())
        for kept, fresh in zip(own, chain(model.parameters(), model.buffers()), strict=True):
            if kept.is_floating_point():
                kept.lerp_(fresh, weight)
            else:
                kept.copy_(fresh)
