"""Losses over voxels whose class is one of several, and over regions that overlap.

Each voxel has a set S of classes that it may be of (see `medseg.labels.label_sets`). Cross-entropy is −log Σ_{c∈S} p_c, the
marginal loss (Shi et al., Medical Image Analysis 2021; Fidon et al. 2021 call such losses label-set losses); a voxel that
may be of any class says nothing. Dice of a class leaves out the voxels that may or may not be of it. A region r is
decided where S ⊂ r or S ∩ r = ∅, and looked at nowhere else; its outputs are sigmoids, with binary cross-entropy.
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
    """The tables of a set of candidates, on the device of the label map that they are looked up for."""

    def __init__(self, label_sets: LabelSets) -> None:
        self.regions = bool(label_sets.labels.regions)
        self.possible = torch.from_numpy(label_sets.possible())
        self.certain = torch.from_numpy(label_sets.certain())
        self.known = torch.from_numpy(label_sets.known())

    def __call__(self, table: str, label: Tensor) -> Tensor:
        """Rows of a table `(num_values, m)` for a label map `(n 1 *spatial)` → `(n m *spatial)` bool."""
        found: Tensor = getattr(self, table).to(label.device)
        setattr(self, table, found)
        return found[label[:, 0].long()].movedim(-1, 1)


class LabelSetDice(nn.Module):
    """1 − soft Dice, the mean over the foreground labels, or over all regions.

    A mean over the samples, too, unless `batch` sums overlaps over them first, and over all processes that train
    together. Where nothing is known of a label, it costs nothing.
    """

    def __init__(self, label_sets: LabelSets, *, batch: bool) -> None:
        super().__init__()
        self.tables, self.batch = _LookUpTables(label_sets), batch

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar of logits `(n k *spatial)` and values `(n 1 *spatial)`."""
        probabilities = logits.sigmoid() if self.tables.regions else logits.softmax(1)[:, 1:]
        probabilities = probabilities * self.tables("known", label)
        inside = self.tables("certain", label)
        axes = [axis for axis in range(logits.dim()) if axis != 1 and (axis > 0 or self.batch)]
        sums = torch.stack([(probabilities * inside).sum(axes), probabilities.sum(axes) + inside.sum(axes)])
        overlap, total = sum_over_ranks(sums) if self.batch else sums
        dice: Tensor = (2 * overlap + _SMOOTH) / (total + _SMOOTH)
        return (1 - dice).mean()


class LabelSetCrossEntropy(nn.Module):
    """Marginal cross-entropy, averaged over the voxels that say something; of regions, over their decided voxels.

    Several processes divide by the mean of their numbers of such voxels, so that their losses average to one's.

    With weights `(k,)` of the outputs, a voxel weighs as its class does, and one of several classes as the first of
    them: the background, as which it was drawn.
    """

    def __init__(self, label_sets: LabelSets, weights: Tensor | None) -> None:
        super().__init__()
        self.tables, self.weights = _LookUpTables(label_sets), weights

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar of logits `(n k *spatial)` and values `(n 1 *spatial)`."""
        if self.tables.regions:
            costs, counts = (
                -_log_region_probability(logits, label, self.tables),
                self.tables("known", label).float(),
            )
            if self.weights is not None:
                counts = counts * self.weights.to(counts.device).view(1, -1, *[1] * (counts.dim() - 2))
        else:
            allowed = self.tables("possible", label)
            counts = (~allowed).any(1).float()
            if self.weights is not None:
                counts = counts * self.weights.to(logits.device)[allowed.int().argmax(1)]
            costs = -_log_marginal(logits, allowed)
        return (costs * counts).sum() / mean_over_ranks(counts.sum()).clamp(min=_SMOOTH)


class LabelSetFocal(nn.Module):
    """Focal loss −(1 − q)² log q of the share q of all classes that a voxel may be of.

    Averaged as MONAI does, over voxels that say something and classes; of regions, over their decided voxels.
    """

    def __init__(self, label_sets: LabelSets) -> None:
        super().__init__()
        self.tables = _LookUpTables(label_sets)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar of logits `(n k *spatial)` and values `(n 1 *spatial)`."""
        if self.tables.regions:
            log = _log_region_probability(logits, label, self.tables)
            counts, classes = self.tables("known", label).float(), 1
        else:
            allowed = self.tables("possible", label)
            log, counts, classes = _log_marginal(logits, allowed), (~allowed).any(1).float(), logits.shape[1]
        costs = -((1 - log.exp()).clamp(min=0) ** _FOCUS) * log
        return (costs * counts).sum() / mean_over_ranks(counts.sum()).clamp(min=_SMOOTH) / classes


def _log_marginal(logits: Tensor, allowed: Tensor) -> Tensor:
    """log Σ_{c∈S} p_c of softmax shares, `(n *spatial)`, where `allowed` `(n k *spatial)` says which classes are in S."""
    return functional.log_softmax(logits, 1).masked_fill(~allowed, -torch.inf).logsumexp(1)


def _log_region_probability(logits: Tensor, label: Tensor, tables: _LookUpTables) -> Tensor:
    """log of the sigmoid share of what each region is at a voxel, inside or outside, `(n k *spatial)`."""
    return functional.logsigmoid(torch.where(tables("certain", label), logits, -logits))
