"""The built-in losses: MONAI's and torch's, or those that handle label sets and several processes.

Every function here is a builder that `medseg.losses.catalog` names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medseg.labels.label_sets import LabelSets
from medseg.losses.catalog import Loss, LossContext
from medseg.losses.dice_cross_entropy import DiceCrossEntropy
from medseg.losses.distributed_overlap import DistributedGeneralizedDice, DistributedTversky
from medseg.losses.label_set_losses import LabelSetCrossEntropy, LabelSetDice, LabelSetFocal
from medseg.runtime.distributed import world_size

_OVERLAP: dict[str, Any] = {"include_background": False, "to_onehot_y": True, "softmax": True}
_TVERSKY = {"alpha": 0.3, "beta": 0.7}


def dice(context: LossContext) -> Loss:
    """Build 1 − soft Dice, averaged over the foreground classes (Milletari et al. 2016)."""
    label_sets = _label_sets(context)
    if label_sets is not None:
        return LabelSetDice(label_sets, batch=context.batch_dice)
    from monai.losses import DiceLoss

    return DiceLoss(**_OVERLAP, batch=context.batch_dice, smooth_nr=1e-5, smooth_dr=1e-5)  # type: ignore[no-any-return]


def cross_entropy(context: LossContext) -> Loss:
    """Build the cross-entropy, averaged over voxels, with optional class weights."""
    label_sets = _label_sets(context)
    if label_sets is not None:
        return LabelSetCrossEntropy(label_sets, context.class_weights)
    return CrossEntropy(context.class_weights)


def focal(context: LossContext) -> Loss:
    """Build the focal loss with γ = 2, averaged over voxels and classes (Lin et al. 2017)."""
    label_sets = _label_sets(context)
    if label_sets is not None:
        return LabelSetFocal(label_sets)
    from monai.losses import FocalLoss

    return FocalLoss(to_onehot_y=True, use_softmax=True, include_background=True)  # type: ignore[no-any-return]


def dice_ce(context: LossContext) -> Loss:
    """Build Dice + cross-entropy (Isensee et al. 2021)."""
    return DiceCrossEntropy(context.label_sets, batch=context.batch_dice, weights=context.class_weights)


def dice_focal(context: LossContext) -> Loss:
    """Build Dice + focal loss."""
    return SumOfLosses(dice(context), focal(context))


def generalized_dice(context: LossContext) -> Loss:
    """Build 1 − generalised Dice (Sudre et al. 2017)."""
    if _spans_processes(context):
        return DistributedGeneralizedDice()
    from monai.losses import GeneralizedDiceLoss

    return GeneralizedDiceLoss(**_OVERLAP, batch=context.batch_dice)  # type: ignore[no-any-return]


def tversky(context: LossContext) -> Loss:
    """Build 1 − Tversky index with α = 0.3 for false positives and β = 0.7 for false negatives (Salehi et al. 2017)."""
    if _spans_processes(context):
        return DistributedTversky(**_TVERSKY)
    from monai.losses import TverskyLoss

    return TverskyLoss(**_OVERLAP, **_TVERSKY, batch=context.batch_dice)  # type: ignore[no-any-return]


def _spans_processes(context: LossContext) -> bool:
    """Return whether the loss combines the batches of several processes.

    MONAI's Dice of a batch and torch's weighted mean are limited to one process.
    """
    return world_size() > 1 and (context.batch_dice or context.class_weights is not None)


def _label_sets(context: LossContext) -> LabelSets | None:
    """Return the label sets if a loss needs them, or None if a loss of class indices is sufficient."""
    return context.label_sets if context.needs_label_sets or _spans_processes(context) else None


class SumOfLosses(nn.Module):
    """The sum of several losses.

    Args:
        *terms: Losses of logits and label values.
    """

    def __init__(self, *terms: Loss) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar sum for logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`."""
        return torch.stack([term(logits, label) for term in self.terms]).sum()


class CrossEntropy(nn.Module):
    """Cross-entropy −log p of the reference class, averaged over voxels.

    Args:
        weights: Weight `(k,)` of each class, or None. The weighted sum is divided by the sum of the weights.
    """

    def __init__(self, weights: Tensor | None) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and class indices `(n, 1, *spatial)`."""
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
        return nn.functional.cross_entropy(logits, label[:, 0].long(), self.weights)
