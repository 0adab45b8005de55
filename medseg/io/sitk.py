"""NRRD, MetaImage, DICOM series and natural images through SimpleITK.

SimpleITK has sizes in the order (x, y, z), arrays in the reversed order (z, y, x), and LPS world coordinates. This
module is the only place that converts them to medseg's `(C, X, Y, Z)` and RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.itk_headers import HEADER_SUFFIXES, check_header
from medseg.io.natural_images import grey_with_alpha
from medseg.io.nifti import storable
from medseg.storage.atomic import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NATURAL = (".png", ".bmp", ".jpg", ".jpeg")
_UNEVEN_FRACTION = 0.01  # of the median gap between slices
_UNEVEN_MM = 0.01
_GEOMETRY_TAGS = {
    "0020|0037": "ImageOrientationPatient",
    "0020|0032": "ImagePositionPatient",
    "0028|0030": "PixelSpacing",
}


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
        raise DataError(f"{path}: no such file. Check the path.")
    if path.suffix.lower() in HEADER_SUFFIXES:
        check_header(path)
    try:
        grey = grey_with_alpha(path) if path.suffix.lower() == ".png" else None
        with _quiet():
            image = sitk.ReadImage(str(path)) if grey is None else sitk.GetImageFromArray(grey, isVector=True)
    except RuntimeError as error:
        raise DataError(
            f"{path}: not readable ({_reason(error)}). Copy the file again or convert it."
        ) from None
    volume = _volume(image, path)
    if path.suffix.lower() in _NATURAL:
        volume = replace(volume, grid=_natural_grid(volume.grid, path.suffix.lower()))
    if path.suffix.lower() == ".png" and volume.channels in (2, 4) and _opaque(volume.data[-1]):
        return volume.with_data(volume.data[:-1].copy())
    return volume


def _natural_grid(grid: Grid, suffix: str) -> Grid:
    """Return the grid of a natural image; only a PNG can state the size of what it shows, others that of a print."""
    if suffix == ".png" and grid.spacing != (1, 1, 1):
        return grid
    return Grid(grid.shape, _LPS_TO_RAS, in_pixels=True)


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
    affine = _LPS_TO_RAS @ volume.grid.affine
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
    upright = _LPS_TO_RAS @ np.diag([*volume.spacing, 1.0])
    if not np.allclose(volume.grid.affine, upright, atol=1e-6):
        raise DataError(
            f"{path}: the slice has a position in space, which {path.suffix} cannot store. Write .nii.gz instead."
        )
    image = sitk.GetImageFromArray(data[0, :, :, 0].T.astype(np.uint8 if data.max() < 256 else np.uint16))
    image.SetSpacing(volume.spacing[:2])
    _write_image(image, path)


def read_dicom_series(folder: Path) -> Volume:
    """Read the DICOM series in a folder, with rescaled intensities.

    Slices are sorted along their normal. If the gantry was tilted, the affine keeps the shear, because every slice
    would be misplaced without it.

    Args:
        folder: Folder with the files of one series.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``, usually with a single channel; CT intensities in HU.

    Raises:
        DataError: There is no series or more than one, a slice has no position, or gaps between slices differ.
    """
    reader = sitk.ImageSeriesReader()
    with _quiet():
        files = _series_files(reader, folder)
        slices = [_slice(file) for file in files]
        order, step = _stack(slices, folder)
        reader.SetFileNames([str(files[i]) for i in order])
        if len({one.rescale for one in slices}) > 1:
            reader.SetOutputPixelType(
                sitk.sitkFloat32
            )  # the type of the first slice might not hold the values of the others
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise DataError(f"{folder}: not readable ({_reason(error)}). Export the series again.") from None
    data = _array(image, folder)
    if data.shape[3] != len(files):
        raise DataError(
            f"{folder}: found {data.shape[3]} readable slices, expected {len(files)}. Copy the series again."
        )
    first = slices[order[0]]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return Volume(data, _grid(data, affine, folder))


@dataclass(frozen=True)
class _Slice:
    """The geometry of one DICOM file in LPS coordinates.

    Attributes:
        orientation: Directions along a row and along a column, `(2, 3)`.
        position: Centre of the first pixel in mm, `(3,)`.
        spacing: Distance (mm) between rows and between columns.
        thickness: Distance (mm) to the next slice according to this file; 0 if it is not stated.
        rescale: Slope and intercept.
    """

    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float, float]


def _series_files(reader: Any, folder: Path) -> list[Path]:
    """Return the files of the series in a folder; a slice that cannot be parsed is an error."""
    series = list(reader.GetGDCMSeriesIDs(str(folder)))
    if len(series) != 1:
        found = f"{len(series)} series" if series else "no DICOM series"
        raise DataError(f"{folder}: found {found}, expected one. Give a folder with one series.")
    files = [Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series[0])]
    kind = _storage_class(files[0])
    taken = {file.name for file in files}
    damaged = [
        file.name
        for file in sorted(folder.iterdir())
        if kind and file.name not in taken and file.is_file() and _storage_class(file) == kind
    ]
    if damaged:
        raise DataError(
            f"{folder}: slices that cannot be read: found {len(damaged)} ({', '.join(damaged[:3])}) of "
            f"{len(files) + len(damaged)}, expected none. Copy the series again."
        )
    return files


def _storage_class(file: Path) -> bytes:
    """Return MediaStorageSOPClassUID (0002,0002) of a DICOM file without a parser, because the rest may be damaged."""
    with file.open("rb") as stream:
        head = stream.read(1024)
    start = head.find(b"\x02\x00\x02\x00UI")
    if head[128:132] != b"DICM" or start < 0:
        return b""
    length = int.from_bytes(head[start + 6 : start + 8], "little")
    return head[start + 8 : start + 8 + length]


def _slice(file: Path) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""

    try:
        reader.ReadImageInformation()
        orientation = np.array(tag("0020|0037").split("\\"), dtype=np.float64).reshape(2, 3)
        position = np.array(tag("0020|0032").split("\\"), dtype=np.float64).reshape(3)
        rows, columns = (float(value) for value in tag("0028|0030").split("\\"))
        thickness = float(tag("0018|0088") or tag("0018|0050") or 0)
        rescale = (float(tag("0028|1053") or 1), float(tag("0028|1052") or 0))
    except (RuntimeError, ValueError):
        named = [name for key, name in _GEOMETRY_TAGS.items() if not tag(key)] or list(
            _GEOMETRY_TAGS.values()
        )
        raise DataError(
            f"{file}: {' or '.join(named)}: missing or unreadable. Export the series again with its geometry."
        ) from None
    return _Slice(orientation, position, (rows, columns), thickness, rescale)


def _stack(slices: list[_Slice], folder: Path) -> tuple[list[int], NDArray[np.float64]]:
    """Return the order of the slices along their normal, and the step (mm, LPS) from one to the next."""
    first = slices[0]
    if any(np.abs(one.orientation - first.orientation).max() > 1e-3 for one in slices):
        raise DataError(f"{folder}: slices differ in orientation, expected one stack. Remove the localizer.")
    if any(np.abs(np.subtract(one.spacing, first.spacing)).max() > 1e-3 for one in slices):
        raise DataError(f"{folder}: slices differ in pixel spacing, expected one stack. Split the series.")
    normal = np.cross(*first.orientation)
    heights = np.array([one.position @ normal for one in slices])
    order = [int(i) for i in np.argsort(heights)]
    if len(order) == 1:
        return order, normal * (abs(first.thickness) or 1.0)
    gaps = np.diff(heights[order])
    median = float(np.median(gaps))
    tolerance = max(_UNEVEN_FRACTION * median, _UNEVEN_MM)
    if np.abs(gaps - median).max() > tolerance or gaps.min() < _UNEVEN_MM:
        raise DataError(
            f"{folder}: uneven gaps between slices: found {gaps.min():.3f} to {gaps.max():.3f} mm, expected "
            f"{median:.3f} mm throughout. A slice is missing, doubled, or the spacing changes; export the series "
            "again or split it."
        )
    positions = np.array([slices[i].position for i in order])
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    drift = np.linalg.norm(np.diff(positions, axis=0) - step, axis=1).max()
    if drift > 2 * tolerance:
        raise DataError(
            f"{folder}: slices are shifted sideways against each other: found {drift:.3f} mm, expected a straight "
            "stack. Export the series again."
        )
    return order, step


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
    try:
        return Grid(data.shape[1:], _LPS_TO_RAS @ affine_lps)
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
