"""Dice + cross-entropy for soft labels: probabilities in the place of a label map.

With probabilities p of the network and y of the reference, the cross-entropy is −Σ_c y_c·log p_c, least where p = y. The
usual soft Dice 2·Σpy / (Σp + Σy) is not: it is largest where p is 0 or 1, so that a network that minimises it does not
learn the uncertainty of the reference. The Dice semimetric loss (Wang et al. 2023, MICCAI, arXiv:2303.16296) replaces
2·Σpy by Σ(p + y − |p − y|), which is the same for y in {0, 1}, and is least where p = y.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseg.runtime.distributed import mean_over_ranks, sum_over_ranks

_SMOOTH = 1e-5


def soft_dice_cross_entropy(logits: Tensor, target: Tensor, *, batch: bool, weights: Tensor | None) -> Tensor:
    """Return the sum of the Dice semimetric loss of the foreground classes and the cross-entropy.

    For probabilities of 0 and 1 it equals `medseg.losses.dice_cross_entropy.DiceCrossEntropy` of their label map.

    Args:
        logits: Logits `(n, k, *spatial)`.
        target: Probabilities `(n, k, *spatial)` with the sum 1, background included.
        batch: Whether to compute one Dice per class from sums over the batch and all processes. Otherwise, the Dice of
            the samples is averaged.
        weights: Weight `(k,)` of each class in the cross-entropy, or None. The weighted sum is divided by the sum of the
            weights of all voxels, in proportion to their probabilities.

    Returns:
        The scalar loss.
    """
    log_p = functional.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), 1)
    p, y = log_p[:, 1:].exp(), target[:, 1:]
    axes = [axis for axis in range(logits.dim()) if axis != 1 and (axis > 0 or batch)]
    sums = torch.stack([(p + y - (p - y).abs()).sum(axes), (p + y).sum(axes)])
    overlap, total = sum_over_ranks(sums) if batch else sums
    dice = (overlap + _SMOOTH) / (total + _SMOOTH)
    weighted = target
    if weights is not None:
        weighted = target * weights.to(target).view(1, -1, *[1] * (target.dim() - 2))
    counted = mean_over_ranks(weighted.sum())
    loss: Tensor = (1 - dice).mean() - (weighted * log_p).sum() / counted.clamp(min=_SMOOTH)
    return loss
