"""Building a loss by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medseg.errors import ConfigError, did_you_mean
from medseg.labels.label_sets import LabelSets
from medseg.labels.label_table import Labels
from medseg.losses.catalog import LOSSES, Loss, LossContext, LossEntry, list_losses


def build_loss(
    name: str = "dice_ce",
    *,
    batch_dice: bool = False,
    label_sets: LabelSets | None = None,
    class_weights: Mapping[str, float] | None = None,
) -> Loss:
    """Build a loss of logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`.

    With class probabilities p = softmax(logits), one-hot reference t, sums over voxels i and averages over the
    foreground classes k (the background is left out of overlaps, as in nnU-Net):

    ==================  ====================================================================================
    name                loss
    ==================  ====================================================================================
    dice                1 − 2·Σp·t / (Σp + Σt) (Milletari et al. 2016)
    cross_entropy       −log p of the reference class, averaged over voxels
    dice_ce             dice + cross_entropy (Isensee et al. 2021)
    focal               −(1 − p)²·log p of the reference class, averaged over voxels and classes (Lin et al. 2017)
    dice_focal          dice + focal
    generalized_dice    dice of all classes together, each weighted by 1 / (Σt)² (Sudre et al. 2017)
    tversky             1 − Σp·t / (Σp·t + 0.3·Σp·(1−t) + 0.7·Σ(1−p)·t) (Salehi et al. 2017)
    ==================  ====================================================================================

    For regions and partially annotated labels see `medseg.losses.label_set_losses`. Further names can be added with
    `medseg.losses.register_loss`.

    Args:
        name: Name of the loss; `medseg.losses.list_losses` lists them.
        batch_dice: Sum overlaps over the batch before dividing. This makes Dice more stable if patches have no
            foreground. In distributed training the sum includes the batches of all processes.
        label_sets: Meaning of the label values; class indices if None.
        class_weights: Weight of the voxels of an output in the cross-entropy, by the name of the label or region; 1
            for the others. The weighted sum is divided by the sum of the weights, as in
            `torch.nn.CrossEntropyLoss`, over all processes. Requires `label_sets`, which holds the names.

    Returns:
        A function of logits and label values that returns a scalar tensor.

    Raises:
        ConfigError: The name is unknown, the loss does not support such labels or class weights, or a weight has an
            unknown name.

    Examples:
        >>> loss = build_loss("dice_ce")
        >>> logits = torch.zeros(1, 2, 8, 8, 8)
        >>> label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)
        >>> label[..., :4] = 1
        >>> round(float(loss(logits, label)), 4)  # 1 - 1/2 + log 2
        1.1931
    """
    entry = LOSSES.get(name)
    weights = _weights(entry, class_weights, label_sets.labels if label_sets is not None else None)
    context = LossContext(batch_dice, label_sets, weights)
    if label_sets is not None and context.needs_label_sets and not entry.supports_label_sets:
        raise ConfigError(
            f"train.loss: found {name} with {_reason(label_sets)}, expected one of "
            f"{_names(lambda other: other.supports_label_sets)}. Choose one of these."
        )
    return entry.build(context)


def _names(accept: Callable[[LossEntry], bool]) -> str:
    return ", ".join(name for name in list_losses() if accept(LOSSES.get(name)))


def _reason(label_sets: LabelSets) -> str:
    """Return what a loss of class indices cannot handle about these labels."""
    if label_sets.labels.regions:
        return "regions"
    return "an ignore label" if len(label_sets.sets) == 1 else "partially annotated cases"


def _weights(
    entry: LossEntry, class_weights: Mapping[str, float] | None, labels: Labels | None
) -> Tensor | None:
    """Return the class weights `(k,)` in the order of the outputs."""
    if not class_weights:
        return None
    if not entry.supports_class_weights:
        raise ConfigError(
            f"train.class_weights: found weights with the loss {entry.name}, expected a loss with cross-entropy: "
            f"{_names(lambda other: other.supports_class_weights)}. Choose one, or remove the weights."
        )
    names = labels.output_names if labels is not None else ()
    for name in class_weights:
        if name not in names:
            raise ConfigError(
                f"train.class_weights: unknown name {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."
            )
    weights = torch.tensor([float(class_weights.get(name, 1.0)) for name in names])
    if not float(weights.max()) > 0:
        raise ConfigError(
            "train.class_weights: found only zeros, expected at least one weight above 0. Correct the weights."
        )
    return weights
