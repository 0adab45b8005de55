"""Instances in an image: what instance models detect, and their training targets.

Boxes are corners in array order, ``(x0, y0, x1, y1)`` in voxels with x along the first spatial axis, half open: the
box of one voxel at (3, 5) is (3, 5, 4, 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.errors import ModelError, error_message
from medseg.labels.components import components_of_classes


@dataclass(frozen=True)
class Detections:
    """The instances detected in one image, best score first.

    Attributes:
        scores: Scores (d) in 0…1.
        classes: Class indices (d) int64, never 0.
        boxes: Corners (d 4) in voxels.
        masks: Masks (d x y) bool on the image's grid; masks may overlap.

    Examples:
        >>> import torch
        >>> from medseg.models import Detections
        >>> found = Detections(torch.ones(1), torch.ones(1).long(), torch.tensor([[3, 5, 4, 6]]), torch.zeros(1, 8, 8) > 0)
        >>> len(found)
        1
    """

    scores: Tensor
    classes: Tensor
    boxes: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Targets:
    """The targets of one training image: regions without instances first, then instances, largest first.

    Attributes:
        classes: Class indices (o) int64.
        boxes: Corners (o 4) float32 in voxels; boxes are never empty.
        masks: Masks (o x y) bool.
    """

    classes: Tensor
    boxes: Tensor
    masks: Tensor


def instance_targets(
    label: Tensor,
    instances: Tensor | None = None,
    *,
    num_classes: int,
    limit: int,
    regions: bool = False,
) -> list[Targets]:
    """Return the instances of each image.

    With an instance map, each positive number is one instance, and its class is the most frequent foreground class
    inside it. Without one, each connected component of a foreground class (neighbours share an edge or a
    corner) is one instance.

    Args:
        label: Class indices (n 1 x y).
        instances: None, or instance maps (n 1 x y) of integers on the same grid, 0 where there is no instance.
        num_classes: Number of classes, background included.
        limit: Maximum number of instances per image; the largest are kept.
        regions: Whether voxels outside of all instances, background included, form one target per class. Each voxel
            then belongs to a target, unless its instance exceeds the limit.

    Returns:
        The targets of each image.

    Raises:
        ModelError: A label is not a class.
    """
    _check(label, num_classes)
    if instances is None:
        ids = [components_of_classes(one[0]) for one in label.cpu().numpy()]
    else:
        ids = list(instances[:, 0].cpu().numpy())
    return [
        _targets(one[0], numbers, num_classes, limit, regions, label.device)
        for one, numbers in zip(label.cpu().numpy(), ids, strict=True)
    ]


def boxes_of(masks: Tensor) -> Tensor:
    """Return the half-open boxes (o 4), float32, of non-empty masks (o x y)."""
    corners = []
    for axis in (2, 1):
        covered = masks.any(dim=axis).int()
        low = covered.argmax(dim=1)
        corners.append((low, covered.shape[1] - covered.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = corners
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _targets(
    label: np.ndarray,
    ids: np.ndarray,
    num_classes: int,
    limit: int,
    regions: bool,
    device: torch.device,
) -> Targets:
    """Return the targets of one image from its label map and instance map, both (x y)."""
    inside = (ids > 0) & (label > 0)
    known, number = np.unique(ids[inside], return_inverse=True)
    table = np.bincount(number * num_classes + label[inside], minlength=len(known) * num_classes)
    table = table.reshape(len(known), num_classes)
    kept = np.argsort(-table.sum(axis=1), kind="stable")[:limit]
    masks = [inside & (ids == known[i]) for i in kept]
    classes = [int(table[i].argmax()) for i in kept]
    if regions:
        rest = ~inside
        present = [int(value) for value in np.unique(label[rest])][: max(limit - len(masks), 1)]
        masks = [(label == value) & rest for value in present] + masks
        classes = (present + classes)[:limit]
    stacked = torch.from_numpy(np.stack(masks[:limit])) if masks else torch.zeros(0, *label.shape).bool()
    return Targets(
        torch.tensor(classes, dtype=torch.int64).to(device), boxes_of(stacked).to(device), stacked.to(device)
    )


def _check(label: Tensor, num_classes: int) -> None:
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= num_classes:
        fix = "Give class indices, or build the model for more classes"
        expected = f"0 to {num_classes - 1}"
        raise ModelError(
            error_message("losses", "label values", found=f"{low} to {high}", expected=expected, fix=fix)
        )
