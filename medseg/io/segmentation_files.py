"""Files of named segments: DICOM-SEG, RTSTRUCT and segmentations of 3D Slicer, by their suffix or by what they hold."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg.errors import DataError

if TYPE_CHECKING:
    from medseg.io.dicom.source_series import SourceSeries
    from medseg.labels.label_table import Labels
    from medseg.labels.segments import Algorithm, Segments
    from medseg.volumes.grid import Grid
    from medseg.volumes.volume import Volume

Kind = Literal["seg", "rtstruct", "slicer"]
DICOM_SEGMENTATIONS = (".seg.dcm", ".labelmap.dcm", ".rtstruct.dcm")
"""Suffixes of DICOM segmentations: SEG of type BINARY, SEG of type LABELMAP, and structure sets."""
SLICER = ".seg.nrrd"
"""Suffix of segmentations of 3D Slicer."""
_DICOM_SUFFIXES = ("", ".dcm", ".ima")
_CLASS = 0x00080016


def segmentation_kind(path: Path) -> Kind | None:
    """Return which kind of segmentation a file holds.

    Args:
        path: A file, or a folder whose only DICOM file is a segmentation, as archives deliver it.

    Returns:
        The kind; None for other files.
    """
    from medseg.io.dicom.dicom_header import has_mark, read_header
    from medseg.io.dicom.pydicom_files import LABELMAP_SEG, RTSTRUCT, SEG

    if path.name.lower().endswith(SLICER):
        return "slicer"
    file = segmentation_file(path)
    if file is None or file.suffix.lower() not in _DICOM_SUFFIXES or not file.is_file() or not has_mark(file):
        return None
    found = read_header(file).text(_CLASS)
    if found in (SEG, LABELMAP_SEG):
        return "seg"
    return "rtstruct" if found == RTSTRUCT else None


def segmentation_file(path: Path) -> Path | None:
    """Return a file itself, or the only visible file of a folder; None for other folders."""
    if not path.is_dir():
        return path
    visible = (file for file in path.iterdir() if not file.name.startswith("."))
    files = list(islice(visible, 2))
    return files[0] if len(files) == 1 and files[0].is_file() else None


def read_segmentation(path: Path, kind: Kind, grid: Grid | None = None) -> Segments:
    """Read a file of segments.

    Args:
        path: The file, or the folder that holds only this file.
        kind: What it holds.
        grid: Grid to place the segments on, in any orientation; None for that of the file, or of the series that it refers to.

    Returns:
        The segments.

    Raises:
        DataError: The file is damaged, or its segments are not on the slices of the grid.
    """
    file = segmentation_file(path) or path
    if kind == "rtstruct":
        from medseg.io.dicom.segmentations.rtstruct_input import read_rtstruct

        return read_rtstruct(file, grid)
    if kind == "slicer":
        from medseg.io.itk.slicer_segmentation import read_slicer_segmentation

        found = read_slicer_segmentation(file)
    else:
        from medseg.io.dicom.segmentations.seg_input import read_seg

        found = read_seg(file)
    return found if grid is None else found.placed(grid)


def segmentation_names(path: Path, kind: Kind) -> Labels:
    """Return names and colours of the segments of a file, without reading voxels.

    Args:
        path: The file, or the folder that holds only this file.
        kind: What it holds.

    Returns:
        The labels.

    Raises:
        DataError: The file is damaged.
    """
    from medseg.io.dicom.segmentations.rtstruct_input import read_rtstruct_segments
    from medseg.io.dicom.segmentations.seg_input import read_seg_segments
    from medseg.io.itk.slicer_segmentation import slicer_segments
    from medseg.labels.segments import unique_labels

    file = segmentation_file(path) or path
    readers = {"rtstruct": read_rtstruct_segments, "seg": read_seg_segments, "slicer": slicer_segments}
    items = readers[kind](file)
    return unique_labels({item.value: (item.name, item.colour) for item in items}, str(path))


def write_segmentation(
    label_map: Volume,
    path: Path,
    names: Labels | None,
    like: Volume | Path | None,
    algorithm: Algorithm | None,
) -> None:
    """Write a label map as a DICOM segmentation of its source series.

    Args:
        label_map: The label map, in any orientation.
        path: The file to create or replace; its suffix chooses the kind.
        names: Names and colours of the values; None for ``label_1`` and so on.
        like: The source series: its folder, or a volume that was read from it; None for the series that `label_map` was
            predicted for.
        algorithm: The model that predicted the label map.

    Raises:
        DataError: There is no series, the label map is not on its grid, or `write_seg` or `write_rtstruct` raises it.
    """
    from medseg.labels.label_table import Labels
    from medseg.volumes.alignment import align_to_grid

    if not label_map.is_label:
        raise DataError(f"{path}: found an image, expected a label map. Read it with read_labels.")
    grid, source = _source(label_map if like is None else like, path)
    fix = "Resample it with resampled(like=SERIES)"
    aligned = align_to_grid(label_map, grid, where=str(path), grid_of="the source series", fix=fix)
    names = Labels.from_values(aligned.data) if names is None else names
    if path.name.lower().endswith(".rtstruct.dcm"):
        from medseg.io.dicom.segmentations.rtstruct_output import write_rtstruct

        write_rtstruct(aligned, path, source, names, algorithm)
    else:
        from medseg.io.dicom.segmentations.seg_output import write_seg

        labelmap = path.name.lower().endswith(".labelmap.dcm")
        write_seg(aligned, path, source, names, algorithm, labelmap=labelmap)


def check_source_series(source: Volume | Path, path: Path) -> None:
    """Raise unless a DICOM segmentation can refer to a source.

    Args:
        source: An image, or the folder of a series.
        path: The file to write, for messages.

    Raises:
        DataError: It is no DICOM series, or the series was stripped of its UIDs.
        ConfigError: pydicom or highdicom is not installed.
    """
    from medseg.io.dicom.pydicom_files import require_dicom_packages

    require_dicom_packages(path)
    _source(source, path)[1].datasets()


def _source(source: Volume | Path, path: Path) -> tuple[Grid, SourceSeries]:
    """Return grid and files of a source series."""
    from medseg.io.dicom.dicom_series import read_series_geometry
    from medseg.io.dicom.source_series import source_series_of

    if isinstance(source, Path):
        if not source.exists():
            raise DataError(
                f"{source}: found no folder, expected that of a DICOM series. Give the folder of the series."
            )
        geometry = read_series_geometry(source)
        if geometry.source is None:
            raise DataError(
                f"{source}: found a single image without a position in the patient, expected a DICOM series. Write .nii.gz or .png instead."
            )
        return geometry.grid, geometry.source
    found = source_series_of(source)
    if found is None:
        raise DataError(
            f"{path}: found a volume that was not read from a DICOM series, or only after its slices were resampled, expected the volume of a series, because "
            "a DICOM segmentation refers to the images of its source. Give the series with like=FOLDER, or write .nii.gz instead."
        )
    return source.grid, found
