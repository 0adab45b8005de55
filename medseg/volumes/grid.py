"""Grids: the positions of voxels in the patient.

Voxel indices are in array order `(X, Y, Z)`. World coordinates are in mm, RAS+ (right, anterior, superior). Column i of
an affine belongs to array axis i. Spacing is derived from the affine and never stored separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import DataError
from medseg.volumes.orientation import AXES, reorientation
from medseg.volumes.resampling import AxisMap

EQUAL_WITHIN_VOXELS = 0.05
"""Grids match if no corner is further away from its counterpart along any axis, in voxels of either grid: far above the
rounding of headers and far below a shift that changes labels, whatever the size of the voxels."""
SHEAR_TOLERANCE = 1e-4
"""Largest absolute cosine between two axes that still counts as a right angle: 0.006 degrees, far above the rounding
of headers in single precision."""
_SEPARABLE_WITHIN_VOXELS = 0.01  # headers round directions to six decimals
_SNAP_WITHIN = 1e-9  # of a whole number, in voxels; float noise of composed affines is near 1e-13


@dataclass(frozen=True, eq=False)
class Grid:
    """The shape and affine of a volume: a box of voxels in space.

    Attributes:
        shape: Number of voxels along each array axis.
        affine: Matrix `(4, 4)` from voxel indices to world positions in mm, float64, read-only.
        in_pixels: Whether the file states no voxel size, as natural images do not; a voxel then counts as 1 mm, and grids
            match by their numbers of voxels.

    Examples:
        >>> grid = Grid.from_spacing((10, 20, 30), spacing=(1, 1, 2.5))
        >>> grid
        Grid(shape=(10, 20, 30), spacing=(1, 1, 2.5) mm, RAS)
        >>> grid.reoriented("SPL").shape
        (30, 20, 10)
        >>> grid.with_spacing((2, 2, 2)).shape
        (5, 10, 38)
        >>> grid.cropped(start=(2, 2, 2), shape=(5, 5, 5)).affine[:3, 3]
        array([2., 2., 5.])
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    in_pixels: bool = False

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        fault = _fault_of_affine(affine)
        if fault is not None:
            raise DataError(
                f"affine: found {fault} in {affine.tolist()}, expected a finite, invertible 4x4 matrix. Correct the file's header."
            )
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", checked_shape(self.shape))

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: Sequence[float] = (1, 1, 1)) -> Grid:
        """Return a RAS grid whose first voxel is at the origin of the world.

        Args:
            shape: Number of voxels along each axis.
            spacing: Voxel size along each axis, mm.

        Returns:
            The grid, with axes along those of the world.
        """
        return cls(tuple(shape), np.diag([*spacing, 1.0]))  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The distance between neighbouring voxel centres along each array axis, mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @cached_property
    def axcodes(self) -> str:
        """The nearest anatomical direction of each array axis, such as ``"RAS"`` or ``"LPI"``."""
        import nibabel.orientations as orientations

        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """The volume of one voxel, mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def shear(self) -> float:
        """The largest absolute cosine between two array axes; 0 for an orthogonal grid."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(directions.T @ directions - np.eye(3)).max())

    @property
    def is_sheared(self) -> bool:
        """Whether two array axes are not at right angles, as after a CT scan with a tilted gantry."""
        return self.shear > SHEAR_TOLERANCE

    @property
    def corners(self) -> NDArray[np.float64]:
        """The world positions `(8, 3)` of the outer corners of the box of voxels, mm."""
        ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.shape], indexing="ij")).reshape(3, 8)
        return world_positions(self.affine, ends.T)

    def distance(self, other: Grid) -> float:
        """Return the largest distance between corresponding corners, mm; infinity if the shapes differ.

        Args:
            other: Grid to compare with.

        Returns:
            The distance, mm.
        """
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners - other.corners, axis=1).max())

    def distance_in_voxels(self, other: Grid) -> float:
        """Return the largest distance between corresponding corners along an axis, in voxels of the finer grid.

        Args:
            other: Grid to compare with.

        Returns:
            The distance; infinity if the shapes differ.
        """
        if self.shape != other.shape:
            return float("inf")
        apart = (self.corners - other.corners).T
        return max(float(np.abs(np.linalg.inv(grid.affine[:3, :3]) @ apart).max()) for grid in (self, other))

    def matches(self, other: Grid) -> bool:
        """Return whether both grids are the same box of voxels.

        Args:
            other: Grid to compare with.

        Returns:
            True if the shapes are equal and no corner is more than `EQUAL_WITHIN_VOXELS` from its counterpart. A grid in
            pixels takes the voxel size of the other one.
        """
        if self.in_pixels != other.in_pixels:
            pixels, measured = (self, other) if self.in_pixels else (other, self)
            return pixels._stretched_like(measured).matches(measured)
        return self.distance_in_voxels(other) <= EQUAL_WITHIN_VOXELS

    def _stretched_like(self, measured: Grid) -> Grid:
        """Return this grid, whose axes are those of the world, with the voxel size of another grid."""
        sizes = [np.abs(grid.affine[:3, :3]).sum(axis=1) for grid in (measured, self)]
        return Grid(self.shape, np.diag([*(sizes[0] / sizes[1]), 1.0]) @ self.affine)

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """Return the grid of a box of voxels.

        Args:
            start: First voxel of the box. Negative values extend the grid.
            shape: Shape of the box, which may reach beyond the grid.

        Returns:
            A grid of shape `shape`.
        """
        return self._mapped(np.eye(3), np.asarray(start, dtype=float), shape)

    def reoriented(self, axcodes: str = AXES) -> Grid:
        """Return the grid of the same voxels with other array axes.

        Args:
            axcodes: Anatomical directions that the axes should be closest to, such as ``"LPS"``.

        Returns:
            The grid, with the positions of all voxels unchanged.
        """
        return self.permuted(*reorientation(self.axcodes, axcodes))

    def permuted(self, axes: Sequence[int], flips: Sequence[bool]) -> Grid:
        """Return the grid of the same voxels with permuted and reversed axes.

        Args:
            axes: Source axis of each new axis.
            flips: Whether each new axis is reversed.

        Returns:
            The grid, with the positions of all voxels unchanged.
        """
        linear = np.zeros((3, 3))
        offset = np.zeros(3)
        for target, (source, flip) in enumerate(zip(axes, flips, strict=True)):
            linear[source, target] = -1 if flip else 1
            offset[source] = self.shape[source] - 1 if flip else 0
        return self._mapped(linear, offset, [self.shape[axis] for axis in axes])

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """Return a grid with another number of voxels over exactly the same field of view.

        Args:
            shape: Number of voxels along each axis; the spacing follows.

        Returns:
            A grid of shape `shape`.
        """
        shape = checked_shape(shape)
        scale = np.array(self.shape) / np.array(shape)
        return self._mapped(np.diag(scale), 0.5 * scale - 0.5, shape)

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """Return a grid with exactly this spacing around the same centre.

        Args:
            spacing: Voxel size along each axis, mm. The number of voxels is rounded.

        Returns:
            A grid of spacing `spacing`.
        """
        spacing = checked_spacing(spacing)
        scale = np.array(spacing) / np.array(self.spacing)
        shape = shape_at_spacing(self.shape, self.spacing, spacing)
        offset = (np.array(self.shape) - 1) / 2 - scale * (np.array(shape) - 1) / 2
        return self._mapped(np.diag(scale), offset, shape)

    def _mapped(self, linear: NDArray[np.float64], offset: NDArray[np.float64], shape: Sequence[int]) -> Grid:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, offset
        return Grid(tuple(shape), self.affine @ matrix, self.in_pixels)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and np.array_equal(self.affine, other.affine)
        )

    def __hash__(self) -> int:
        return hash((self.shape, (self.affine + 0.0).tobytes()))  # equal grids may differ in the sign of 0

    def __repr__(self) -> str:
        spacing = ", ".join(f"{value:.4g}" for value in self.spacing)
        return f"Grid(shape={self.shape}, spacing=({spacing}) mm, {self.axcodes})"


