"""NRRD, MetaImage, DICOM series and plain pictures through SimpleITK.

SimpleITK reports sizes as (x, y, z), arrays reversed as (z, y, x), and world in LPS; this file is the only
place where both are turned into medseg's `(C, X, Y, Z)` and RAS+.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import Grid
from medseg.io.atomic import replacing
from medseg.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN_FRACTION = 0.01  # of the median gap between slices


def read_sitk(path: Path) -> Volume:
    """Read an NRRD, MHA or picture file; colour components become channels, a 2-D image one slice."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(
            f"{path}: not readable ({_reason(error)}). Copy the file again or convert it."
        ) from None
    return _volume(image, path)


def write_sitk(volume: Volume, path: Path) -> None:
    """Write one- or many-channel volumes as .nrrd or .mha, compressed."""
    if volume.grid.shear > 1e-4:
        raise DataError(
            f"{path}: the grid is sheared, which {path.suffix} cannot hold. Write .nii.gz instead."
        )
    array = np.ascontiguousarray(volume.data.T)  # (Z, Y, X, C)
    array = array.astype(np.uint8) if array.dtype == bool else array
    image = sitk.GetImageFromArray(
        array if volume.channels > 1 else array[..., 0], isVector=volume.channels > 1
    )
    affine = _LPS_TO_RAS @ volume.grid.affine
    image.SetSpacing(volume.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(volume.spacing)).ravel().tolist())
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def read_dicom_series(folder: Path) -> Volume:
    """Read the one DICOM series in `folder` as a volume in RAS+ world, intensities rescaled.

    Slices are sorted along their normal. Where the scanner's gantry was tilted, the shear is kept in the
    affine, because dropping it would misplace every slice.

    Raises:
        DataError: no series, several series, a slice without position, or uneven gaps.
    """
    reader = sitk.ImageSeriesReader()
    with _quiet():
        series = list(reader.GetGDCMSeriesIDs(str(folder)))
        if len(series) != 1:
            found = f"{len(series)} series" if series else "no DICOM series"
            raise DataError(f"{folder}: found {found}, expected one. Give a folder that holds one series.")
        files = list(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
        headers = [_slice_header(Path(name)) for name in files]
        order, step = _stack(headers, folder)
        reader.SetFileNames([files[i] for i in order])
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise DataError(f"{folder}: not readable ({_reason(error)}). Export the series again.") from None
    volume = _volume(image, folder)
    if volume.grid.shape[2] != len(files):
        raise DataError(
            f"{folder}: found {volume.grid.shape[2]} readable slices, expected {len(files)}. Copy the series again."
        )
    first_orientation, first_position, pixel = headers[order[0]]
    affine = np.eye(4)
    affine[:3, 0] = first_orientation[0] * pixel[1]
    affine[:3, 1] = first_orientation[1] * pixel[0]
    affine[:3, 2] = step
    affine[:3, 3] = first_position
    return Volume(volume.data, Grid(volume.grid.shape, _LPS_TO_RAS @ affine))


SliceHeader = tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]


def _slice_header(path: Path) -> SliceHeader:
    """Row and column directions (2, 3), position (3,), and pixel spacing (row, column) in mm, LPS."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        orientation = [float(v) for v in reader.GetMetaData("0020|0037").split("\\")]
        position = [float(v) for v in reader.GetMetaData("0020|0032").split("\\")]
        rows, columns = (float(v) for v in reader.GetMetaData("0028|0030").split("\\"))
    except (RuntimeError, ValueError):
        raise DataError(
            f"{path}: ImageOrientationPatient, ImagePositionPatient or PixelSpacing: missing or unreadable. "
            "Export the series again with its geometry."
        ) from None
    return np.array(orientation).reshape(2, 3), np.array(position), (rows, columns)


def _stack(headers: list[SliceHeader], folder: Path) -> tuple[list[int], NDArray[np.float64]]:
    """Order of the slices along their normal, and the step (mm, LPS) from one to the next."""
    orientation = headers[0][0]
    if any(np.abs(header[0] - orientation).max() > 1e-3 for header in headers):
        raise DataError(f"{folder}: slices differ in orientation, expected one stack. Remove the localizer.")
    normal = np.cross(orientation[0], orientation[1])
    heights = np.array([header[1] @ normal for header in headers])
    order = [int(i) for i in np.argsort(heights)]
    if len(order) == 1:
        return order, normal
    gaps = np.diff(heights[order])
    median = float(np.median(gaps))
    if np.abs(gaps - median).max() > max(_UNEVEN_FRACTION * median, 0.01):
        raise DataError(
            f"{folder}: uneven gaps between slices: found {gaps.min():.3f} to {gaps.max():.3f} mm, expected "
            f"{median:.3f} mm throughout. A slice is missing, doubled, or the spacing changes; export the series "
            "again or split it."
        )
    step = (headers[order[-1]][1] - headers[order[0]][1]) / (len(order) - 1)
    return order, step


def _volume(image: Any, path: Path) -> Volume:
    if image.GetDimension() not in (2, 3):
        raise DataError(
            f"{path}: found {image.GetDimension()} dimensions, expected 2 or 3. Split the series."
        )
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "c":
        raise DataError(f"{path}: found complex voxels, expected real numbers. Save the magnitude.")
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    if image.GetDimension() == 2:
        array = array[None]
    dims = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)
    affine[:dims, :dims] = direction * np.array(image.GetSpacing())
    affine[:dims, 3] = image.GetOrigin()
    data = np.ascontiguousarray(array.T)  # (Z, Y, X, C) -> (C, X, Y, Z)
    data = data.astype(np.float32) if data.dtype == np.float64 else data
    return Volume(data, Grid(data.shape[1:], _LPS_TO_RAS @ affine))


class _quiet:
    """Silence ITK's warnings on standard error while our own checks say what is wrong."""

    def __enter__(self) -> None:
        self._shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)

    def __exit__(self, *_: object) -> None:
        sitk.ProcessObject.SetGlobalWarningDisplay(self._shown)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__
