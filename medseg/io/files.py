"""Reading and writing volumes by file name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import DataError, no_such_path
from medseg.io.file_content import lack_of_memory_explained
from medseg.io.natural_images import PALETTE_SUFFIXES, palette_indices
from medseg.io.segmentation_files import (
    DICOM_SEGMENTATIONS,
    SLICER,
    read_segmentation,
    segmentation_kind,
    write_segmentation,
)
from medseg.runtime.formatting import pluralise
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.io.dicom.uneven_gaps import Uneven
    from medseg.io.nifti.orientation_sources import OrientationFrom
    from medseg.labels.label_table import Labels
    from medseg.labels.segments import Algorithm, Segments

NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
TIFF = (".tif", ".tiff")
FREESURFER = (".mgz", ".mgh")
NATURAL_IMAGES = (".png", *TIFF, ".bmp", ".jpg", ".jpeg")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".bmp", ".jpg", ".jpeg")
DICOM = (".dcm", ".ima")
"""Suffixes of DICOM files, which often have none; a file is recognised by its content."""
IMAGE_SUFFIXES = (*NIFTI, *ITK, *TIFF, *FREESURFER, SLICER, *DICOM_SEGMENTATIONS)
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha", *FREESURFER)
WHOLE_WITHIN = 1e-3
"""Largest distance to a whole number at which a label value counts as that number."""
_LABEL_LIMIT = 2**31


def suffix_of(path: str | Path) -> str:
    """Return the image suffix of a file name; ``.nii.gz`` is one suffix.

    Args:
        path: File name or path.

    Returns:
        The suffix in lower case with its dot, or an empty string if it is not that of an image.

    >>> suffix_of("scans/CT_01.NII.GZ"), suffix_of("notes.txt")
    ('.nii.gz', '')
    """
    name = Path(path).name.lower()
    return next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def stem_of(path: str | Path) -> str:
    """Return the file name without folder and image suffix.

    Args:
        path: File name or path.

    Returns:
        The name, with upper and lower case kept; the complete name if the suffix is not that of an image.

    >>> stem_of("scans/ct_01.nii.gz")
    'ct_01'
    """
    name = Path(path).name
    suffix = suffix_of(path) or Path(name.lower()).suffix
    known = suffix in IMAGE_SUFFIXES or suffix in DICOM
    return name[: -len(suffix)] if known else name


def is_dicom(path: Path) -> bool:
    """Return whether a path is a folder, which can only hold DICOM files if it is an image, or a DICOM file."""
    from medseg.io.dicom.dicom_header import has_mark

    return path.is_dir() or (not suffix_of(path) and path.is_file() and has_mark(path))


def read(
    path: str | Path,
    *,
    orientation_from: OrientationFrom | None = None,
    series: str | int | None = None,
    uneven: Uneven = "refuse",
) -> Volume:
    """Read an image: a NIfTI, NRRD, MHA, FreeSurfer, DICOM or natural-image file, or a folder with a DICOM series.

    From a DICOM segmentation, the values of its segments are read; `read_labels` reads it as a label map.

    Args:
        path: The file or folder.
        orientation_from: For NIfTI, the description of the geometry to use where the header leaves it open or contradicts
            itself: ``"sform"``, ``"qform"`` or ``"pixdim"``; None refuses files in which left and right are a guess.
        series: For a folder with several DICOM series, the one to read: its UID, or its number in the list that the error
            message and ``medseg inspect`` show; None if only one of them is a volume.
        uneven: For DICOM series with uneven gaps between slices: ``"refuse"``, or ``"resample"`` to interpolate slices between
            their true positions.

    Returns:
        Volume `(C, X, Y, Z)` in the file's own orientation. A 2D image is one slice. A fourth axis or colour becomes
        channels, as does the alpha channel of a PNG unless it is opaque everywhere. Segments that overlap are in
        several channels.

    Raises:
        DataError: The file is missing, damaged, or not an image; the message names it.

    >>> import tempfile, medseg, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image = medseg.Volume(np.zeros((1, 4, 3, 2), np.int16), medseg.Grid.from_spacing((4, 3, 2), (1, 1, 5)))
    ...     write(image, f"{folder}/ct.nii.gz")
    ...     volume = read(f"{folder}/ct.nii.gz")
    >>> volume.data.shape, volume.spacing
    ((1, 4, 3, 2), (1.0, 1.0, 5.0))
    """
    with lack_of_memory_explained(path):
        return _read(Path(path), orientation_from, series, uneven)


def _read(
    path: Path, orientation_from: OrientationFrom | None, series: str | int | None, uneven: Uneven
) -> Volume:
    """Read an image with the reader of its format."""
    if kind := segmentation_kind(path):
        return read_segmentation(path, kind).volume
    if is_dicom(path):
        from medseg.io.dicom.dicom_series import read_dicom

        return read_dicom(path, series, uneven)
    suffix = suffix_of(path)
    if suffix in NIFTI:
        from medseg.io.nifti.nifti_files import read_nifti

        return read_nifti(path, orientation_from)
    if suffix in TIFF:
        from medseg.io.tiff import read_tiff

        return read_tiff(path)
    if suffix in FREESURFER:
        from medseg.io.freesurfer import read_freesurfer

        return read_freesurfer(path)
    if suffix in ITK:
        from medseg.io.itk.sitk import read_sitk

        return read_sitk(path)
    from medseg.io.file_content import recognised_file, require_readable

    if not path.exists() and not path.is_symlink():
        raise DataError(no_such_path(path))
    require_readable(path)
    content, remedy = recognised_file(path)
    if content not in ("text", "unknown content"):
        raise DataError(f"{path}: found {content}, expected a file with the suffix of an image. {remedy}.")
    raise DataError(f"{path}: unknown file format: expected one of {', '.join(IMAGE_SUFFIXES)}. Convert it.")


def decoded_bytes(path: str | Path) -> int:
    """Return the bytes that an image takes in memory according to its header.

    Args:
        path: The file.

    Returns:
        Bytes; 0 for formats whose header does not state them.
    """
    if suffix_of(path) not in NIFTI:
        return 0
    from medseg.io.nifti.nifti_files import nifti_bytes

    return nifti_bytes(Path(path))


def read_labels(
    path: str | Path,
    *,
    orientation_from: OrientationFrom | None = None,
    like: Volume | Grid | str | Path | None = None,
) -> Volume:
    """Read a label map: one channel of whole numbers, stored in any type, or a segmentation of DICOM or 3D Slicer.

    From a natural image with a palette, the indices are read instead of the colours.

    Args:
        path: The file or folder.
        orientation_from: For NIfTI, the description of the geometry to use where the header leaves it open or contradicts
            itself: ``"sform"``, ``"qform"`` or ``"pixdim"``; None refuses files in which left and right are a guess.
        like: For segmentations of DICOM and 3D Slicer, the image that they belong to, its file or folder, or its grid. A structure set (RTSTRUCT)
            states no grid; None looks for its series near the file. Other formats have a grid of their own.

    Returns:
        Volume `(1, X, Y, Z)` of an integer type.

    Raises:
        DataError: `read` raises it, there is more than one channel, segments overlap, or values are not whole numbers.

    >>> import tempfile, medseg, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     label_map = medseg.Volume(np.eye(3, dtype=np.float32)[None, ..., None], medseg.Grid.from_spacing((3, 3, 1)))
    ...     write(label_map, f"{folder}/labels.nrrd")
    ...     labels = read_labels(f"{folder}/labels.nrrd")
    >>> labels.data.dtype.kind, int(labels.data.sum())
    ('i', 3)
    """
    volume = read_stored_labels(path, orientation_from=orientation_from, like=like)
    data = volume.data
    if data.dtype.kind == "f":
        rounded = np.round(data)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is not a whole number either
            off = ~((np.abs(data - rounded) < WHOLE_WITHIN) & (np.abs(rounded) < _LABEL_LIMIT))
        if off.any():
            values, counts = np.unique(data[off], return_counts=True)
            shown = ", ".join(
                f"{value:.4g} ({pluralise(int(n), 'voxel')})"
                for value, n in zip(values[:5], counts[:5], strict=True)
            )
            more = " and others" if len(values) > 5 else ""
            first = ", ".join(map(str, np.argwhere(off)[0][1:].tolist()))
            raise DataError(
                f"{path}: label values: found {shown}{more}, the first at ({first}), expected whole numbers. Give the label map as it was "
                "before interpolation, saved as integers, and not an image."
            )
        data = rounded.astype(np.int32)
    elif data.dtype == bool:
        data = data.astype(np.uint8)
    return volume.with_data(data, kind="label")


def read_stored_labels(
    path: str | Path,
    *,
    orientation_from: OrientationFrom | None = None,
    like: Volume | Grid | str | Path | None = None,
) -> Volume:
    """Read a label map with its values as stored, also if they are not whole numbers.

    Args:
        path: The file or folder.
        orientation_from: As for `read_labels`.
        like: As for `read_labels`.

    Returns:
        Volume `(1, X, Y, Z)`; from a natural image with a palette, the indices.

    Raises:
        DataError: `read` raises it, there is more than one channel, or segments overlap.
    """
    with lack_of_memory_explained(path):
        return _stored_labels(path, orientation_from, like)


def _stored_labels(
    path: str | Path, orientation_from: OrientationFrom | None, like: Volume | Grid | str | Path | None
) -> Volume:
    if kind := segmentation_kind(Path(path)):
        return read_segmentation(Path(path), kind, _grid_of(like)).label_map()
    if suffix_of(path) in TIFF:
        from medseg.io.tiff import read_tiff

        volume = read_tiff(Path(path), as_stored=True)
    else:
        volume = read(path, orientation_from=orientation_from)
    if suffix_of(path) in PALETTE_SUFFIXES:
        indices = palette_indices(Path(path))
        volume = volume if indices is None else volume.with_data(indices)
    if volume.channels != 1:
        coloured = suffix_of(path) in NATURAL_IMAGES
        advice = "Convert its colours to one whole number per label." if coloured else "Split it."
        raise DataError(f"{path}: found {volume.channels} channels, expected a label map with one. {advice}")
    return volume


def read_segments(path: str | Path, *, like: Volume | Grid | str | Path | None = None) -> Segments:
    """Read a segmentation with the names and colours of its segments, which may overlap.

    Args:
        path: A file in DICOM format (SEG of type BINARY or LABELMAP, or RTSTRUCT), or of 3D Slicer (.seg.nrrd).
        like: The image that it belongs to, its file or folder, or its grid, as for `read_labels`.

    Returns:
        The segments; `Segments.label_map` merges them.

    Raises:
        DataError: The file is missing or damaged, or no segmentation.

    >>> import tempfile, medseg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_segments(f"{folder}/lesions.seg.dcm")
    Traceback (most recent call last):
    ...
    medseg.errors.DataError: ...lesions.seg.dcm: no such file. Check the path.
    """
    from medseg.io.file_content import require_readable

    path = Path(path)
    kind = segmentation_kind(path)
    if not path.is_dir():
        require_readable(path, "a segmentation")
    if kind is None:
        raise DataError(
            f"{path}: found no segmentation, expected SEG or RTSTRUCT in DICOM format, or .seg.nrrd. Read other label maps with read_labels."
        )
    with lack_of_memory_explained(path):
        return read_segmentation(path, kind, _grid_of(like))


def _grid_of(like: Volume | Grid | str | Path | None) -> Grid | None:
    if isinstance(like, (str, Path)):
        return read_grid(like)
    return like.grid if isinstance(like, Volume) else like


def read_grid(
    path: str | Path,
    *,
    orientation_from: OrientationFrom | None = None,
    series: str | int | None = None,
    uneven: Uneven = "refuse",
) -> Grid:
    """Read the grid of an image; only the headers of NIfTI and DICOM files are read.

    Args:
        path: The file or folder.
        orientation_from: For NIfTI, the description of the geometry to use where the header leaves it open or contradicts
            itself: ``"sform"``, ``"qform"`` or ``"pixdim"``; None refuses files in which left and right are a guess.
        series: For a folder with several DICOM series, the one to read, as for `read`.
        uneven: What to do with a DICOM series with uneven gaps, as for `read`.

    Returns:
        Shape and affine (voxel indices to mm).

    Raises:
        DataError: The file is missing, damaged, or not an image.

    >>> import tempfile, medseg, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image = medseg.Volume(np.zeros((1, 4, 3, 2), np.int16), medseg.Grid.from_spacing((4, 3, 2), (1, 1, 5)))
    ...     write(image, f"{folder}/ct.nii.gz")
    ...     grid = read_grid(f"{folder}/ct.nii.gz")
    >>> grid.shape, grid.spacing
    ((4, 3, 2), (1.0, 1.0, 5.0))
    """
    if suffix_of(path) in NIFTI:
        from medseg.io.nifti.nifti_files import read_nifti_grid

        return read_nifti_grid(Path(path), orientation_from)
    if is_dicom(Path(path)) and not segmentation_kind(Path(path)):
        from medseg.io.dicom.dicom_series import read_series_geometry

        return read_series_geometry(Path(path), series, uneven).grid
    return read(path, orientation_from=orientation_from).grid


def write(
    volume: Volume,
    path: str | Path,
    *,
    names: Labels | None = None,
    like: Volume | str | Path | None = None,
    algorithm: Algorithm | None = None,
) -> None:
    """Write a volume as .nii, .nii.gz, .nrrd, .mha, .mgz or .tif, or a label map as .seg.nrrd or (of a natural image) .png, in one step.

    A volume on the grid of the NIfTI file that it came from is written with exactly the geometry of that file. The label map
    of a DICOM series can also be written as .seg.dcm (SEG of type BINARY), .labelmap.dcm (SEG of type LABELMAP)
    or .rtstruct.dcm (RTSTRUCT).

    Args:
        volume: The volume.
        path: The file to create or replace; its suffix chooses the format.
        names: Names and colours of the values of a label map, for NIfTI, DICOM and .seg.nrrd; other formats cannot hold them.
            None for none in NIfTI, and for ``label_1`` and so on in the other two.
        like: For DICOM, the source series: its folder, or a volume that was read from it. None for the series that `volume`
            was predicted for, or has the grid of.
        algorithm: For DICOM, the model that predicted a label map; None if it is unknown.

    Raises:
        DataError: The suffix is unknown, the file cannot be written, or a DICOM segmentation has no source series; an
            existing file is then unchanged.
        ConfigError: The extra ``dicom`` is needed and not installed.

    >>> import tempfile, medseg, numpy as np
    >>> label_map = medseg.Volume(np.ones((1, 4, 3, 2), np.uint8), medseg.Grid.from_spacing((4, 3, 2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(label_map, f"{folder}/labels.mha")
    ...     bool((read_labels(f"{folder}/labels.mha").data == 1).all())
    True
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix == SLICER:
        from medseg.io.itk.slicer_segmentation import write_slicer_segmentation

        write_slicer_segmentation(volume, path, names)
    elif suffix in DICOM_SEGMENTATIONS:
        source = Path(like) if isinstance(like, str) else like
        write_segmentation(volume, path, names, source, algorithm)
    elif suffix in (".nii", ".nii.gz"):
        from medseg.io.nifti.nifti_files import write_nifti

        write_nifti(volume, path, names)
    elif suffix == ".png":
        from medseg.io.itk.sitk import write_natural_image

        write_natural_image(volume, path)
    elif suffix in TIFF:
        from medseg.io.tiff_output import write_tiff

        write_tiff(volume, path)
    elif suffix in FREESURFER:
        from medseg.io.freesurfer import write_freesurfer

        write_freesurfer(volume, path)
    elif suffix in WRITABLE:
        from medseg.io.itk.sitk import write_sitk

        write_sitk(volume, path)
    else:
        raise DataError(
            f"{path}: cannot write this file format: expected {', '.join(WRITABLE)}; for a label map also {SLICER}, for an image without a position in space also {TIFF[0]}, for the label map of a natural image "
            f"also .png, and for that of a DICOM series also {', '.join(DICOM_SEGMENTATIONS)}. Rename it."
        )
