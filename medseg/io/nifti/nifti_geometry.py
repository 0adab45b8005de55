"""The affine of a NIfTI file: which of its three descriptions is used, and whether they contradict each other.

A header describes the positions of its voxels up to three times: by the sform (a matrix), by the qform (a rotation with
the voxel sizes ``pixdim``), and by ``pixdim`` alone. Programs differ in which one they use, so files that contradict
themselves are shown at different places.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.nifti.nifti_header import NiftiFile
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.volumes.grid import EQUAL_WITHIN_VOXELS, Grid

UNITS_MASK = 0b111
_MM = {1: 1000.0, 3: 0.001}  # per metre and per micron; all other codes count as mm
_CHOOSE = "choose with --orientation-from (data.orientation_from in a config)"
_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """The grid of a file, and what its header contradicts.

    Attributes:
        grid: Grid of three axes with an affine in mm.
        consistent: Whether the header may be written again as it is.
        notes: Contradictions that the user did not decide, one sentence each.
    """

    grid: Grid
    consistent: bool
    notes: tuple[str, ...]


def placement(file: NiftiFile, orientation_from: OrientationFrom | None = None) -> Placement:
    """Return the grid of a file.

    The sform is used if its code is set, else the qform if its code is set. With `orientation_from`, that description
    is used where the header has it: ``"sform"`` and ``"qform"`` if their code is set or no code is; ``"pixdim"`` takes the
    voxel sizes of that field, with the directions and the first voxel of the sform or qform, or, if no code is set, with
    axes to the right, anterior and superior (method 1 of the NIfTI standard).

    Args:
        file: The file.
        orientation_from: The description that the user chose; None to refuse files in which left and right are a guess.

    Returns:
        The grid in mm, and contradictions that other programs may resolve in another way.

    Raises:
        DataError: No code is set, or sform and qform disagree about the directions of the axes, and the user did not
            choose; or the chosen description is not valid.
    """
    forms = _Forms(file)
    if not forms.coded and orientation_from is None:
        raise DataError(
            f"{file.path}: qform_code and sform_code: found 0 and 0, expected a code above 0, because left and right are a "
            f"guess without one. Set the code of the right one, or {_CHOOSE}: sform, qform or pixdim."
        )
    name, affine = forms.chosen(orientation_from)
    grid = _grid(affine * forms.unit, file)
    notes = [*forms.disagreement(orientation_from, name, grid), *forms.other_sizes(name, affine)]
    # A qform cannot hold a shear, so that next to a sheared sform it says something else.
    agree = not (grid.is_sheared and len(forms.coded) == 2)
    consistent = not notes and agree and affine is forms.coded.get(name)
    return Placement(grid, consistent, () if orientation_from else tuple(notes))


def in_mm(affine: _Matrix, units: Any) -> _Matrix:
    """Return an affine in mm.

    Args:
        affine: Affine in the units of a header.
        units: Its field ``xyzt_units``.

    Returns:
        Affine `(4, 4)` in mm.
    """
    return affine * _factor(units)


def _factor(units: Any) -> _Matrix:
    factor = _MM.get(int(units) & UNITS_MASK, 1.0)
    return np.array([[factor], [factor], [factor], [1.0]])


class _Forms:
    """The descriptions of a header, in its own units.

    Args:
        file: The file.

    Attributes:
        file: The file.
        coded: Matrices by name whose code is set.
        unit: Factors to mm.
        sizes: The field ``pixdim`` along the three axes; 1 for an axis that the file does not have.
    """

    def __init__(self, file: NiftiFile) -> None:
        self.file, header = file, file.header
        self.unit = _factor(header["xyzt_units"])
        sizes = np.array(header["pixdim"][1:4], dtype=np.float64)
        sizes[len(file.shape) :] = np.where(sizes[len(file.shape) :] > 0, sizes[len(file.shape) :], 1.0)
        self.sizes = sizes
        codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
        self.coded: dict[str, _Matrix | None] = {
            name: self._matrix(name) for name, code in codes.items() if code > 0
        }

    def _matrix(self, name: str) -> _Matrix | None:
        """Return the matrix of the sform or qform whatever its code; None for a qform that is no rotation."""
        header = self.file.header
        if name == "sform":
            rows = [header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]]
            return np.array(rows, dtype=np.float64)
        fixed = header.copy()
        fixed["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the standard's reading of other values
        fixed["pixdim"][1:4] = self.sizes
        if not (self.sizes > 0).all():
            return None
        with contextlib.suppress(ValueError, HeaderDataError):
            matrix = np.asarray(fixed.get_qform(coded=False), dtype=np.float64)
            return matrix if np.isfinite(matrix).all() else None
        return None

    def chosen(self, orientation_from: OrientationFrom | None) -> tuple[str, _Matrix]:
        """Return the name and the matrix of the description to use."""
        names = [orientation_from] if orientation_from in self.coded else list(self.coded)
        if not names and orientation_from == "pixdim":
            return "pixdim", np.diag([*self._checked_sizes(), 1.0])
        name = str(names[0] if names else orientation_from)
        matrix = self.coded[name] if names else self._matrix(name)
        if matrix is None:
            self._checked_sizes()
            raise DataError(
                f"{self.file.path}: qform: found quaternion {self._quaternion()}, expected one of length at most 1. Convert "
                "the file again from its source."
            )
        if orientation_from == "pixdim" and self._differing_sizes(matrix):
            directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
            matrix = matrix.copy()
            matrix[:3, :3] = directions * self._checked_sizes()
        return name, matrix

    def _checked_sizes(self) -> _Matrix:
        for axis, size in enumerate(self.sizes, 1):
            if not (size > 0 and np.isfinite(size)):
                raise DataError(
                    f"{self.file.path}: pixdim[{axis}]: found {size:g}, expected a voxel size above 0. Correct the header, "
                    "or convert the file again."
                )
        return self.sizes

    def _quaternion(self) -> str:
        return ", ".join(f"{float(self.file.header[f'quatern_{letter}']):g}" for letter in "bcd")

    def _differing_sizes(self, matrix: _Matrix) -> bool:
        """Return whether voxel sizes of a matrix and of ``pixdim`` differ by more than rounding over the whole image."""
        shape = (*self.file.shape, 1, 1)[:3]
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = np.abs(self.sizes / lengths - 1) * np.array(shape)
        return not bool((drift <= EQUAL_WITHIN_VOXELS).all())

    def other_sizes(self, name: str, affine: _Matrix) -> list[str]:
        """Return a note if ``pixdim`` contradicts the affine that is used."""
        if name == "pixdim" or not self._differing_sizes(affine):
            return []
        axes = len(self.file.shape[:3])
        found = _sizes(np.linalg.norm(affine[:3, :3], axis=0)[:axes])
        return [
            f"voxel size: found {_sizes(self.sizes[:axes])} in pixdim and {found} in the {name}, expected the same voxel sizes. The {name} "
            f"is used; correct the wrong one, or {_CHOOSE}."
        ]

    def disagreement(self, orientation_from: OrientationFrom | None, name: str, grid: Grid) -> list[str]:
        """Return a note if sform and qform are both set and differ; raise if their axes have other directions."""
        if len(self.coded) < 2:
            return []
        sform, qform = self.coded["sform"], self.coded["qform"]
        if qform is None or sform is None:
            return [
                f"qform: found no rotation (quaternion {self._quaternion()}), expected a length of at most 1. The {name} is used; "
                "correct the header."
            ]
        try:
            first, second = Grid(grid.shape, sform * self.unit), Grid(grid.shape, qform * self.unit)
        except DataError:
            return [
                f"sform and qform: found one that is no valid affine, expected two. The {name} is used; correct the header."
            ]
        if orientation_from is None and not _same_axes(first, second):
            raise DataError(
                f"{self.file.path}: sform and qform: found axes {first.axcodes} and {second.axcodes}, expected the same, because "
                f"left and right are a guess otherwise. Correct the wrong one, or {_CHOOSE}: sform or qform."
            )
        if first.matches(second) or (first.is_sheared and self._without_shear(first).matches(second)):
            return []
        places = " and ".join(_place(one) for one in (first, second))
        return [
            f"sform and qform: found first voxels at {places} mm, corners up to {first.distance(second):.3g} mm apart, expected "
            f"the same place. The {name} is used; correct the wrong one, or {_CHOOSE}."
        ]

    def _without_shear(self, grid: Grid) -> Grid:
        """Return the grid that a qform can express of a sheared one, as nibabel writes it next to a sheared sform."""
        header = self.file.header.copy()
        header.set_qform(grid.affine / self.unit, strip_shears=True)
        return Grid(grid.shape, np.asarray(header.get_qform(coded=False), dtype=np.float64) * self.unit)


def _same_axes(first: Grid, second: Grid) -> bool:
    """Return whether each axis of two grids has nearly the same direction."""
    between = np.linalg.inv(first.affine) @ second.affine
    return "".join(aff2axcodes(between)) == "RAS"


def _grid(affine: _Matrix, file: NiftiFile) -> Grid:
    try:
        return Grid((*file.shape, 1, 1)[:3], affine)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from None


def _sizes(values: Any) -> str:
    return "x".join(f"{value:.6g}" for value in values)


def _place(grid: Grid) -> str:
    return f"({', '.join(f'{value:.6g}' for value in grid.affine[:3, 3])})"
