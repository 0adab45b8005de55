"""Losses of MaskFormer and Mask2Former for voxels whose class is not known.

Let S be the set of classes that a voxel may belong to (see `medseg.labels.label_sets`). A voxel is *open* for the classes
of S if there are several. What is not known is left out:

- A target mask is compared with a query, in matching and in the mask losses, over the voxels that are not open for its class.
- A query without a target should predict "no object". If at least half of its mask is open for a class, it may predict
  that class instead: the loss is −log(p_∅ + Σ p_c) over these classes, and nothing if they are all classes.
- No target mask consists of open voxels, so that the background of partially annotated images would not be learned. In these
  images, the semantic scores s, which become the label map, have the marginal loss −log(Σ_{c∈S} s_c / Σ s_c) (Fidon et al.
  2021, arXiv:2107.03846), averaged over the voxels that exclude a class.

Without open voxels, the first two are the losses of Cheng et al. 2021 and 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medseg.labels.label_sets import LabelSets
from medseg.models.detections import Targets, instance_targets
from medseg.models.maskformer.outputs import FLOOR, semantic_scores
from medseg.models.maskformer.query_losses import Matches, average_targets
from medseg.runtime.distributed import mean_over_ranks

VoxelLosses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function of mask logits that returns the loss of each voxel if it is inside and if it is outside."""

Points = Callable[[Tensor], Tensor]
"""A function of mask logits (t 1 x y) that returns coordinates (t p 2), in [0, 1] along y and x, to compare masks at."""

_OPEN_SHARE = 0.5  # of the mask of a query, from which its class is not known
_LEAST = 1e-6


@dataclass(frozen=True)
class LossWeights:
    """The weights of the terms, in their sum and in the cost of matching.

    Attributes:
        classes: Weight of the classification loss and of the marginal loss.
        masks: Weight of the loss per voxel.
        dice: Weight of the Dice loss.
        no_object: Weight of a query without a target in the classification loss.
    """

    classes: float
    masks: float
    dice: float
    no_object: float


def binary_cross_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each voxel if it is inside and if it is outside, as in Mask2Former."""
    return F.softplus(-logits), F.softplus(logits)


def focal_losses(logits: Tensor, alpha: float = 0.25) -> tuple[Tensor, Tensor]:
    """Return the focal loss with γ = 2 of each voxel if it is inside and if it is outside, as in MaskFormer."""
    p = logits.sigmoid()
    inside, outside = binary_cross_entropies(logits)
    return alpha * (1 - p) ** 2 * inside, (1 - alpha) * p**2 * outside


class OpenVoxels:
    """The classes that each voxel of a batch may belong to.

    Args:
        label: Label values (n 1 x y).
        label_sets: Classes that each value may stand for.
    """

    def __init__(self, label: Tensor, label_sets: LabelSets) -> None:
        possible = torch.from_numpy(label_sets.possible()).to(label.device)
        self._label, self._possible = label, possible
        self._open = possible & (possible.sum(1, keepdim=True) > 1)
        self._classes = len(label_sets.labels)

    def targets(self, instances: Tensor | None, limit: int) -> list[Targets]:
        """Return the target masks of each image, which hold no open voxel; see `instance_targets`.

        Args:
            instances: None, or an instance map (n 1 x y).
            limit: Maximum number of targets per image.

        Returns:
            The targets.
        """
        certain = self._label < self._classes
        closed = torch.where(certain, self._label, 0)
        found = instance_targets(closed, instances, num_classes=self._classes, limit=limit, regions=True)
        targets = []
        for one, inside in zip(found, certain, strict=True):
            masks = one.masks & inside
            kept = masks.flatten(1).any(1)
            targets.append(Targets(one.classes[kept], one.boxes[kept], masks[kept]))
        return targets

    def known(self, image: int, classes: Tensor) -> Tensor:
        """Return the voxels (t x y) that are not open for the class of each target of an image."""
        return ~self._open[self._label[image, 0]][..., classes].movedim(-1, 0)

    def on_grid(self, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return whether each voxel of another grid may belong to each class, and whether it is open for it, (n k x y)."""
        small = F.interpolate(self._label.float(), size=size, mode="nearest")[:, 0].long()
        return self._possible[small].movedim(-1, 1), self._open[small].movedim(-1, 1)


