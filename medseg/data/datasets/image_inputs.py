"""Images without label maps, to be predicted: files, folders of files and DICOM series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.data.datasets.cases import (
    Case,
    ReadingOptions,
    require_files,
    require_unique,
    with_absent_channels,
)
from medseg.data.datasets.names import CHANNEL_FILE, sanitised_id, visible_files
from medseg.errors import DataError, no_such_path, warn_once
from medseg.io.dicom.series_files import dicom_files, holds_dicom
from medseg.io.files import IMAGE_SUFFIXES, NATURAL_IMAGES, stem_of, suffix_of
from medseg.io.segmentation_files import DICOM_SEGMENTATIONS
from medseg.runtime.formatting import pluralise


def read_images(
    paths: str | Path | Sequence[str | Path], channels: int = 1, reading: ReadingOptions | None = None
) -> list[Case]:
    """Return cases without labels, from image files, folders of images or DICOM series.

    With several channels, files named ``<id>_0000`` … ``<id>_0003`` form one case; other files must hold all channels
    themselves. With one channel, or for natural images, whose files hold all colours, ``_0000`` is removed if
    every name ends with it. A folder without an image file is one
    DICOM series; if it holds only folders, each of them is one series.

    Args:
        paths: Files or folders.
        channels: Number of channels that an image must have.
        reading: What the user decided about files whose headers are wrong; None decides nothing.

    Returns:
        Cases sorted by id. Ids are file names without suffix; characters that are not allowed in file names on some
        system are replaced by ``_``.

    Raises:
        DataError: Nothing is found, channels are missing (all are listed), or two files have the same id.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    uid = reading is not None and "." in str(reading.series)  # of one series, wherever it is
    files = [file for path in given for file in ([path] if uid and path.is_dir() else image_files(path))]
    cases = sorted(_grouped(files, channels), key=lambda case: case.id)
    if reading is not None and reading.absent_channels == "zeros":
        cases = list(with_absent_channels(cases, channels))
    require_unique(cases, "images")
    require_files(cases, "images")
    return cases if reading is None else [replace(case, reading=reading) for case in cases]


def output_stem(case: Case) -> str:
    """Return the stem of the result files of a case from `read_images`: its id as spelt in the name of its image file.

    In an id, characters that some systems do not allow in file names are replaced by ``_``; the stem keeps them.

    Args:
        case: A case from `read_images`.

    Returns:
        The image's file name without its suffix, and without the channel number that the id lacks; the id if neither
        matches it.
    """
    stem = stem_of(case.images[0])
    match = CHANNEL_FILE.fullmatch(stem)
    own = (stem, match["id"] if match else stem)
    return next((name for name in own if sanitised_id(name) == case.id), case.id)


def image_files(path: Path) -> list[Path]:
    """Return the images at a path: a file, the image files of a folder, or folders with one DICOM series each.

    A natural image next to DICOM slices, or next to folders with DICOM series, is a preview and no image of its own.

    Args:
        path: A file or folder.

    Returns:
        Files, or folders of DICOM series.

    Raises:
        DataError: There is none, or a folder holds both volumes and DICOM slices or series.
    """
    if path.is_dir():
        return _images_of_folder(path)
    if not path.exists() and not path.is_symlink():
        raise DataError(no_such_path(path))
    return [path]


def _images_of_folder(path: Path) -> list[Path]:
    files = visible_files(path)
    images = [file for file in files if suffix_of(file) and suffix_of(file) not in DICOM_SEGMENTATIONS]
    headers = {stem_of(file) for file in images if suffix_of(file) == ".hdr"}
    images = [f for f in images if suffix_of(f) != ".img" or stem_of(f) not in headers]
    volumes = [file for file in images if suffix_of(file) not in NATURAL_IMAGES]
    if holds_dicom(path, IMAGE_SUFFIXES):
        if volumes:
            raise DataError(
                f"{path}: found DICOM slices and {pluralise(len(volumes), 'volume')} ({volumes[0].name}), expected one or the other. "
                "Give the paths of the files to use, or move one kind to another folder."
            )
        return [path]
    folders = [item for item in sorted(path.iterdir()) if item.is_dir() and not item.name.startswith(".")]
    series = [folder for folder in folders if files and holds_dicom(folder, IMAGE_SUFFIXES)]
    if series and images:
        _without_previews(path, images, volumes, series)
    if images and not series:
        return images
    if files:  # on CDs from hospitals, the other files are a DICOMDIR and the files of a viewer
        return series or [path]
    series = [folder for folder in folders if visible_files(folder)]
    if not series and dicom_files(path).headers:
        return [path]
    if not series:
        raise DataError(
            f"{path}: found no image, expected image files or a DICOM series. Check the path, or copy the images there."
        )
    return series


def _without_previews(
    path: Path, images: Sequence[Path], volumes: Sequence[Path], series: Sequence[Path]
) -> None:
    """Raise if there are volumes next to folders with DICOM series; warn if there are only natural images, which are previews."""
    if volumes:
        raise DataError(
            f"{path}: found {pluralise(len(series), 'folder')} with a DICOM series ({series[0].name}) and {pluralise(len(volumes), 'volume')} "
            f"({volumes[0].name}), expected one or the other. Give the paths of the files to use, or move one kind to "
            "another folder."
        )
    warn_once(
        f"{path}: found {pluralise(len(images), 'natural image')} ({images[0].name}) next to {pluralise(len(series), 'folder')} with a DICOM "
        "series; ignored as a preview. Give the files to use them as images."
    )


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    numbered = [CHANNEL_FILE.fullmatch(stem_of(file)) for file in files]
    coloured = all(suffix_of(file) in NATURAL_IMAGES for file in files)
    if (channels == 1 or coloured) and all(match and match["channel"] == "0000" for match in numbered):
        return [
            Case(sanitised_id(match["id"]), (f,)) for f, match in zip(files, numbered, strict=True) if match
        ]
    if channels == 1 and all(numbered) and len({match["id"] for match in numbered if match}) < len(files):
        raise DataError(
            f"{files[0]}: found several channels per case (_0000, _0001, ...), expected 1 like the model. Give the "
            "files of that channel, such as FOLDER/*_0000.nii.gz."
        )
    if channels == 1 or not any(numbered):
        return [Case(sanitised_id(stem_of(file)), (file,)) for file in files]
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, match in zip(files, numbered, strict=True):
        groups[match["id"] if match else stem_of(file)].append(file)
    return [_channel_case(name, group, channels) for name, group in groups.items()]


def _channel_case(name: str, files: list[Path], channels: int) -> Case:
    """Return one case of numbered files, or of one file that holds all channels."""
    if len(files) == 1 and not CHANNEL_FILE.fullmatch(stem_of(files[0])):
        return Case(sanitised_id(name), (files[0],))
    expected = [files[0].with_name(f"{name}_{i:04d}{suffix_of(files[0])}") for i in range(channels)]
    extra = sorted(file.name for file in files if file not in expected)
    if extra:
        raise DataError(
            f"{files[0].parent}: case {name}: found {', '.join(extra)}, expected {expected[0].name} to "
            f"{expected[-1].name} for {channels} channels. Remove or renumber it."
        )
    return Case(sanitised_id(name), tuple(expected))
