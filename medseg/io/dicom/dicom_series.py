"""Reading of a DICOM series: the geometry comes from the headers, the pixels from the decoder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import DicomHeader, replace_before_pixels
from medseg.io.dicom.series_files import only_series
from medseg.io.dicom.slice_stack import PROJECTIONS, Slice, slice_of, stack, without_copies
from medseg.io.dicom.source_series import HEADER_KEY, SourceSeries
from medseg.io.itk.sitk import LPS_TO_RAS, read_dicom_pixels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_MODALITY, _PHOTOMETRIC, _ROWS, _COLUMNS = 0x00080060, 0x00280004, 0x00280010, 0x00280011


def read_dicom_series(folder: Path) -> Volume:
    """Read the DICOM series in a folder, with rescaled intensities.

    Slices are sorted along their normal. If the gantry was tilted, the affine keeps the shear, because every slice
    would be misplaced without it. Other files of the folder are ignored and counted in a `DataWarning`.

    Args:
        folder: Folder with the files of one series.

    Returns:
        Volume `(C, X, Y, Z)` of kind ``image``, usually with a single channel; CT intensities in HU. Its header refers to the
        files of the slices, so that a label map on the same grid can be written as a DICOM segmentation.

    Raises:
        DataError: There is no series or more than one, a slice is damaged, has no position or another size, or gaps
            between slices differ. The message names the files.
    """
    series, slices = _series(folder)
    with _uninverted([one.header for one in slices]) as files:
        data = read_dicom_pixels(files, folder, as_float=len({one.rescale for one in slices}) > 1)
    if data.shape[1:] != series.grid.shape:
        raise DataError(
            f"{folder}: found pixels of {data.shape[1:]}, expected {series.grid.shape}. Copy the series again."
        )
    return Volume(data, series.grid, header={HEADER_KEY: series.source})


@dataclass(frozen=True)
class SeriesGeometry:
    """The positions of the slices of a series.

    Attributes:
        grid: Grid of the volume; the third axis counts slices.
        source: The files in the order of the slices.
    """

    grid: Grid
    source: SourceSeries


def read_series_geometry(folder: Path) -> SeriesGeometry:
    """Read the grid of the DICOM series in a folder from the headers, without pixels.

    Args:
        folder: Folder with the files of one series.

    Returns:
        The geometry.

    Raises:
        DataError: `read_dicom_series` would raise it, other than for pixels that cannot be decoded.
    """
    return _series(folder)[0]


def _series(folder: Path) -> tuple[SeriesGeometry, list[Slice]]:
    """Return the geometry of the series in a folder, and its slices in order."""
    headers = only_series(folder)
    slices = without_copies([slice_of(header) for header in headers], folder)
    order, first, step = stack(slices, folder)
    slices = [slices[i] for i in order]
    one = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = one.orientation[0] * one.spacing[1]
    affine[:3, 1] = one.orientation[1] * one.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first
    shape = (one.header.number(_COLUMNS), one.header.number(_ROWS), len(slices))
    try:
        grid = Grid(shape, LPS_TO_RAS @ affine)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return SeriesGeometry(grid, SourceSeries(tuple(one.header.path for one in slices))), slices


@contextlib.contextmanager
def _uninverted(headers: Sequence[DicomHeader]) -> Iterator[list[Path]]:
    """Yield the files to decode; those that the decoder would invert are copied with another mark.

    MONOCHROME1 says that the lowest value is shown white. That concerns the display of a CT, PET or MR, not its values. Only
    values of projections, such as X-rays, are inverted, so that dense tissue is bright in all of them.
    """
    marked = [
        one
        for one in headers
        if one.text(_PHOTOMETRIC) == "MONOCHROME1" and one.text(_MODALITY) not in PROJECTIONS
    ]
    if not marked:
        yield [one.path for one in headers]
        return
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, one in enumerate(headers):
            copy = Path(folder, f"{number:06d}.dcm")
            copy.write_bytes(replace_before_pixels(one, b"MONOCHROME1", b"MONOCHROME2"))
            files.append(copy)
        yield files
