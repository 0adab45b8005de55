"""Reading and writing volumes by file name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.io.natural_images import PALETTE_SUFFIXES, palette_indices
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
NATURAL_IMAGES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd", *NATURAL_IMAGES)
IMAGE_SUFFIXES = (*NIFTI, *ITK)
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
_INTEGER_TOLERANCE = 1e-3
_LABEL_LIMIT = 2**31


def suffix_of(path: str | Path) -> str:
    """The image suffix of a name, ``.nii.gz`` as one, or an empty string."""
    name = Path(path).name.lower()
    return next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def stem_of(path: str | Path) -> str:
    """The name without its image suffix: ``ct_01.nii.gz`` → ``ct_01``."""
    name = Path(path).name
    suffix = suffix_of(path)
    return name[: -len(suffix)] if suffix else name


def read(path: str | Path) -> Volume:
    """Read an image: a NIfTI, NRRD, MHA or picture file, or a folder that holds one DICOM series.

    Returns:
        Volume `(C, X, Y, Z)` in the file's own orientation. A 2-D image is one slice; a fourth axis or
        colour becomes channels, and of a PNG an alpha channel as well unless it is opaque throughout.

    Raises:
        DataError: missing, damaged, or not an image; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        from medseg.io.sitk import read_dicom_series

        return read_dicom_series(path)
    suffix = suffix_of(path)
    if suffix in NIFTI:
        from medseg.io.nifti import read_nifti

        return read_nifti(path)
    if suffix in ITK:
        from medseg.io.sitk import read_sitk

        return read_sitk(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Check the path.")
    raise DataError(f"{path}: unknown kind of file: expected one of {', '.join(IMAGE_SUFFIXES)}. Convert it.")


def decoded_bytes(path: str | Path) -> int:
    """Bytes that an image takes in memory, as its header tells; 0 where only reading it would tell."""
    if suffix_of(path) not in NIFTI:
        return 0
    from medseg.io.nifti import nifti_bytes

    return nifti_bytes(Path(path))


def read_labels(path: str | Path) -> Volume:
    """Read a label map: one channel of whole numbers, whatever type they are stored in.

    Of a picture with a palette the indices are read, not the colours.

    Raises:
        DataError: as `read`; more than one channel; values that are not whole numbers.
    """
    volume = read(path)
    if suffix_of(path) in PALETTE_SUFFIXES:
        indices = palette_indices(Path(path))
        volume = volume if indices is None else volume.with_data(indices)
    data = volume.data
    if volume.channels != 1:
        coloured = suffix_of(path) in NATURAL_IMAGES
        advice = "Convert its colours to one whole number a label." if coloured else "Split it."
        raise DataError(f"{path}: found {volume.channels} channels, expected a label map with one. {advice}")
    if data.dtype.kind == "f":
        rounded = np.round(data)
        with np.errstate(invalid="ignore"):  # infinite minus infinite is no whole number either
            off = ~((np.abs(data - rounded) < _INTEGER_TOLERANCE) & (np.abs(rounded) < _LABEL_LIMIT))
        if off.any():
            shown = ", ".join(f"{value:.4g}" for value in np.unique(data[off])[:5])
            raise DataError(
                f"{path}: label values: found {shown} in {int(off.sum())} voxels, expected whole numbers. "
                "Give the label map, not an image or a resampled mask."
            )
        data = rounded.astype(np.int32)
    elif data.dtype == bool:
        data = data.astype(np.uint8)
    return volume.with_data(data, kind="label")


def read_grid(path: str | Path) -> Grid:
    """Grid of a file; NIfTI headers are read without their voxels."""
    if suffix_of(path) in NIFTI:
        from medseg.io.nifti import read_nifti_grid

        return read_nifti_grid(Path(path))
    return read(path).grid


def write(volume: Volume, path: str | Path) -> None:
    """Write a volume as .nii, .nii.gz, .nrrd or .mha, or a label map of a picture as .png, in one step.

    A volume on the grid of the NIfTI file it came from is written with exactly that file's geometry.

    Raises:
        DataError: unknown suffix, or the file cannot be written; an old file is then left as it was.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix in (".nii", ".nii.gz"):
        from medseg.io.nifti import write_nifti

        write_nifti(volume, path)
    elif suffix == ".png":
        from medseg.io.sitk import write_picture

        write_picture(volume, path)
    elif suffix in WRITABLE:
        from medseg.io.sitk import write_sitk

        write_sitk(volume, path)
    else:
        raise DataError(
            f"{path}: cannot write this kind of file: expected {', '.join(WRITABLE)}, or .png "
            "for the label map of a picture. Rename it."
        )
