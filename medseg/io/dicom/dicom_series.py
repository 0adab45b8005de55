"""Reading of a DICOM series: the geometry comes from the headers, the pixels from the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import DicomHeader, read_header
from medseg.io.dicom.frame_pixels import read_pixels
from medseg.io.dicom.multi_frame import slices_of
from medseg.io.dicom.placed_slices import PROJECTIONS, Slice, has_position, is_multi_frame, without_copies
from medseg.io.dicom.series_choice import choose_series
from medseg.io.dicom.series_files import same_series
from medseg.io.dicom.slice_stack import Stack, resampled_slices, stack
from medseg.io.dicom.source_series import HEADER_KEY, SourceSeries
from medseg.io.dicom.uneven_gaps import Uneven
from medseg.io.itk.sitk import LPS_TO_RAS
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_MODALITY, _ROWS, _COLUMNS = 0x00080060, 0x00280010, 0x00280011
_SLOPE, _INTERCEPT = 0x00281053, 0x00281052
_PIXEL_SPACING, _IMAGER_SPACING = 0x00280030, 0x00181164


def read_dicom(path: Path, series: str | int | None = None, uneven: Uneven = "refuse") -> Volume:
    """Read a DICOM series, with rescaled intensities.

    Slices are sorted along their normal. If the gantry was tilted, the affine keeps the shear, because every slice
    would be misplaced without it. Other files of a folder are ignored and counted in a `DataWarning`.

    Args:
        path: Folder with the files of one series or of several, also in folders within it; a multi-frame file; a single
            image such as an X-ray; or the DICOMDIR of an export.
        series: UID of the series, or its number in the list of the folder; None if there is only one volume.
        uneven: What to do with uneven gaps between slices: ``"refuse"``, or ``"resample"`` to interpolate them.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``, usually with a single channel; CT intensities in HU. Its header refers to the
        files of the slices, so that a label map on the same grid can be written as a DICOM segmentation.

    Raises:
        DataError: There is no series, or more than one and no choice, a slice is damaged, has no position or another size, or gaps
            between slices differ. The message names the files.
        ConfigError: A multi-frame or compressed file needs a package that is not installed.
    """
    headers = _headers(path, series)
    if _is_single_image(path, headers):
        return _read_single_image(headers[0])
    geometry = _geometry(path, headers, uneven)
    data = read_pixels(geometry.slices, path)
    expected = (*geometry.grid.shape[:2], len(geometry.slices))
    if data.shape[1:] != expected:
        raise DataError(
            f"{path}: found pixels of {data.shape[1:]}, expected {expected}. Copy the series again."
        )
    data = resampled_slices(data, geometry.stack)
    source = geometry.source
    return Volume(data, geometry.grid, header={} if source is None else {HEADER_KEY: source})


@dataclass(frozen=True)
class SeriesGeometry:
    """The positions of the slices of a series.

    Attributes:
        grid: Grid of the volume; the third axis counts slices.
        source: The files in the order of the slices; None if slices were resampled, so that no file has the grid.
    """

    grid: Grid
    source: SourceSeries | None


@dataclass(frozen=True)
class _StackedSeries(SeriesGeometry):
    slices: list[Slice]
    stack: Stack


def read_series_geometry(
    path: Path, series: str | int | None = None, uneven: Uneven = "refuse"
) -> SeriesGeometry:
    """Read the grid of a DICOM series from the headers, without pixels.

    Args:
        path: A folder or file, as for `read_dicom`.
        series: As for `read_dicom`.
        uneven: As for `read_dicom`.

    Returns:
        The geometry.

    Raises:
        DataError: `read_dicom` would raise it, other than for pixels that cannot be decoded.
        ConfigError: A multi-frame file needs pydicom, which is not installed.
    """
    headers = _headers(path, series)
    if _is_single_image(path, headers):
        return SeriesGeometry(_single_grid(headers[0]), None)
    return _geometry(path, headers, uneven)


def _headers(path: Path, series: str | int | None) -> list[DicomHeader]:
    """Return the descriptions of the files of a series at a path."""
    if path.is_dir():
        return choose_series(path, series)
    header = read_header(path)
    if header.is_directory:
        return choose_series(path.parent, series)
    if header.pixel_bytes is None:
        raise DataError(
            f"{path}: found a DICOM file without pixels, expected an image. Give the series that it belongs to."
        )
    alone = is_multi_frame(header) or not has_position(header)
    if not alone and len(same_series(header)) > 1:
        raise DataError(
            f"{path}: found one DICOM file, expected the folder of its series. Give {path.parent}."
        )
    return [header]


def _geometry(path: Path, headers: list[DicomHeader], uneven: Uneven) -> _StackedSeries:
    """Return the geometry of a series, with its slices in order."""
    slices = without_copies(slices_of(headers), path)
    found = stack(slices, path, uneven)
    slices = [slices[i] for i in found.order]
    one = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = one.orientation[0] * one.spacing[1]
    affine[:3, 1] = one.orientation[1] * one.spacing[0]
    affine[:3, 2] = found.step
    affine[:3, 3] = found.start
    shape = (one.header.number(_COLUMNS), one.header.number(_ROWS), found.count)
    try:
        grid = Grid(shape, LPS_TO_RAS @ affine)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    files, frames = tuple(one.header.path for one in slices), tuple(one.frame for one in slices)
    source = SourceSeries(files, frames) if found.places is None else None
    return _StackedSeries(grid, source, slices, found)


def _is_single_image(path: Path, headers: list[DicomHeader]) -> bool:
    """Return whether a file is an image without a position in the patient, such as an X-ray, and was given itself."""
    (first, *others) = headers
    return (
        path.is_file()
        and not others
        and not is_multi_frame(first)
        and not has_position(first)
        and first.text(_MODALITY) in PROJECTIONS
    )


def _read_single_image(header: DicomHeader) -> Volume:
    """Read an image without a position, whose slope and intercept are applied like those of a slice."""
    try:
        rescale = (float(header.text(_SLOPE) or 1), float(header.text(_INTERCEPT) or 0))
    except ValueError:
        raise DataError(
            f"{header.path}: RescaleSlope or RescaleIntercept: expected numbers. Export the file again."
        ) from None
    one = Slice(header, np.eye(3)[:2], np.zeros(3), (1.0, 1.0), 0.0, rescale)
    return Volume(read_pixels([one], header.path), _single_grid(header))


def _single_grid(header: DicomHeader) -> Grid:
    """Return the grid of a single image; its pixel size is that of the patient or, else, of the detector."""
    shape = (header.number(_COLUMNS), header.number(_ROWS), 1)
    stated = header.text(_PIXEL_SPACING) or header.text(_IMAGER_SPACING)
    try:
        rows, columns = (float(value) for value in stated.split("\\"))
        return Grid(shape, LPS_TO_RAS @ np.diag([columns, rows, 1.0, 1.0]))
    except (ValueError, DataError):
        return Grid(shape, LPS_TO_RAS, in_pixels=True)
