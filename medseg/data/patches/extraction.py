"""Patches of a stored case: its image and all of its maps, rotated and scaled in a single read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.device_interpolation import interpolate_map, on_host
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
        outside: Voxels `(c, *spatial)` outside the masks of masked normalisations; None without one.
        probabilities: Probabilities `(k - 1, *spatial)` float32 of the foreground classes; None if the case has no soft
            labels.
    """

    image: Tensor
    label: Tensor
    instances: Tensor | None = None
    outside: Tensor | None = None
    probabilities: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Patch:
        """Return the patch with `change`, such as a flip, applied to the image and to every map."""
        return Patch(
            change(self.image),
            change(self.label),
            None if self.instances is None else change(self.instances),
            None if self.outside is None else change(self.outside),
            None if self.probabilities is None else change(self.probabilities),
        )


@dataclass(frozen=True)
class Rotation:
    """The place of a rotated and scaled patch in the box of voxels that it is interpolated from.

    Attributes:
        matrix: `(3, 3)` from patch offsets to source offsets, both in voxels.
        size: Voxels of the patch per axis.
        centre: Voxel `(3,)` of the box that comes to index ``size // 2``.
    """

    matrix: NDArray[np.float64]
    size: tuple[int, ...]
    centre: NDArray[np.intp]


@dataclass(frozen=True)
class Box:
    """The voxels of a case from which a patch is interpolated, as they are stored.

    Attributes:
        image: Intensities `(c, *box)`.
        label: Label map `(1, *box)`, uint8 or int32.
        instances: Instance ids `(1, *box)` int32; None if the case has no instance map.
        first_stage: Class indices `(1, *box)` of the first stage of a cascade; None without one.
        rotation: Place of the patch in the box; None if the box is the patch.
        masks: Voxels `(m, *box)` inside the masks of masked normalisations, uint8; None if they are not needed.
        mask_rows: Index of the mask of each channel of the image; None for a channel without one.
        probabilities: Probabilities `(k - 1, *box)` of the foreground classes, float16; None if the case has no soft labels.
    """

    image: Tensor
    label: Tensor
    instances: Tensor | None = None
    first_stage: Tensor | None = None
    rotation: Rotation | None = None
    masks: Tensor | None = None
    mask_rows: tuple[int | None, ...] = ()
    probabilities: Tensor | None = None

    def patch(self) -> Patch:
        """Return the patch, interpolated on the device of the box.

        Images and probabilities are interpolated linearly. Labels and ids are interpolated one at a time and the largest share wins.
        """
        grid = self._grid()
        image = self.image.float()
        soft = None if self.probabilities is None else self.probabilities.float()
        return Patch(
            image if grid is None else interpolate_image(image, grid),
            _labels(self.label, grid),
            None if self.instances is None else _ids(self.instances, grid),
            None if self.masks is None else self._outside(self.masks, grid),
            soft if soft is None or grid is None else interpolate_image(soft, grid),
        )

    def _outside(self, masks: Tensor, grid: Tensor | None) -> Tensor:
        """Return the voxels of the patch `(c, *size)` outside the mask of each channel; none for a channel without one."""
        outside = [_labels(mask[None], grid)[0] == 0 for mask in masks]
        nowhere = torch.zeros_like(outside[0])
        return torch.stack([nowhere if row is None else outside[row] for row in self.mask_rows])

    def first_stage_patch(self) -> Tensor:
        """Return the class indices `(1, *size)` int64 of the first stage at the voxels of the patch."""
        assert self.first_stage is not None
        return _labels(self.first_stage, self._grid())

    def _grid(self) -> Tensor | None:
        if self.rotation is None:
            return None
        place, box = self.rotation, tuple(self.image.shape[1:])
        return sampling_grid(place.matrix, place.size, box, place.centre, self.image.device)


def _labels(values: Tensor, grid: Tensor | None) -> Tensor:
    """Return labels `(1, *box)` at the samples of a grid, int64."""
    if grid is None:
        return values.long()
    return interpolate_labels(values.numpy(), grid) if on_host(values) else interpolate_map(values, grid)


def _ids(values: Tensor, grid: Tensor | None) -> Tensor:
    """Return instance ids `(1, *box)` at the samples of a grid, int64."""
    if grid is None:
        return values.long()
    return interpolate_ids(values.long(), grid) if on_host(values) else interpolate_map(values, grid)


@dataclass(frozen=True)
class PatchReader:
    """Reads patches of one size from stored cases.

    Attributes:
        size: Voxels per array axis, three numbers.
        with_instances: Whether to read the instance map.
        with_first_stage: Whether to read the label map of the first stage.
        mask_rows: Index of the mask of each channel, as returned by `mask_rows`; empty to read no masks.
        with_probabilities: Whether to read the label probabilities of the cases that have some.
    """

    size: tuple[int, ...]
    with_instances: bool = False
    with_first_stage: bool = False
    mask_rows: tuple[int | None, ...] = ()
    with_probabilities: bool = False

    def read(
        self, case: StoredCase, centre: NDArray[np.intp], matrix: NDArray[np.float64] | None = None
    ) -> Box:
        """Read the box of a patch that is rotated and scaled by `matrix`; voxels outside the case are 0.

        Args:
            case: Prepared case.
            centre: Voxel `(3,)` that comes to index ``size // 2``.
            matrix: `(3, 3)` from patch offsets to source offsets, both in voxels; None for a plain crop.

        Returns:
            The box, with a map only for those that are requested.
        """
        start, shape = _source_box(centre, self.size, matrix)
        return Box(
            torch.from_numpy(_read_box(case.image, start, shape)),
            _as_tensor(_read_box(case.label, start, shape)),
            _as_tensor(_read_box(case.instances, start, shape)) if self.with_instances else None,
            _as_tensor(_read_box(case.first_stage, start, shape)) if self.with_first_stage else None,
            None if matrix is None else Rotation(matrix, self.size, centre - start),
            _as_tensor(_read_box(case.masks, start, shape)) if self._is_masked else None,
            self.mask_rows,
            self._probabilities(case, start, shape),
        )

    def _probabilities(
        self, case: StoredCase, start: NDArray[np.intp], shape: tuple[int, ...]
    ) -> Tensor | None:
        if not (self.with_probabilities and case.has_probabilities):
            return None
        return torch.from_numpy(_read_box(case.probabilities, start, shape))

    @property
    def _is_masked(self) -> bool:
        return any(row is not None for row in self.mask_rows)


def _as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a map as uint8 or int32, with which torch can compute; it knows little of other unsigned types."""
    return torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.int32))


def _source_box(
    centre: NDArray[np.intp], size: tuple[int, ...], matrix: NDArray[np.float64] | None
) -> tuple[NDArray[np.intp], tuple[int, ...]]:
    """Return start and shape of the box that a patch needs."""
    if matrix is None:
        return centre - np.array(size) // 2, size
    offsets = np.array(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij")).reshape(3, 8)
    middle = np.array(size)[:, None] // 2
    reach = matrix @ (offsets - middle)
    start = np.floor(reach.min(axis=1)).astype(np.intp) + centre
    end = np.ceil(reach.max(axis=1)).astype(np.intp) + centre + 1
    return start, tuple(int(n) for n in end - start)


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
