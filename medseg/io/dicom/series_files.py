"""The files of a DICOM series among those of a folder; a damaged slice is an error, another file is ignored and counted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from medseg.errors import DataError, warn_once
from medseg.io.dicom.dicom_header import (
    DIRECTORY,
    PER_FRAME,
    DicomHeader,
    expected_pixel_bytes,
    has_mark,
    read_header,
)
from medseg.io.file_content import (
    head_of,
    permission_denied,
    recognised_content,
    recognised_file,
    require_readable,
)
from medseg.runtime.formatting import pluralise

_CLASS, _SERIES, _ROWS, _COLUMNS = 0x00080016, 0x0020000E, 0x00280010, 0x00280011
_DERIVED = (  # dose, segmentation, real-world mapping and registration are no images of their own
    *("1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.5"),
    *("1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.67", "1.2.840.10008.5.1.4.1.1.66.1"),
)
_MOST_SEARCHED = 2000  # files and folders below one without a series
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


def holds_dicom(folder: Path, suffixes: Sequence[str] = ()) -> bool:
    """Return whether a folder holds a DICOM file, other than the directory of a disk.

    Args:
        folder: The folder.
        suffixes: Suffixes of files that are not opened, because they are known to be something else.

    Returns:
        True if there is one.
    """
    files = (file for file in _visible(folder) if not file.name.lower().endswith(tuple(suffixes)))
    return any(file.is_file() and file.name.upper() != "DICOMDIR" and has_mark(file) for file in files)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except PermissionError:
        raise permission_denied(folder) from None


def only_series(folder: Path) -> list[DicomHeader]:
    """Return the headers of the only series in a folder, and warn about other files.

    Args:
        folder: The folder.

    Returns:
        The headers, in the order of the file names.

    Raises:
        DataError: There is no series or more than one, or a slice is damaged.
    """
    files = [file for file in _visible(folder) if not file.is_dir() and file.name.upper() != "DICOMDIR"]
    marked = [file for file in files if file.is_file() and has_mark(file)]
    damaged, headers = _read_headers(marked)
    images = [one for one in headers if one.pixel_bytes is not None and one.text(_CLASS) not in _DERIVED]
    unmarked = [file for file in files if file not in marked]
    damaged |= _lost_slices(unmarked, images or headers, alone=not marked)
    if damaged:
        shown = " ".join(damaged[name] for name in sorted(damaged)[:3])
        raise DataError(
            f"{folder}: slices that cannot be read: found {len(damaged)} ({', '.join(sorted(damaged)[:3])}) of "
            f"{len(images) + len(damaged)}, expected none. {shown}"
        )
    groups: dict[str, list[DicomHeader]] = defaultdict(list)
    for one in images:
        groups[one.text(_SERIES)].append(one)
    if len(groups) != 1:
        raise DataError(
            f"{folder}: found {_described(groups, headers) or _without_series(folder, files)}, expected one. Give a folder with one series."
        )
    others = [file.name for file in files if file not in {one.path for one in images}]
    if others:
        shown = ", ".join(others[:3])
        warn_once(
            f"{folder}: found {pluralise(len(others), 'other file')} ({shown}) next to the {len(images)} slices; ignored."
        )
    return images


def _read_headers(files: Sequence[Path]) -> tuple[dict[str, str], list[DicomHeader]]:
    """Return what is wrong with each damaged file, by name, and the headers of the other files."""
    damaged: dict[str, str] = {}
    headers = []
    for file in files:
        try:
            header = read_header(file)
        except DataError as error:
            damaged[file.name] = str(error)
            continue
        if header.text(_CLASS) == DIRECTORY:
            continue
        if not (header.text(_CLASS) or header.text(_SERIES) or header.number(_ROWS) or header.pixel_bytes):
            size = file.stat().st_size
            damaged[file.name] = (
                f"{file}: found {size} bytes without SOPClassUID, SeriesInstanceUID and pixels, expected a slice. Copy the file again."
            )
            continue
        expected = expected_pixel_bytes(header)
        if (
            header.pixel_bytes is None
            and header.number(_ROWS)
            and header.text(_SERIES)
            and not header.text(PER_FRAME)
        ):
            damaged[file.name] = (
                f"{file}: found no pixel data, expected {expected} bytes. Copy the file again."
            )
        elif (
            header.syntax in UNCOMPRESSED and header.pixel_bytes is not None and header.pixel_bytes < expected
        ):
            damaged[file.name] = (
                f"{file}: PixelData: found {header.pixel_bytes} bytes, expected {expected}. Copy the file again."
            )
        else:
            headers.append(header)
    return damaged, headers


def _lost_slices(files: Sequence[Path], headers: Sequence[DicomHeader], *, alone: bool) -> dict[str, str]:
    """Return, by name, what is wrong with files that lack the DICOM prefix but are named like slices or look like DICOM."""
    kinds = {_kind_of_name(one.path) for one in headers}
    patterns = {_pattern_of_name(one.path) for one in headers}
    found: dict[str, str] = {}
    for file in files:
        named_alike = _kind_of_name(file) in kinds
        if not file.is_file():
            if named_alike:
                found[file.name] = _why_unreadable(file)
            continue
        if file.stat().st_size == 0:
            if named_alike:
                found[file.name] = f"{file}: found 0 bytes, expected a slice. Copy the file again."
            continue
        head = head_of(file)
        bare = head[:6] == b"\x02\x00\x00\x00UL" or head[132:138] == b"\x02\x00\x00\x00UL"
        content, remedy = recognised_content(head)
        if bare or (named_alike and content in ("unknown content", "only zeros") and not alone):
            found[file.name] = (
                f"{file}: found no DICM at byte 128, expected it after the preamble of a DICOM file. Export or copy the file again."
            )
        elif _pattern_of_name(file) in patterns or (
            _kind_of_name(file) and named_alike and content != "text"
        ):
            found[file.name] = f"{file}: found {content}, expected a slice. {remedy}."
    return found


def _why_unreadable(file: Path) -> str:
    """Return why a path that is not a regular file, such as a broken link or a pipe, cannot be read."""
    try:
        require_readable(file, "a slice")
    except DataError as error:
        return str(error)
    return f"{file}: cannot be read. Copy it again."


def _kind_of_name(file: Path) -> str:
    """Return the suffix of a name, or an empty string if what follows the last dot is not letters only."""
    suffix = file.suffix.lower()
    return suffix if suffix[1:].isalpha() else ""


def _pattern_of_name(file: Path) -> str:
    """Return a file name with ``#`` in place of each number; an empty string if it has no number."""
    name, numbers = re.subn(r"\d+", "#", file.name)
    return name if numbers else ""


