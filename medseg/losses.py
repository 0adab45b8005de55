"""Losses by name: MONAI's, behind one call ``loss(logits, label)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, nearest

Criterion = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("dice_ce", "dice", "cross_entropy", "dice_focal", "focal", "generalized_dice", "tversky")


def build_loss(name: str = "dice_ce", *, batch_dice: bool = False) -> Criterion:
    """Return a loss over logits `(n k *spatial)` and class indices `(n 1 *spatial)`.

    Dice terms leave the background out (nnU-Net's choice); softmax and one-hot are inside.

    Args:
        name: one of `LOSSES`. ``dice_ce`` is Dice + cross-entropy with weight 1 each (Isensee et al. 2021);
            ``dice`` Milletari et al. 2016; ``generalized_dice`` Sudre et al. 2017; ``focal`` Lin et al. 2017;
            ``tversky`` Salehi et al. 2017.
        batch_dice: sum overlaps over the batch before dividing, which steadies patches without foreground.

    Raises:
        ConfigError: an unknown name.
    """
    from monai import losses as monai

    common: dict[str, Any] = {"include_background": False, "to_onehot_y": True, "softmax": True}
    dice = {**common, "batch": batch_dice, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    builders: dict[str, Callable[[], Criterion]] = {
        "dice_ce": lambda: _Sum(monai.DiceLoss(**dice), _cross_entropy),
        "dice": lambda: monai.DiceLoss(**dice),
        "cross_entropy": lambda: _cross_entropy,
        "dice_focal": lambda: _Sum(monai.DiceLoss(**dice), _focal(monai)),
        "focal": lambda: _focal(monai),
        "generalized_dice": lambda: monai.GeneralizedDiceLoss(**common, batch=batch_dice),
        "tversky": lambda: monai.TverskyLoss(**common, alpha=0.3, beta=0.7, batch=batch_dice),
    }
    if name not in builders:
        raise ConfigError(f"unknown loss {name!r}.{nearest(name, LOSSES)} Known: {', '.join(LOSSES)}.")
    return builders[name]()


class _Sum(nn.Module):
    """Sum of criteria."""

    def __init__(self, *terms: Criterion) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return torch.stack([term(logits, label) for term in self.terms]).sum()


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, label[:, 0].long())


def _focal(monai: Any) -> Criterion:
    criterion: Criterion = monai.FocalLoss(to_onehot_y=True, use_softmax=True, include_background=True)
    return criterion