def shape_at_spacing(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return the number of voxels that cover a field of view at another spacing, at least 1 per axis.

    Args:
        shape: Number of voxels along each axis.
        spacing: Their spacing, mm.
        new_spacing: The other spacing, mm.

    Returns:
        Number of voxels along each axis.

    Examples:
        >>> shape_at_spacing((512, 512, 80), (0.8, 0.8, 5), (1.5, 1.5, 1.5))
        (273, 273, 267)
    """
    return tuple(
        max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, new_spacing, strict=True)
    )


def checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return a grid shape as three integers.

    Args:
        shape: Number of voxels along each axis.

    Returns:
        The three sizes.

    Raises:
        DataError: There are not three positive sizes.
    """
    sizes = tuple(int(size) for size in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise DataError(f"grid shape: found {sizes}, expected three positive sizes. Check the file.")
    return (sizes[0], sizes[1], sizes[2])


def checked_spacing(spacing: Sequence[float] | float) -> tuple[float, float, float]:
    """Return a spacing as three floats, mm; a single number is used for all axes.

    Args:
        spacing: Voxel size, mm.

    Returns:
        The three spacings, mm.

    Raises:
        DataError: There are not one or three positive, finite numbers.
    """
    values = tuple(float(value) for value in np.ravel(spacing))
    values = values * 3 if np.ndim(spacing) == 0 else values
    if len(values) != 3 or not all(np.isfinite(value) and value > 0 for value in values):
        raise DataError(
            f"spacing: found {spacing}, expected one or three positive numbers in mm. Correct it."
        )
    return (float(values[0]), float(values[1]), float(values[2]))


def reorientation_like(source: Grid, target: Grid) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the permutation and flips after which the axes of `source` are as close as possible to those of `target`.

    Axis codes are not sufficient for oblique grids: near 45 degrees they depend on rounding.

    Args:
        source: Grid of the array.
        target: Grid whose axes are matched.

    Returns:
        The source axis of each target axis, and whether it is reversed.
    """
    import nibabel.orientations as orientations

    to_target = np.linalg.inv(target.affine) @ source.affine
    return reorientation("".join(orientations.aff2axcodes(to_target)), AXES)


def relative_affine(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Return the matrix `(4, 4)` from voxel indices of `target` to voxel positions in `source`.

    Values that are integers up to float noise are rounded, so that grids that share voxels are recognised. Fractions are
    not rounded: rounding 4/3 would move the far end of a long axis across a tie.

    Args:
        source: Grid that is read from.
        target: Grid of the result.

    Returns:
        Matrix `(4, 4)`.
    """
    matrix = np.linalg.inv(source.affine) @ target.affine
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < _SNAP_WITHIN, whole, matrix)


def separable_maps(source: Grid, target: Grid) -> tuple[AxisMap, ...] | None:
    """Return one `AxisMap` per axis if the axes of both grids are parallel and in the same order, otherwise None.

    Axes count as parallel if ignoring their rotation moves no voxel by more than 0.01 source voxels.

    Args:
        source: Grid that is read from.
        target: Grid of the result.

    Returns:
        Three maps, or None if the grids are rotated against each other.
    """
    matrix = relative_affine(source, target)
    linear = matrix[:3, :3]
    drift = np.abs(linear - np.diag(np.diag(linear))) @ np.array(target.shape)
    if drift.max() > _SEPARABLE_WITHIN_VOXELS:
        return None
    return tuple(
        AxisMap(source.shape[a], target.shape[a], float(linear[a, a]), float(matrix[a, 3])) for a in range(3)
    )


def world_positions(affine: ArrayLike, index: ArrayLike) -> NDArray[np.float64]:
    """Return the world positions `(..., 3)` of voxel indices, mm.

    Args:
        affine: Matrix `(4, 4)`.
        index: Voxel indices `(..., 3)`.

    Returns:
        Positions `(..., 3)`, mm.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(np.asarray(index) @ matrix[:3, :3].T + matrix[:3, 3])


def _fault_of_affine(affine: NDArray[np.float64]) -> str | None:
    """Return what keeps a matrix from being a finite 4x4 matrix with independent axes, whatever the voxel size."""
    if affine.shape != (4, 4):
        return f"{'x'.join(map(str, affine.shape))} numbers"
    if not np.isfinite(affine).all():
        row, column = np.argwhere(~np.isfinite(affine))[0]
        return f"{affine[row, column]} in row {row}, column {column}"
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        return "another last row than 0, 0, 0, 1"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.min() > 0:
        return f"only zeros in column {lengths.argmin()} (determinant 0)"
    determinant = float(np.linalg.det(affine[:3, :3] / lengths))
    return None if abs(determinant) > 1e-6 else f"dependent columns (determinant {determinant:.3g})"