def _described(groups: dict[str, list[DicomHeader]], headers: Sequence[DicomHeader]) -> str:
    """Describe, for a message, the series of a folder or what DICOM files it has instead; empty if it has none."""
    if groups:
        each = (
            f"{uid or 'without UID'} ({pluralise(len(group), 'file')} of {group[0].number(_COLUMNS)}x{group[0].number(_ROWS)}, such as "
            f"{group[0].path.name})"
            for uid, group in list(groups.items())[:4]
        )
        return f"{len(groups)} series: {', '.join(each)}"
    if headers:
        return f"no DICOM series of images but {pluralise(len(headers), 'DICOM file')} of other kinds ({headers[0].path.name})"
    return ""


def _without_series(folder: Path, files: Sequence[Path]) -> str:
    """Describe, for a message, what is in a folder without any DICOM file."""
    if files:
        what = next((recognised_file(file)[0] for file in files[:1] if file.is_file()), "no file")
        return f"no DICOM series but {pluralise(len(files), 'other file')} ({files[0].name}: {what})"
    deeper = (file for file in islice(folder.rglob("*"), _MOST_SEARCHED) if file.is_file() and has_mark(file))
    series = next((file.parent for file in deeper if file.name.upper() != "DICOMDIR"), None)
    return f"no DICOM series here but one in {series.relative_to(folder)}" if series else "no DICOM series"
