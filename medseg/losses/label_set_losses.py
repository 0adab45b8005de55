"""Losses for partially annotated labels and for overlapping regions.

Each voxel has a set S of classes that it may belong to (see `medseg.labels.label_sets`). The probability of the set is
q = Σ_{c∈S} p_c. The cross-entropy is −log q, the marginal loss (Shi et al. 2021, Medical Image Analysis 70; Fidon et al.
2021 call such losses label-set losses, arXiv:2107.03846). A voxel that may belong to any class has no influence. The
Dice of a class leaves out voxels for which it is unknown whether they belong to the class.

A region r is known at a voxel if S ⊂ r (inside) or S ∩ r = ∅ (outside); other voxels are left out. The outputs of
regions are independent sigmoids with a binary cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.labels.label_sets import LabelSets
from medseg.runtime.distributed import mean_over_ranks, sum_over_ranks

_SMOOTH = 1e-5
_FOCUS = 2.0  # gamma of Lin et al. 2017


class _LookUpTables:
    """The classes and regions that each label value stands for, as tensors on the device of the labels.

    Every method takes label values `(n, 1, *spatial)` and returns a boolean tensor `(n, m, *spatial)`.
    """

    def __init__(self, label_sets: LabelSets) -> None:
        self.has_regions = bool(label_sets.labels.regions)
        self._possible = torch.from_numpy(label_sets.possible())
        self._certain = torch.from_numpy(label_sets.certain())
        self._known = torch.from_numpy(label_sets.known())

    def possible(self, label: Tensor) -> Tensor:
        """Return whether a voxel may belong to each class; m is the number of classes."""
        self._possible = self._possible.to(label.device)
        return _rows(self._possible, label)

    def certain(self, label: Tensor) -> Tensor:
        """Return whether a voxel certainly belongs to each foreground class or region."""
        self._certain = self._certain.to(label.device)
        return _rows(self._certain, label)

    def known(self, label: Tensor) -> Tensor:
        """Return whether it is known if a voxel belongs to each foreground class or region."""
        self._known = self._known.to(label.device)
        return _rows(self._known, label)


def _rows(table: Tensor, label: Tensor) -> Tensor:
    """Return the rows of a table `(num_values, m)` for values `(n, 1, *spatial)`, as `(n, m, *spatial)`."""
    return table[label[:, 0].long()].movedim(-1, 1)


class LabelSetDice(nn.Module):
    """1 − soft Dice over the voxels where a class is known, averaged over foreground classes or regions.

    A class is known at a voxel if its label value determines whether it belongs to the class. Dice is
    2·Σp·t / (Σp + Σt) with sums over the known voxels. The loss of a class that is unknown in all voxels is 0.

    Args:
        label_sets: Classes that each label value may stand for.
        batch: Whether to compute one Dice per class from sums over the batch and all processes. Otherwise, the Dice of
            the samples is averaged.
    """

    def __init__(self, label_sets: LabelSets, *, batch: bool) -> None:
        super().__init__()
        self.tables, self.batch = _LookUpTables(label_sets), batch

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`."""
        probabilities = logits.sigmoid() if self.tables.has_regions else logits.softmax(1)[:, 1:]
        probabilities = probabilities * self.tables.known(label)
        inside = self.tables.certain(label)
        axes = [axis for axis in range(logits.dim()) if axis != 1 and (axis > 0 or self.batch)]
        sums = torch.stack([(probabilities * inside).sum(axes), probabilities.sum(axes) + inside.sum(axes)])
        overlap, total = sum_over_ranks(sums) if self.batch else sums
        dice: Tensor = (2 * overlap + _SMOOTH) / (total + _SMOOTH)
        return (1 - dice).mean()


class LabelSetCrossEntropy(nn.Module):
    """Marginal cross-entropy −log q, averaged over the voxels that exclude at least one class.

    For regions it is the binary cross-entropy, averaged over the known voxels of all regions. Each process divides by
    the mean number of such voxels per process, so that the average over the processes equals the loss of one process
    with the whole batch.

    Args:
        label_sets: Meaning of the label values.
        weights: Weight `(k,)` of each output, or None. A voxel has the weight of its class. A voxel that may belong to
            several classes has the weight of the first of them, which is the background it was annotated as.
    """

    def __init__(self, label_sets: LabelSets, weights: Tensor | None) -> None:
        super().__init__()
        self.tables, self.weights = _LookUpTables(label_sets), weights

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`."""
        if self.tables.has_regions:
            costs = -_log_region_probability(logits, label, self.tables)
            counts = self.tables.known(label).float()
            if self.weights is not None:
                counts = counts * self.weights.to(counts.device).view(1, -1, *[1] * (counts.dim() - 2))
        else:
            possible = self.tables.possible(label)
            counts = (~possible).any(1).float()
            if self.weights is not None:
                counts = counts * self.weights.to(logits.device)[possible.int().argmax(1)]
            costs = -_log_marginal(logits, possible)
        return (costs * counts).sum() / mean_over_ranks(counts.sum()).clamp(min=_SMOOTH)


class LabelSetFocal(nn.Module):
    """Focal loss −(1 − q)²·log q of the probability q of the label set of a voxel (Lin et al. 2017).

    The average is taken over classes and over the voxels that exclude at least one class, as MONAI does; for regions,
    over the known voxels.

    Args:
        label_sets: Meaning of the label values.
    """

    def __init__(self, label_sets: LabelSets) -> None:
        super().__init__()
        self.tables = _LookUpTables(label_sets)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`."""
        if self.tables.has_regions:
            log = _log_region_probability(logits, label, self.tables)
            counts, classes = self.tables.known(label).float(), 1
        else:
            possible = self.tables.possible(label)
            log, counts, classes = (
                _log_marginal(logits, possible),
                (~possible).any(1).float(),
                logits.shape[1],
            )
        costs = -((1 - log.exp()).clamp(min=0) ** _FOCUS) * log
        return (costs * counts).sum() / mean_over_ranks(counts.sum()).clamp(min=_SMOOTH) / classes


def _log_marginal(logits: Tensor, possible: Tensor) -> Tensor:
    """Return log q `(n, *spatial)` of softmax probabilities; `possible` `(n, k, *spatial)` marks the classes in S."""
    return functional.log_softmax(logits, 1).masked_fill(~possible, -torch.inf).logsumexp(1)


def _log_region_probability(logits: Tensor, label: Tensor, tables: _LookUpTables) -> Tensor:
    """Return the log of the sigmoid probability of the correct state, inside or outside, of each region."""
    return functional.logsigmoid(torch.where(tables.certain(label), logits, -logits))