class QuerySetLosses:
    """The losses of the queries of one decoder layer.

    Args:
        weights: Weights of the terms.
        voxel_losses: Loss of each voxel of a mask.
        points: Where the mask losses are computed; None for all voxels of the targets.
    """

    def __init__(self, weights: LossWeights, voxel_losses: VoxelLosses, points: Points | None) -> None:
        self._weights, self._voxel_losses, self._points = weights, voxel_losses, points

    def __call__(
        self, classes: Tensor, masks: Tensor, targets: list[Targets], voxels: OpenVoxels
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            classes: Class logits (n q k+1).
            masks: Mask logits (n q x/4 y/4).
            targets: Targets of each image.
            voxels: Classes that each voxel may belong to.

        Returns:
            The losses ``cross_entropy``, ``mask``, ``dice`` and ``marginal``.
        """
        known = [voxels.known(image, one.classes) for image, one in enumerate(targets)]
        matches = [
            self._match(classes[image], masks[image], one, known[image]) for image, one in enumerate(targets)
        ]
        possible, is_open = voxels.on_grid(masks.shape[2:])
        mask, dice = self._mask_losses(masks, targets, known, matches)
        count = average_targets([one.classes for one in targets], masks.device)
        cross_entropy = self._class_loss(classes, _allowed(masks, is_open), targets, matches)
        marginal = _marginal_loss(classes, masks, possible, is_open)
        weights = self._weights
        return {
            "cross_entropy": cross_entropy * weights.classes,
            "mask": mask / count * weights.masks,
            "dice": dice / count * weights.dice,
            "marginal": marginal * weights.classes,
        }

    @torch.no_grad()
    def _match(
        self, classes: Tensor, masks: Tensor, targets: Targets, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the matched queries and targets of one image, with the least sum of costs."""
        size = masks.shape[1:]
        inside = F.interpolate(targets.masks[:, None].float(), size=size, mode="nearest").flatten(1)
        counted = F.interpolate(known[:, None].float(), size=size, mode="nearest").flatten(1)
        inside = inside * counted
        flat = masks.flatten(1)
        p, (if_inside, if_outside) = flat.sigmoid(), self._voxel_losses(flat)
        per_voxel = if_inside @ inside.T + if_outside @ (counted - inside).T
        per_voxel = per_voxel / counted.sum(1).clamp(min=1)
        dice = 1 - (2 * p @ inside.T + 1) / (p @ counted.T + inside.sum(1) + 1)
        cost = self._weights.masks * per_voxel + self._weights.dice * dice
        cost = cost - self._weights.classes * classes.softmax(-1)[:, targets.classes]
        worst = torch.finfo(cost.dtype).max
        cost = torch.nan_to_num(cost, nan=worst, posinf=worst, neginf=worst)
        queries, numbers = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(queries, device=masks.device), torch.as_tensor(numbers, device=masks.device)

    def _mask_losses(
        self, masks: Tensor, targets: list[Targets], known: list[Tensor], matches: Matches
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over the matched queries of the mean loss per known voxel and of the Dice loss."""
        pairs = list(enumerate(matches))
        logits = torch.cat([masks[image, queries] for image, (queries, _) in pairs])[:, None]
        inside = torch.cat([targets[image].masks[numbers] for image, (_, numbers) in pairs])[:, None].float()
        counted = torch.cat([known[image][numbers] for image, (_, numbers) in pairs])[:, None].float()
        if not len(logits):
            return masks.sum() * 0, masks.sum() * 0
        if self._points is None:
            logits = F.interpolate(logits, size=inside.shape[2:], mode="bilinear", align_corners=False)
        else:
            with torch.no_grad():
                grid = 2 * self._points(logits)[:, :, None] - 1
            logits = F.grid_sample(logits, grid, mode="bilinear", align_corners=False)
            # The nearest voxel, as a mean of known and open voxels would be neither.
            inside, counted = (
                F.grid_sample(one, grid, mode="nearest", align_corners=False) for one in (inside, counted)
            )
        logits, inside, counted = logits.flatten(1), inside.flatten(1), counted.flatten(1)
        inside = inside * counted
        if_inside, if_outside = self._voxel_losses(logits)
        per_voxel = (if_inside * inside + if_outside * (counted - inside)).sum(1) / counted.sum(1).clamp(
            min=1
        )
        p = logits.sigmoid() * counted
        dice = 1 - (2 * (p * inside).sum(1) + 1) / (p.sum(1) + inside.sum(1) + 1)
        return per_voxel.sum(), dice.sum()

    def _class_loss(
        self, classes: Tensor, allowed: Tensor, targets: list[Targets], matches: Matches
    ) -> Tensor:
        """Return the weighted mean over the queries of the loss of their class."""
        accepted = F.pad(allowed, (0, 1), value=True)  # "no object"
        weights = torch.full(classes.shape[:2], self._weights.no_object, device=classes.device)
        weights = weights.masked_fill(allowed.all(-1), 0)  # any answer is right
        for image, (queries, numbers) in enumerate(matches):
            accepted[image, queries] = False
            accepted[image, queries, targets[image].classes[numbers]] = True
            weights[image, queries] = 1.0
        log = F.log_softmax(classes, -1).masked_fill(~accepted, -torch.inf).logsumexp(-1)
        return -(log * weights).sum() / mean_over_ranks(weights.sum()).clamp(min=_LEAST)


def _allowed(masks: Tensor, is_open: Tensor) -> Tensor:
    """Return whether each query may predict each class although it has no target, (n q k)."""
    inside = masks.detach().sigmoid()
    share = torch.einsum("nqxy,nkxy->nqk", inside, is_open.to(inside.dtype))
    return share >= _OPEN_SHARE * inside.sum((2, 3))[..., None].clamp(min=_LEAST)


def _marginal_loss(classes: Tensor, masks: Tensor, possible: Tensor, is_open: Tensor) -> Tensor:
    """Return the marginal loss of the semantic scores, averaged over the voxels of partially annotated images."""
    excludes = ~possible.all(1)
    partial = (is_open.any(1) & excludes).flatten(1).any(1)
    counted = excludes & partial[:, None, None]
    scores = torch.stack([semantic_scores(*one) for one in zip(classes, masks, strict=True)]) + FLOOR
    costs = scores.sum(1).log() - (scores * possible).sum(1).log()
    return (costs * counted).sum() / mean_over_ranks(counted.sum().to(costs.dtype)).clamp(min=1.0)
