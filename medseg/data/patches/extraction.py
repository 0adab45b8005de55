"""Patches of a stored case: its image and all of its maps, rotated and scaled in a single read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.interpolation import (
    interpolate_ids,
    interpolate_image,
    interpolate_labels,
    sampling_grid,
)


@dataclass(frozen=True)
class Patch:
    """One box of voxels of a case: the image and the maps that belong to it.

    Attributes:
        image: Intensities `(c, *spatial)` float32.
        label: Label map `(1, *spatial)` int64.
        instances: Instance ids `(1, *spatial)` int64; None if the case has no instance map.
        first_stage: Class indices `(1, *spatial)` int64 that the first stage of a cascade predicted; None without one.
    """

    image: Tensor
    label: Tensor
    instances: Tensor | None = None
    first_stage: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Patch:
        """Return the patch with `change`, such as a flip, applied to the image and to every map."""
        return Patch(
            change(self.image),
            change(self.label),
            None if self.instances is None else change(self.instances),
            None if self.first_stage is None else change(self.first_stage),
        )


@dataclass(frozen=True)
class PatchReader:
    """Reads patches of one size from stored cases.

    Attributes:
        size: Voxels per array axis, three numbers.
        with_instances: Whether to read the instance map.
        with_first_stage: Whether to read the label map of the first stage.
    """

    size: tuple[int, ...]
    with_instances: bool = False
    with_first_stage: bool = False

    def read(
        self, case: StoredCase, centre: NDArray[np.intp], matrix: NDArray[np.float64] | None = None
    ) -> Patch:
        """Read a patch, rotated and scaled by `matrix`; voxels outside the case are 0.

        Images are interpolated linearly. Labels and ids are interpolated one at a time and the largest share wins.

        Args:
            case: Prepared case.
            centre: Voxel `(3,)` that comes to index ``size // 2``.
            matrix: `(3, 3)` from patch offsets to source offsets, both in voxels; None for a plain crop.

        Returns:
            The patch, with a map only for those that are requested.
        """
        start, box, grid = _source_box(centre, self.size, matrix)
        image = torch.from_numpy(_read_box(case.image, start, box).astype(np.float32, copy=False))
        label = _read_box(case.label, start, box)
        ids = _read_box(case.instances, start, box) if self.with_instances else None
        classes = _read_box(case.first_stage, start, box) if self.with_first_stage else None
        if grid is None:
            return Patch(
                image, _as_int64(label), *(None if m is None else _as_int64(m) for m in (ids, classes))
            )
        return Patch(
            interpolate_image(image, grid),
            interpolate_labels(label, grid),
            None if ids is None else interpolate_ids(_as_int64(ids), grid),
            None if classes is None else interpolate_labels(classes, grid),
        )


def _as_int64(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _source_box(
    centre: NDArray[np.intp], size: tuple[int, ...], matrix: NDArray[np.float64] | None
) -> tuple[NDArray[np.intp], tuple[int, ...], Tensor | None]:
    """Return start and size of the box that a patch needs, and its sampling grid; None for the box itself."""
    if matrix is None:
        return centre - np.array(size) // 2, size, None
    offsets = np.array(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij")).reshape(3, 8)
    middle = np.array(size)[:, None] // 2
    reach = matrix @ (offsets - middle)
    start = np.floor(reach.min(axis=1)).astype(np.intp) + centre
    end = np.ceil(reach.max(axis=1)).astype(np.intp) + centre + 1
    box = tuple(int(n) for n in end - start)
    return start, box, sampling_grid(matrix, size, box, centre - start)


def _read_box(
    array: NDArray[np.generic], start: NDArray[np.intp], size: Sequence[int]
) -> NDArray[np.generic]:
    """Return a copy of `(C, *size)` from `start`, which may be outside the array; missing voxels are 0."""
    low = np.maximum(start, 0)
    high = np.minimum(start + np.array(size), array.shape[1:])
    result = np.zeros((array.shape[0], *size), dtype=array.dtype)
    if (high <= low).any():
        return result
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    result[(slice(None), *target)] = array[(slice(None), *source)]
    return result
