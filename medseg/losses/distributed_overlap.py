"""MONAI's losses of a batch's overlaps, summed over the batches of all processes that train together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.runtime.distributed import sum_over_ranks

_SMOOTH = 1e-5  # MONAI's


class DistributedTversky(nn.Module):
    """1 − Tversky index of the batch, the mean over the foreground labels (Salehi et al. 2017)."""

    def __init__(self, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar of logits `(n k *spatial)` and classes `(n 1 *spatial)`."""
        overlap, predicted, true = _sums(logits, label)
        wrong = self.alpha * (predicted - overlap) + self.beta * (true - overlap)
        index: Tensor = (overlap + _SMOOTH) / (overlap + wrong + _SMOOTH)
        return (1 - index).mean()


class DistributedGeneralizedDice(nn.Module):
    """1 − generalised Dice of the batch; labels weigh by the inverse square of their size (Sudre et al. 2017)."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar of logits `(n k *spatial)` and classes `(n 1 *spatial)`."""
        overlap, predicted, true = _sums(logits, label)
        weights = torch.where(true > 0, true.clamp(min=1) ** -2, 0.0)
        weights = torch.where(true > 0, weights, weights.max())  # an absent label weighs as the smallest
        total = ((predicted + true) * weights).sum()
        dice: Tensor = (2 * (overlap * weights).sum() + _SMOOTH) / (total + _SMOOTH)
        return 1 - dice


def _sums(logits: Tensor, label: Tensor) -> Tensor:
    """Voxels of each foreground label over all batches, `(3, k - 1)`: overlap, predicted, true."""
    probabilities = logits.softmax(1)[:, 1:]
    true = (
        functional.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    )
    axes = [axis for axis in range(logits.dim()) if axis != 1]
    return sum_over_ranks(
        torch.stack([(probabilities * true).sum(axes), probabilities.sum(axes), true.sum(axes)])
    )
