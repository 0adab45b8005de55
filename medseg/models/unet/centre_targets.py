"""Training targets of instances: relative distances from their borders, and offsets to their centres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.labels.components import components_of_classes
from medseg.labels.instances import Instances, Mask
from medseg.volumes.boxes import Box


@dataclass(frozen=True)
class CentreTargets:
    """The targets of the voxels of some patches.

    Attributes:
        distance: Distance (n 1 *spatial) of a voxel from the border of its instance, relative to the largest distance in the
            instance; 0 for background.
        offsets: Offset (n d *spatial) to the centre of the instance in voxels; 0 for background.
        size: Mean length (n 1 *spatial) of the offsets of the instance in mm; 1 for background.
        inside: Voxels (n 1 *spatial) bool of instances.
        known: Voxels (n 1 *spatial) bool whose distance is known. Where a patch cuts an instance, its border may be nearer
            outside of the patch than inside.
        lengths: Mean length (m) of the offsets in mm of each instance that no border of a patch may cut.
        spacing: Voxel size in mm per axis.
    """

    distance: Tensor
    offsets: Tensor
    size: Tensor
    inside: Tensor
    known: Tensor
    lengths: Tensor
    spacing: tuple[float, ...]

    def losses(self, predicted: Tensor) -> dict[str, Tensor]:
        """Return the losses of distances and offsets.

        Both are mean absolute errors. That of distances is averaged over instances and background separately, because there
        is more background. That of offsets is in mm, relative to the size of the instance.

        Args:
            predicted: Distance, followed by one offset per axis in voxels (n 1+d *spatial), float32.

        Returns:
            The losses by name.
        """
        inside = self.inside.float()
        error = (predicted[:, :1] - self.distance).abs() * self.known
        distance = _mean(error, inside * self.known) + _mean(error, (1 - inside) * self.known)
        mm = torch.tensor(self.spacing, device=predicted.device).view(-1, *[1] * (predicted.dim() - 2))
        lengths = ((predicted[:, 1:] - self.offsets).abs() * mm).sum(1, keepdim=True) / self.size
        return {"distance": distance, "offsets": _mean(lengths, inside)}


def centre_targets(
    label: Tensor, instances: Tensor | None, *, num_classes: int, spacing: Sequence[float]
) -> CentreTargets:
    """Return the targets of the instances in some patches.

    The centre of an instance is its voxel nearest to its centre of mass. An instance that is cut by the border of a patch
    has the centre of its visible part, as in an image that ends there.

    Args:
        label: Class indices (n 1 *spatial); voxels of classes from `num_classes` on, which are not annotated, are unknown.
        instances: Instance maps (n 1 *spatial); None if the connected components of each class are the instances.
        num_classes: Number of classes, background included.
        spacing: Voxel size in mm per axis.

    Returns:
        The targets on the device of `label`.
    """
    classes = label[:, 0].cpu().numpy()
    unknown = classes >= num_classes
    if instances is None:
        ids = [
            components_of_classes(np.where(off, 0, one)) for one, off in zip(classes, unknown, strict=True)
        ]
    else:
        ids = list(np.where((classes > 0) & ~unknown, instances[:, 0].cpu().numpy(), 0))
    found = [_targets(one, np.asarray(spacing, float)) for one in ids]
    distance, offsets, size, known = (
        np.stack(part) for part in zip(*(one[:4] for one in found), strict=True)
    )
    lengths = np.concatenate([one[4] for one in found])
    known &= ~unknown[:, None]
    inside = np.stack(ids)[:, None] > 0
    on_device = partial(torch.tensor, device=label.device)
    return CentreTargets(
        distance=on_device(distance),
        offsets=on_device(offsets),
        size=on_device(size),
        inside=on_device(inside),
        known=on_device(known),
        lengths=on_device(lengths),
        spacing=tuple(float(mm) for mm in spacing),
    )


def _targets(
    ids: NDArray[np.integer], spacing: NDArray[np.float64]
) -> tuple[
    NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]
]:
    """Return distance, offsets, size and known of one patch, each with a leading axis, and the length of each instance."""
    distance = np.zeros((1, *ids.shape), np.float32)
    offsets = np.zeros((ids.ndim, *ids.shape), np.float32)
    size = np.ones((1, *ids.shape), np.float32)
    known = np.ones((1, *ids.shape), bool)
    instances = Instances.from_map(ids)
    lengths: list[float] = []
    for index, mask in enumerate(instances.masks):
        box: Any = instances.box(index)
        places = np.argwhere(mask)
        middle = places.mean(axis=0)
        centre = places[(((places - middle) * spacing) ** 2).sum(axis=1).argmin()]
        to_centre = centre - places
        inner: Any = tuple(places.T)
        offsets[(slice(None), *box)][(slice(None), *inner)] = to_centre.T
        mean = float(np.sqrt(((to_centre * spacing) ** 2).sum(axis=1)).mean())
        mean = max(mean, float(spacing.min()) / 2)
        size[(0, *box)][inner] = mean
        if all(side.start > 0 and side.stop < n for side, n in zip(box, ids.shape, strict=True)):
            lengths.append(mean)
        depth, certain = _depth(mask, box, ids.shape, spacing)
        distance[(0, *box)][inner] = depth[inner] / depth.max()
        known[(0, *box)][inner] = certain[inner]
    return distance, offsets, size, known, np.array(lengths, np.float32)


def _depth(
    mask: Mask, box: Box, shape: Sequence[int], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Mask]:
    """Return the distance (mm) of the voxels of a mask from its border, and where it is known.

    The border of the patch is no border of the mask. The mask may end right behind it, so that distances that are longer
    than that to the border of the patch are not known.
    """
    sides = [(int(side.start > 0), int(side.stop < size)) for side, size in zip(box, shape, strict=True)]
    padded = np.pad(mask, sides)
    inner = tuple(slice(low, low + n) for (low, _), n in zip(sides, mask.shape, strict=True))
    if padded.all():
        return np.ones(mask.shape), np.zeros(mask.shape, bool)
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(padded, sampling=spacing)[inner]
    certain = np.ones(mask.shape, bool)
    for axis, (low, high) in enumerate(sides):
        steps = np.arange(1, mask.shape[axis] + 1) * spacing[axis]
        along = [-1 if a == axis else 1 for a in range(mask.ndim)]
        if not low:
            certain &= depth <= steps.reshape(along)
        if not high:
            certain &= depth <= steps[::-1].reshape(along)
    return depth, certain


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return a weighted mean, 0 without weights."""
    return (values * weights).sum() / weights.sum().clamp(min=1)
