"""Losses by name: MONAI's, behind one call ``loss(logits, label)``; and those that know sets of classes and regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, did_you_mean
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.distributed_overlap import DistributedGeneralizedDice, DistributedTversky
from medseg.losses.label_set_losses import LabelSetCrossEntropy, LabelSetDice, LabelSetFocal
from medseg.runtime.distributed import world_size

Criterion = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("dice_ce", "dice", "cross_entropy", "dice_focal", "focal", "generalized_dice", "tversky")
_FOR_LABEL_SETS = ("dice_ce", "dice", "cross_entropy", "dice_focal", "focal")
_WITH_WEIGHTS = ("dice_ce", "cross_entropy")
_TVERSKY = {"alpha": 0.3, "beta": 0.7}
_SHARED: dict[str, Callable[[], Criterion]] = {
    "generalized_dice": DistributedGeneralizedDice,
    "tversky": lambda: DistributedTversky(**_TVERSKY),
}


def build_loss(
    name: str = "dice_ce",
    *,
    batch_dice: bool = False,
    label_sets: LabelSets | None = None,
    class_weights: Mapping[str, float] | None = None,
) -> Criterion:
    """Return a loss over logits `(n k *spatial)` and class indices `(n 1 *spatial)`.

    Dice terms leave the background out (nnU-Net's choice); softmax and one-hot are inside. Where the network predicts
    regions, or voxels may be of one of several classes, see `medseg.losses.label_set_losses`.

    Args:
        name: one of `LOSSES`. ``dice_ce`` is Dice + cross-entropy with weight 1 each (Isensee et al. 2021);
            ``dice`` Milletari et al. 2016; ``generalized_dice`` Sudre et al. 2017; ``focal`` Lin et al. 2017;
            ``tversky`` Salehi et al. 2017.
        batch_dice: sum overlaps over the batch before dividing, which steadies patches without foreground. Several
            processes sum over the batches of all.
        label_sets: what the values of `label` stand for; classes alone unless given.
        class_weights: output name → factor of its voxels in the cross-entropy, 1 for the others. As torch does, the
            weighted sum is divided by the sum of the weights, of all processes. Needs `label_sets`, which know the names.

    Raises:
        ConfigError: an unknown name; a loss that knows no regions, sets of classes or class weights.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}.{did_you_mean(name, LOSSES)} Known: {', '.join(LOSSES)}.")
    weights = _weights(name, class_weights, label_sets.labels if label_sets is not None else None)
    # MONAI's Dice of a batch and torch's weighted mean know nothing of other processes.
    together = world_size() > 1 and (batch_dice or weights is not None)
    if label_sets is not None and (
        not label_sets.is_fully_annotated or (together and name in _FOR_LABEL_SETS)
    ):
        return _label_set_loss(name, batch_dice, label_sets, weights)
    if together and name in _SHARED:
        return _SHARED[name]()
    return _class_loss(name, batch_dice, weights)


def _class_loss(name: str, batch_dice: bool, weights: Tensor | None) -> Criterion:
    """MONAI's losses, of labels that say the class of every voxel."""
    from monai import losses as monai

    common: dict[str, Any] = {"include_background": False, "to_onehot_y": True, "softmax": True}
    dice = {**common, "batch": batch_dice, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    cross_entropy = _CrossEntropy(weights)
    builders: dict[str, Callable[[], Criterion]] = {
        "dice_ce": lambda: _Sum(monai.DiceLoss(**dice), cross_entropy),
        "dice": lambda: monai.DiceLoss(**dice),
        "cross_entropy": lambda: cross_entropy,
        "dice_focal": lambda: _Sum(monai.DiceLoss(**dice), _focal(monai)),
        "focal": lambda: _focal(monai),
        "generalized_dice": lambda: monai.GeneralizedDiceLoss(**common, batch=batch_dice),
        "tversky": lambda: monai.TverskyLoss(**common, **_TVERSKY, batch=batch_dice),
    }
    return builders[name]()


def _label_set_loss(name: str, batch_dice: bool, label_sets: LabelSets, weights: Tensor | None) -> Criterion:
    if name not in _FOR_LABEL_SETS:
        raise ConfigError(
            f"train.loss: found {name} with {_reason(label_sets)}, expected one of {', '.join(_FOR_LABEL_SETS)}. "
            "Choose one of these."
        )
    dice = LabelSetDice(label_sets, batch=batch_dice)
    cross_entropy = LabelSetCrossEntropy(label_sets, weights)
    focal = LabelSetFocal(label_sets)
    return {
        "dice_ce": _Sum(dice, cross_entropy),
        "dice": dice,
        "cross_entropy": cross_entropy,
        "dice_focal": _Sum(dice, focal),
        "focal": focal,
    }[name]


def _reason(label_sets: LabelSets) -> str:
    """Why the plain losses will not do, in words."""
    if label_sets.labels.regions:
        return "regions"
    return "an ignore label" if len(label_sets.sets) == 1 else "cases of which only some labels were drawn"


def _weights(name: str, chosen: Mapping[str, float] | None, labels: Labels | None) -> Tensor | None:
    """The class weights in the order of the outputs."""
    if not chosen:
        return None
    if name not in _WITH_WEIGHTS:
        raise ConfigError(
            f"train.class_weights: found weights with the loss {name}, expected a loss with cross-entropy: "
            f"{' or '.join(_WITH_WEIGHTS)}. Choose one, or leave the weights out."
        )
    names = labels.output_names if labels is not None else ()
    for given in chosen:
        if given not in names:
            raise ConfigError(
                f"train.class_weights: unknown name {given!r}.{did_you_mean(given, names)} Known: {', '.join(names)}."
            )
    weights = torch.tensor([float(chosen.get(name, 1.0)) for name in names])
    if not float(weights.max()) > 0:
        raise ConfigError(
            "train.class_weights: found only zeros, expected some weight above 0. Correct them."
        )
    return weights


class _Sum(nn.Module):
    """Sum of criteria."""

    def __init__(self, *terms: Criterion) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return torch.stack([term(logits, label) for term in self.terms]).sum()


class _CrossEntropy(nn.Module):
    """Cross-entropy, perhaps weighted."""

    def __init__(self, weights: Tensor | None) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
        return nn.functional.cross_entropy(logits, label[:, 0].long(), self.weights)


def _focal(monai: Any) -> Criterion:
    criterion: Criterion = monai.FocalLoss(to_onehot_y=True, use_softmax=True, include_background=True)
    return criterion
