"""Overlap losses whose sums include the batches of all processes of a distributed training.

They equal MONAI's losses of the same name with ``batch=True`` on the concatenated batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.runtime.distributed import sum_over_ranks

_SMOOTH = 1e-5  # as in MONAI


class DistributedTversky(nn.Module):
    """1 − Tversky index of the batch, averaged over the foreground classes (Salehi et al. 2017).

    The index is TP / (TP + α·FP + β·FN) with soft counts TP = Σp·t, FP = Σp·(1−t) and FN = Σ(1−p)·t.

    Args:
        alpha: Weight of false positives.
        beta: Weight of false negatives.
    """

    def __init__(self, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and class indices `(n, 1, *spatial)`."""
        overlap, predicted, true = _sums(logits, label)
        wrong = self.alpha * (predicted - overlap) + self.beta * (true - overlap)
        index: Tensor = (overlap + _SMOOTH) / (overlap + wrong + _SMOOTH)
        return (1 - index).mean()


class DistributedGeneralizedDice(nn.Module):
    """1 − generalised Dice of the batch (Sudre et al. 2017).

    Generalised Dice is 2·Σ_k w_k·Σp·t / Σ_k w_k·(Σp + Σt) over the foreground classes k, with w_k = 1 / (Σt)². A class
    that does not occur has the weight of the smallest class.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and class indices `(n, 1, *spatial)`."""
        overlap, predicted, true = _sums(logits, label)
        weights = torch.where(true > 0, true.clamp(min=1) ** -2, 0.0)
        weights = torch.where(true > 0, weights, weights.max())
        total = ((predicted + true) * weights).sum()
        dice: Tensor = (2 * (overlap * weights).sum() + _SMOOTH) / (total + _SMOOTH)
        return 1 - dice


def _sums(logits: Tensor, label: Tensor) -> Tensor:
    """Return Σp·t, Σp and Σt of each foreground class over all batches, `(3, k - 1)`."""
    probabilities = logits.softmax(1)[:, 1:]
    true = (
        functional.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    )
    axes = [axis for axis in range(logits.dim()) if axis != 1]
    return sum_over_ranks(
        torch.stack([(probabilities * true).sum(axes), probabilities.sum(axes), true.sum(axes)])
    )
