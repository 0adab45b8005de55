"""NRRD, MetaImage, natural images and the pixels of DICOM series through SimpleITK.

SimpleITK has sizes in the order (x, y, z), arrays in the reversed order (z, y, x), and LPS world coordinates. This
module is the only place that converts them to medseg's `(C, X, Y, Z)` and RAS+.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.errors import DataError, no_such_path
from medseg.io.itk.itk_headers import HEADER_SUFFIXES, check_header
from medseg.io.natural_images import grey_bitmap, grey_with_alpha
from medseg.io.nifti.nifti_files import storable
from medseg.runtime.out_of_memory import is_out_of_memory
from medseg.storage.atomic import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ENDS_EARLY = re.compile(r"expected (?P<expected>\d+) bytes but received (?P<found>\d+)")
_NATURAL = (".png", ".bmp", ".jpg", ".jpeg")


def read_sitk(path: Path) -> Volume:
    """Read an NRRD, MHA or natural-image file; colour components become channels, a 2D image one slice.

    An alpha channel of a PNG that is opaque everywhere is left out: it carries no information, and many programs add
    it by default.

    Args:
        path: The file.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``.

    Raises:
        DataError: The file is missing, damaged, or not an image.
    """
    if not path.is_file():
        raise DataError(no_such_path(path, "file"))
    if path.suffix.lower() in HEADER_SUFFIXES:
        check_header(path)
    try:
        grey = _grey(path)
        with _quiet():
            image = sitk.ReadImage(str(path)) if grey is None else sitk.GetImageFromArray(grey, isVector=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        short = _ENDS_EARLY.search(_reason(error))
        if short:
            raise DataError(
                f"{path}: the voxels end early: found {short['found']} bytes after decompression, expected {short['expected']} according "
                "to the header. Copy the file again."
            ) from None
        raise DataError(
            f"{path}: not readable ({_reason(error)}). Copy the file again or convert it."
        ) from None
    volume = _volume(image, path)
    if path.suffix.lower() in _NATURAL:
        volume = replace(volume, grid=_natural_grid(volume.grid, path.suffix.lower()))
    if path.suffix.lower() == ".png" and volume.channels in (2, 4) and _opaque(volume.data[-1]):
        return volume.with_data(volume.data[:-1].copy())
    return volume


def _grey(path: Path) -> NDArray[np.uint8 | np.uint16] | None:
    """Return the voxels `(Y, X, C)` of a grey image that SimpleITK reads as something else; None for any other file."""
    if path.suffix.lower() == ".bmp":
        return grey_bitmap(path)
    return grey_with_alpha(path) if path.suffix.lower() == ".png" else None


def _natural_grid(grid: Grid, suffix: str) -> Grid:
    """Return the grid of a natural image; only a PNG can state the size of what it shows, others that of a print."""
    if suffix == ".png" and grid.spacing != (1, 1, 1):
        return grid
    return Grid(grid.shape, LPS_TO_RAS, in_pixels=True)


def _opaque(alpha: NDArray[Any]) -> bool:
    return alpha.dtype.kind == "u" and bool((alpha == np.iinfo(alpha.dtype).max).all())


def write_sitk(volume: Volume, path: Path) -> None:
    """Write a volume of one or more channels as a compressed .nrrd or .mha file.

    Args:
        volume: The volume.
        path: The file to create or replace.

    Raises:
        DataError: The grid is sheared, which these formats cannot store, or the file cannot be written.
    """
    if volume.grid.is_sheared:
        raise DataError(
            f"{path}: the grid is sheared, which {path.suffix} cannot store. Write .nii.gz instead."
        )
    array = np.ascontiguousarray(storable(volume.data, path).T)  # (Z, Y, X, C)
    image = sitk.GetImageFromArray(
        array if volume.channels > 1 else array[..., 0], isVector=volume.channels > 1
    )
    affine = LPS_TO_RAS @ volume.grid.affine
    image.SetSpacing(volume.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(volume.spacing)).ravel().tolist())
    _write_image(image, path)


def _write_image(image: Any, path: Path) -> None:
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(_reason(error)) from None


def write_natural_image(volume: Volume, path: Path) -> None:
    """Write a slice of whole numbers from 0 to 65535 as a grey PNG of 8 or 16 bits, with its pixel size.

    Args:
        volume: One channel and one slice, with the orientation and position that `read_sitk` gives natural images.
        path: The file to create or replace.

    Raises:
        DataError: There is more than one slice or channel, a value is not a whole number from 0 to 65535, the slice has
            another position or orientation, or the file cannot be written.
    """
    data = volume.data
    if volume.channels != 1 or data.shape[3] != 1:
        raise DataError(
            f"{path}: found {volume.channels} channels of {data.shape[3]} slices, expected one of each, because {path.suffix} "
            "holds no volume. Write .nii.gz instead."
        )
    if data.dtype.kind not in "bui" or not 0 <= int(data.min()) <= int(data.max()) < 1 << 16:
        raise DataError(
            f"{path}: found {data.dtype} from {data.min()} to {data.max()}, expected whole numbers from 0 to 65535. Write "
            ".nii.gz instead."
        )
    upright = LPS_TO_RAS @ np.diag([*volume.spacing, 1.0])
    if not np.allclose(volume.grid.affine, upright, atol=1e-6):
        raise DataError(
            f"{path}: the slice has a position in space, which {path.suffix} cannot store. Write .nii.gz instead."
        )
    image = sitk.GetImageFromArray(data[0, :, :, 0].T.astype(np.uint8 if data.max() < 256 else np.uint16))
    image.SetSpacing(volume.spacing[:2])
    _write_image(image, path)


def read_dicom_pixels(files: Sequence[Path], folder: Path, *, as_float: bool) -> NDArray[Any]:
    """Read the pixels of checked DICOM files, rescaled by the slope and intercept of each.

    Args:
        files: One file per slice, in the order of the slices.
        folder: The folder, for messages.
        as_float: Whether voxels are read as float32, because the type of the first slice might not hold the others.

    Returns:
        Array `(C, X, Y, Z)`.

    Raises:
        DataError: The decoder refuses a file.
    """
    reader = sitk.ImageSeriesReader()
    with _quiet():
        reader.SetFileNames([str(file) for file in files])
        if as_float:
            reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise DataError(f"{folder}: not readable ({_reason(error)}). Export the series again.") from None
    data = _array(image, folder)
    if data.shape[3] != len(files):
        raise DataError(
            f"{folder}: found {data.shape[3]} readable slices, expected {len(files)}. Copy the series again."
        )
    return data


def _volume(image: Any, path: Path) -> Volume:
    data = _array(image, path)
    dims = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)
    affine[:dims, :dims] = direction * np.array(image.GetSpacing())
    affine[:dims, 3] = image.GetOrigin()
    return Volume(data, _grid(data, affine, path))


def _array(image: Any, path: Path) -> NDArray[Any]:
    """Return the voxels `(C, X, Y, Z)` of a 2D or 3D image; float64 becomes float32."""
    if image.GetDimension() not in (2, 3):
        raise DataError(
            f"{path}: found {image.GetDimension()} dimensions, expected 2 or 3. Split the series."
        )
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind == "c":
        raise DataError(f"{path}: found complex voxels, expected real numbers. Save the magnitude.")
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    if image.GetDimension() == 2:
        array = array[None]
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    return np.array(array.T, dtype=dtype, order="C")  # (Z, Y, X, C) -> (C, X, Y, Z)


def _grid(data: NDArray[Any], affine_lps: NDArray[np.float64], path: Path) -> Grid:
    """Return the grid of an array whose affine is in LPS coordinates, as ITK uses them."""
    try:
        return Grid(data.shape[1:], LPS_TO_RAS @ affine_lps)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


class _quiet:
    """Silence the warnings of ITK on standard error; medseg's own checks report what is wrong."""

    def __enter__(self) -> None:
        self._shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)

    def __exit__(self, *_: object) -> None:
        sitk.ProcessObject.SetGlobalWarningDisplay(self._shown)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("sitk::ERROR: ")[:200] if lines else type(error).__name__
