"""Volumes: an array together with the grid it is defined on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.volumes.grid import Grid, checked_spacing, relative_affine, reorientation_like, separable_maps
from medseg.volumes.largest_share import LargestShare
from medseg.volumes.orientation import permute_array, reorientation
from medseg.volumes.resampling import AxisMap, axis_orders, resample, resample_labels

Kind = Literal["image", "label"]
_UNCHANGED_WITHIN_MM = 0.01  # closer grids share their voxels, and nothing is interpolated
Array = NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image or label map: an array of voxels and their grid.

    Volumes are immutable; methods return new volumes.

    Attributes:
        data: Voxels `(C, X, Y, Z)`. A label map has one channel of integers.
        grid: Positions of the voxels in RAS+ world coordinates, mm.
        kind: ``"image"`` is interpolated as intensities, ``"label"`` label by label.
        header: What the grid does not hold of the file it was read from: geometry fields of NIfTI, so that a volume on the
            same grid can be written with exactly that geometry, or the files of a DICOM series, to which a segmentation
            refers. Empty for computed grids.
        absent: Indices of channels that the study lacks. Their voxels are 0, and stay 0 when intensities are normalised.

    Examples:
        >>> image = Volume(np.zeros((1, 10, 20, 30), np.float32), Grid.from_spacing((10, 20, 30), (1, 1, 2)))
        >>> image
        Volume(10x20x30, 1x1x2 mm, RAS, float32, range 0 to 0)
        >>> image.resampled(spacing=2)
        Volume(5x10x30, 2x2x2 mm, RAS, float32, range 0 to 0)
        >>> image.reoriented("LPS").grid.axcodes
        'LPS'
        >>> image.cropped(start=(2, 2, 2), shape=(4, 4, 4)).data.shape
        (1, 4, 4, 4)
    """

    data: Array
    grid: Grid
    kind: Kind = "image"
    header: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape or not self.data.shape[0]:
            raise DataError(
                f"volume: found an array of shape {self.data.shape}, expected (channels, "
                f"{', '.join(map(str, self.grid.shape))}) to fit its grid. Add the channel axis first."
            )
        if self.kind == "label" and (self.data.shape[0] != 1 or self.data.dtype.kind not in "iub"):
            raise DataError(
                f"label map: found {self.data.shape[0]} channels of {self.data.dtype}, "
                "expected one channel of integers. Read it with read_labels."
            )

    @property
    def is_label(self) -> bool:
        """Whether this is a label map."""
        return self.kind == "label"

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(self.data.shape[0])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The voxel size along each array axis, mm."""
        return self.grid.spacing

    def with_data(self, data: Array, kind: Kind | None = None) -> Volume:
        """Return a volume with other voxels on the same grid, including the geometry header.

        Args:
            data: Voxels `(C, X, Y, Z)`.
            kind: ``"image"`` or ``"label"``; that of this volume if None.

        Returns:
            A volume on the same grid.
        """
        kind = kind or self.kind
        return replace(self, data=data, kind=kind, absent=self.absent if kind == "image" else ())

    def reoriented(self, axcodes: str = "RAS") -> Volume:
        """Return the same voxels with permuted and flipped axes.

        Args:
            axcodes: Anatomical directions that the axes should be closest to, such as ``"LPS"``.

        Returns:
            A volume with the same voxels at the same positions.
        """
        return self._permuted(*reorientation(self.grid.axcodes, axcodes))

    def reoriented_like(self, grid: Grid) -> Volume:
        """Return the same voxels with axes permuted and flipped to be as close as possible to those of `grid`.

        Unlike axis codes, this does not depend on rounding for oblique grids near 45 degrees.

        Args:
            grid: Grid whose axes are matched.

        Returns:
            A volume with the same voxels at the same positions.
        """
        return self._permuted(*reorientation_like(self.grid, grid))

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Volume:
        """Return a box of voxels.

        Args:
            start: First voxel of the box.
            shape: Shape of the box.

        Returns:
            A volume of shape `shape`.

        Raises:
            DataError: The box is not inside the volume.
        """
        ends = [s + n for s, n in zip(start, shape, strict=True)]
        if min(start) < 0 or any(e > n for e, n in zip(ends, self.grid.shape, strict=True)):
            raise DataError(
                f"crop: found box {tuple(start)} to {tuple(ends)}, expected it inside {self.grid.shape}. Use padded."
            )
        box = tuple(slice(s, e) for s, e in zip(start, ends, strict=True))
        return self._with(self.data[(slice(None), *box)], self.grid.cropped(start, shape))

    def padded(self, before: Sequence[int], after: Sequence[int], value: float = 0) -> Volume:
        """Return the volume extended by voxels of a constant value.

        Args:
            before: Number of voxels to add before each axis.
            after: Number of voxels to add after each axis.
            value: Value of the added voxels.

        Returns:
            The extended volume; the positions of existing voxels are unchanged.

        Raises:
            DataError: A number is negative.
        """
        widths = [(int(b), int(a)) for b, a in zip(before, after, strict=True)]
        if min(min(pair) for pair in widths) < 0:
            raise DataError(f"padding: found {widths}, expected no negative width. Use cropped.")
        data = np.pad(self.data, [(0, 0), *widths], constant_values=value)
        return self._with(data, self.grid.cropped([-b for b, _ in widths], data.shape[1:]))

    def resampled(
        self,
        spacing: Sequence[float] | float | None = None,
        *,
        shape: Sequence[int] | None = None,
        like: Volume | Grid | None = None,
        order: int = 3,
    ) -> Volume:
        """Return the volume interpolated onto another grid. Give exactly one of `spacing`, `shape` and `like`.

        Images are interpolated by splines. Label maps are interpolated linearly, label by label, by the rule of
        `medseg.volumes.largest_share`. If the spacing along one axis exceeds three times the smallest spacing, that axis
        uses nearest neighbour (nnU-Net's rule for thick slices), unless the grids are rotated against each other.
        Samples up to half a voxel outside the volume repeat its border; samples further outside are 0.

        Args:
            spacing: Voxel size in mm, one number or one per axis, around the same centre.
            shape: Number of voxels over exactly the same field of view (nnU-Net's resizing).
            like: A grid, or a volume whose grid is used, in any orientation.
            order: Spline order for images: 0, 1 or 3.

        Returns:
            A volume on the other grid. Images have a floating-point type; label maps keep theirs.

        Raises:
            DataError: Not exactly one target is given, or the order is not supported.
        """
        if (spacing is not None) + (shape is not None) + (like is not None) != 1:
            raise DataError("resampled: expected exactly one of spacing, shape and like. Give one of them.")
        if order not in (0, 1, 3):
            raise DataError(f"resampled: found order {order}, expected 0, 1 or 3. Use 3 for images.")
        if like is not None:
            return self._resample_to(like.grid if isinstance(like, Volume) else like, order)
        if shape is not None:
            return self._resample_to(self.grid.with_shape(shape), order)
        assert spacing is not None
        return self._resample_to(self.grid.with_spacing(checked_spacing(spacing)), order)

    def _resample_to(self, target: Grid, order: int) -> Volume:
        source = self.reoriented_like(target)
        if source.grid.matches(target) and source.grid.distance(target) <= _UNCHANGED_WITHIN_MM:
            return source._with(source.data, target)
        order = 1 if self.is_label else order
        maps = separable_maps(source.grid, target)
        if maps is None:
            return source._resample_reoriented(target, order)
        orders = axis_orders(order, source.spacing, target.spacing)
        data = (resample_labels if self.is_label else resample)(source.data, maps, orders)
        return source._with(_zero_outside_source(data, maps), target)

    def _resample_reoriented(self, target: Grid, order: int) -> Volume:
        matrix = relative_affine(self.grid, target)

        def interpolate(channel: Array, order: int, mode: str = "nearest") -> Array:
            from scipy import ndimage

            values = channel.astype(np.float32, copy=False)
            moved = ndimage.affine_transform(
                values, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=order, mode=mode
            )
            return np.clip(moved, values.min(), values.max()) if order > 1 else np.asarray(moved)

        # Interpolation towards 0 extends one voxel beyond the outermost centres, which is half a voxel outside.
        outside = interpolate(np.ones(self.grid.shape, np.float32), 1, "grid-constant") <= 0
        if self.is_label:
            data = self._interpolate_labels(matrix, target, lambda indicator: interpolate(indicator, 1))
        else:
            data = np.stack([interpolate(channel, order) for channel in self.data])
        data[:, outside] = 0
        return self._with(data, target)

    def _interpolate_labels(
        self, matrix: NDArray[np.float64], target: Grid, interpolate: Callable[[Array], Array]
    ) -> Array:
        """Return the label map `(1, X, Y, Z)` on `target`, by the rule of `medseg.volumes.largest_share`."""
        from scipy import ndimage

        labels = self.data[0].astype(np.uint8) if self.data.dtype == bool else self.data[0]
        nearest = ndimage.affine_transform(
            labels, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=0, mode="nearest"
        )
        decision = LargestShare(nearest)
        for label in np.unique(labels):
            decision.add(label, interpolate(labels == label))
        return decision.labels[None].astype(self.data.dtype, copy=False)

    def _permuted(self, axes: Sequence[int], flips: Sequence[bool]) -> Volume:
        if tuple(axes) == (0, 1, 2) and not any(flips):
            return self
        return self._with(
            np.ascontiguousarray(permute_array(self.data, axes, flips)), self.grid.permuted(axes, flips)
        )

    def _with(self, data: Array, grid: Grid) -> Volume:
        return Volume(data, grid, self.kind, absent=self.absent)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.grid.shape))
        spacing = "x".join(f"{value:.4g}" for value in self.spacing)
        channels = f"{self.channels} channels, " if self.channels > 1 else ""
        if self.is_label:
            values = np.unique(self.data)
            content = f"labels {', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}"
        else:
            content = f"range {_number(self.data.min())} to {_number(self.data.max())}"
        return f"Volume({channels}{shape}, {spacing} mm, {self.grid.axcodes}, {self.data.dtype}, {content})"


def _zero_outside_source(data: Array, maps: Sequence[AxisMap]) -> Array:
    """Set voxels of `(C, X, Y, Z)` to 0 that are more than half a voxel outside the source."""
    for axis, axis_map in enumerate(maps, start=1):
        position = np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset
        outside = (position <= -1) | (position >= axis_map.n_in)
        if outside.any():
            data[(slice(None),) * axis + (outside,)] = 0
    return data


def _number(value: Any) -> str:
    return f"{value:.6g}"
