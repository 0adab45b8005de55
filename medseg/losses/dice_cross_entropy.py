"""Dice + cross-entropy in closed form, which needs little memory besides the logits and their gradient.

`medseg.losses.label_set_losses` and MONAI define the same loss as a sum of two terms, whose automatic derivative keeps five
to seven tensors of the size of the logits. Here, one function computes the sums over voxels that the loss consists of,
and another one their derivative. Both work on a few classes at a time and recompute probabilities instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.labels.label_sets import LabelSets
from medseg.losses.soft_labels import soft_dice_cross_entropy
from medseg.runtime.distributed import mean_over_ranks, sum_over_ranks

_SMOOTH = 1e-5
_PARTS = 16  # classes are processed in this many parts, each of which needs a temporary tensor or two


class DiceCrossEntropy(nn.Module):
    """The sum of 1 − soft Dice and the cross-entropy (Isensee et al. 2021), for classes, label sets and regions.

    It equals the sum of `LabelSetDice` and `LabelSetCrossEntropy` in `medseg.losses.label_set_losses`, which define both
    terms, and MONAI's ``DiceCELoss`` if every voxel has a class.

    Probabilities in the place of label values have the loss of `medseg.losses.soft_labels`.

    Args:
        label_sets: Classes that each label value may stand for; None if every value is a class.
        batch: Whether to compute one Dice per class from sums over the batch and all processes. Otherwise, the Dice of
            the samples is averaged.
        weights: Weight `(k,)` of each output in the cross-entropy, or None.
    """

    def __init__(self, label_sets: LabelSets | None, *, batch: bool, weights: Tensor | None) -> None:
        super().__init__()
        self.label_sets = label_sets
        self.batch = batch
        self.weights = weights
        self._meaning: _Meaning | None = None

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the scalar loss for logits `(n, k, *spatial)` and label values `(n, 1, *spatial)`, or probabilities like logits."""
        if label.is_floating_point():
            return soft_dice_cross_entropy(logits, label, batch=self.batch, weights=self.weights)
        meaning = self._meaning_of(logits)
        values = label.flatten(1).long()
        has_regions = self.label_sets is not None and bool(self.label_sets.labels.regions)
        sums = _RegionSums if has_regions else _ClassSums
        # The sums are in single precision, whatever the precision of the network.
        with torch.autocast(logits.device.type, enabled=False):
            overlap, predicted, cost = sums.apply(logits, values, meaning)
        counts = _voxel_counts(values, meaning.num_values).to(cost.dtype)
        # Not as matrix products, which some GPUs round to 11 bits.
        total = predicted + (counts[..., None] * meaning.certain).sum(1)
        if self.batch:
            overlap, total = sum_over_ranks(torch.stack([overlap.sum(0), total.sum(0)]))
        dice = (2 * overlap + _SMOOTH) / (total + _SMOOTH)
        counted = mean_over_ranks((counts * meaning.voxel_weights).sum())
        loss: Tensor = (1 - dice).mean() + cost / counted.clamp(min=_SMOOTH)
        return loss

    def _meaning_of(self, logits: Tensor) -> _Meaning:
        """Return the meaning of the label values on the device of the logits."""
        known = self._meaning
        if self.label_sets is None:
            if known is None or known.device != logits.device or known.outputs != logits.shape[1]:
                known = _Meaning.of_classes(logits.shape[1], self.weights, logits.device)
        elif known is None or known.device != logits.device:
            known = _Meaning.of_label_sets(self.label_sets, self.weights, logits.device)
        self._meaning = known
        return known


@dataclass(frozen=True)
class _Meaning:
    """What each of the v label values stands for, as tensors.

    Attributes:
        certain: Whether a voxel certainly belongs to each foreground class or region, `(v, m)` boolean.
        known: Whether it is known if a voxel belongs to each of them, `(v, m)` boolean.
        weights: Weight of each region, or of each label value `(v,)` of classes, in the cross-entropy.
        sets: Classes of the values from k on; empty for regions. A set of all classes has weight 0.
        outputs: Number of outputs of the network, k.
        voxel_weights: Sum of the weights that a voxel of each value has, `(v,)`.
    """

    certain: Tensor
    known: Tensor
    weights: Tensor
    sets: tuple[Tensor, ...]
    outputs: int
    voxel_weights: Tensor

    @classmethod
    def of_classes(cls, classes: int, weights: Tensor | None, device: torch.device) -> _Meaning:
        """Return the meaning of values that are classes."""
        certain = torch.eye(classes, dtype=torch.bool, device=device)[:, 1:]
        weight = torch.ones(classes, device=device) if weights is None else weights.to(device)
        return cls(certain, torch.ones_like(certain), weight, (), classes, weight)

    @classmethod
    def of_label_sets(cls, label_sets: LabelSets, weights: Tensor | None, device: torch.device) -> _Meaning:
        """Return the meaning of values that stand for label sets, or for classes that form regions."""
        outputs = label_sets.labels.num_outputs
        certain = torch.from_numpy(label_sets.certain()).to(device)
        known = torch.from_numpy(label_sets.known()).to(device)
        weight = torch.ones(outputs, device=device) if weights is None else weights.to(device)
        if label_sets.labels.regions:
            return cls(certain, known, weight, (), outputs, (known * weight).sum(1))
        possible = torch.from_numpy(label_sets.possible()).to(device)
        # A voxel has the weight of the first of its classes, the background it was annotated as.
        of_values = weight[possible.int().argmax(1)] * ~possible.all(1)
        sets = tuple(torch.tensor(members, device=device) for members in label_sets.sets)
        return cls(certain, known, of_values, sets, outputs, of_values)

    @property
    def num_values(self) -> int:
        """The number of label values."""
        return len(self.certain)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.certain.device

    def partial_sets(self, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the classes `(k,)` and voxels `(n, 1, s)` of each label set that occurs, as masks."""
        found = []
        for number, members in enumerate(self.sets, start=self.outputs):
            where = values[:, None] == number
            if bool(where.any()):
                inside = torch.zeros(self.outputs, dtype=torch.bool, device=self.device)
                inside[members] = True
                found.append((inside, where))
        return found


def _voxel_counts(values: Tensor, num_values: int) -> Tensor:
    """Return the number of voxels `(n, num_values)` of each value in each sample `(n, s)`."""
    if values.device.type == "cpu":
        return torch.stack([torch.bincount(value, minlength=num_values) for value in values])
    return scattered_counts(values, num_values)


def scattered_counts(values: Tensor, num_values: int) -> Tensor:
    """Return the number of voxels of each value in each sample, without waiting for a CUDA device.

    The length of the result of ``torch.bincount`` depends on the values, so that it waits.

    Args:
        values: `(n, s)` int64, from 0 to below `num_values`.
        num_values: Number of values.

    Returns:
        `(n, num_values)` int64.
    """
    places = values + torch.arange(len(values), device=values.device)[:, None] * num_values
    counts = torch.zeros(len(values) * num_values, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(0, places.flatten(), torch.ones_like(places).flatten()).view(-1, num_values)


class _ClassSums(torch.autograd.Function):
    """Sums over the voxels of each sample, for softmax probabilities p.

    With logits `(n, k, *spatial)` and label values `(n, s)`, the results are Σp·t and Σp over the voxels where a class is
    known, both `(n, k - 1)`, and the weighted sum of −log q.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, meaning: _Meaning) -> tuple[Tensor, Tensor, Tensor]:
        x, classes = logits.flatten(2), logits.shape[1]
        sets = meaning.partial_sets(values)
        top, log_total = _log_sum_exp(x, slice(0, classes))
        chosen = values.clamp(max=classes - 1)[:, None] if sets else values[:, None]
        log_q = (x.gather(1, chosen) - top) - log_total
        certain = values[:, None] < classes
        overlap = torch.zeros(len(x) * classes, dtype=torch.float64, device=x.device)
        places = (chosen + torch.arange(len(x), device=x.device).view(-1, 1, 1) * classes).flatten()
        # One-dimensional, for which CUDA has a deterministic algorithm.
        overlap.scatter_add_(0, places, (log_q.exp() * certain).double().flatten())
        predicted = torch.empty(x.shape[:2], dtype=log_q.dtype, device=x.device)
        for part in _parts(classes):
            p = _log_probabilities(x[:, part], top, log_total).exp_()
            predicted[:, part] = p.sum(2)
            for members, where in sets:
                predicted[:, part] -= (p * where).sum(2) * members[part]
        for members, where in sets:
            if bool(members.all()):
                log_q = log_q.masked_fill(where, 0)
                continue
            set_top, set_total = _log_sum_exp(x, members.nonzero()[:, 0])
            log_q = torch.where(where, (set_top - top) + (set_total - log_total), log_q)
        weights = meaning.weights.to(log_q.dtype)[values][:, None]
        ctx.save_for_backward(logits, values, top, log_total, log_q)
        ctx.meaning = meaning
        return overlap.view(-1, classes)[:, 1:].to(log_q.dtype), predicted[:, 1:], -(log_q * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        logits, values, top, log_total, log_q = ctx.saved_tensors
        for_overlap, for_predicted = (
            functional.pad(g, (1, 0)) for g in given[:2]
        )  # nothing for the background
        x, classes = logits.flatten(2), logits.shape[1]
        sets = ctx.meaning.partial_sets(values)
        cost = ctx.meaning.weights.to(log_q.dtype)[values][:, None] * given[2]
        certain = values < classes
        chosen = values.clamp(max=classes - 1)
        # The derivative by the probability of the reference class, times this probability.
        pull = for_overlap.gather(1, chosen)[:, None] * log_q.exp() * certain[:, None]
        rest = cost - pull

        def slopes(part: slice) -> Tensor:
            """Return the derivative by the other probabilities, `(n, c, s)`; zero where a class is unknown."""
            slope = for_predicted[:, part, None]
            for members, where in sets:
                slope = slope * ~(where & members[part, None])
            return slope

        for part in _parts(classes):
            rest -= (_log_probabilities(x[:, part], top, log_total).exp_() * slopes(part)).sum(
                1, keepdim=True
            )
        gradient = torch.empty_like(x)
        target = (pull - cost) * certain[:, None]
        numbers = torch.arange(classes, device=x.device)[:, None]
        for part in _parts(classes):
            log_p = _log_probabilities(x[:, part], top, log_total)
            towards = [
                (log_p - log_q).masked_fill_(~(where & members[part, None]), -torch.inf).exp_()
                for members, where in sets
            ]
            found = log_p.exp_().mul_(slopes(part) + rest)
            found.addcmul_(target, (chosen[:, None] == numbers[part]).to(found.dtype))
            for share in towards:
                found -= share.mul_(cost)
            gradient[:, part] = found
        return gradient.view(logits.shape), None, None


class _RegionSums(torch.autograd.Function):
    """Sums over the voxels of each sample, for the sigmoid probabilities p of overlapping regions.

    With logits `(n, m, *spatial)` and label values `(n, s)`, the results are Σp·t and Σp over the voxels where a region is
    known, both `(n, m)`, and the weighted sum of the binary cross-entropies.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, meaning: _Meaning) -> tuple[Tensor, Tensor, Tensor]:
        x = logits.flatten(2)
        overlaps, totals, costs = [], [], []
        for region, (inside, known) in _regions(values, meaning):
            own = _at_least_float32(x[:, region])
            p = own.sigmoid()
            overlaps.append((p * inside).sum(1))
            totals.append((p * known).sum(1))
            cost = functional.logsigmoid(torch.where(inside, own, -own)) * known
            costs.append(-cost.sum() * meaning.weights[region])
        ctx.save_for_backward(logits, values)
        ctx.meaning = meaning
        return torch.stack(overlaps, 1), torch.stack(totals, 1), torch.stack(costs).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        logits, values = ctx.saved_tensors
        for_overlap, for_predicted, for_cost = given
        x = logits.flatten(2)
        gradient = torch.empty_like(x)
        for region, (inside, known) in _regions(values, ctx.meaning):
            p = _at_least_float32(x[:, region]).sigmoid()
            slope = for_overlap[:, region, None] * inside + for_predicted[:, region, None] * known
            cost = (p - inside.to(p.dtype)) * known * (for_cost * ctx.meaning.weights[region])
            gradient[:, region] = slope * p * (1 - p) + cost
        return gradient.view(logits.shape), None, None


def _regions(values: Tensor, meaning: _Meaning) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Yield each region with the voxels `(n, s)` that are inside, and those that are known."""
    for region in range(meaning.outputs):
        yield region, (meaning.certain[:, region][values], meaning.known[:, region][values])


def _at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32; one in float64 is returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parts(classes: int) -> Iterator[slice]:
    step = -(-classes // _PARTS)
    return (slice(start, min(start + step, classes)) for start in range(0, classes, step))


def _log_probabilities(part: Tensor, top: Tensor, log_total: Tensor) -> Tensor:
    """Return log p of a part of the logits, as a new tensor."""
    return (_at_least_float32(part) - top).sub_(log_total)


def _log_sum_exp(x: Tensor, members: slice | Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of some classes' logits and the logarithm of Σexp(x − largest), each `(n, 1, s)`."""
    step = -(-x.shape[1] // _PARTS)
    if isinstance(members, slice):
        pieces: Sequence[Tensor] = x.split(step, 1)
        top = _at_least_float32(x.amax(1, keepdim=True))
        return top, torch.stack([(_at_least_float32(p) - top).exp_().sum(1) for p in pieces]).sum(0).log_()[
            :, None
        ]
    indices = members.split(step)
    top = _at_least_float32(
        torch.stack([x.index_select(1, index).amax(1) for index in indices]).amax(0)[:, None]
    )
    total = torch.stack([(_at_least_float32(x.index_select(1, i)) - top).exp_().sum(1) for i in indices]).sum(
        0
    )
    return top, total.log_()[:, None]
