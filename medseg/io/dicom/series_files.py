"""The files of a DICOM series among those of a folder; a damaged slice is an error, another file is ignored and counted."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import (
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

_CLASS, _SERIES, _NUMBER, _ROWS = 0x00080016, 0x0020000E, 0x00200011, 0x00280010
_DERIVED = (  # dose, segmentation, real-world mapping and registration are no images of their own
    *("1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.5"),
    *("1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.67", "1.2.840.10008.5.1.4.1.1.66.1"),
)
_DEEPEST = 8  # folders of patient, study and series, with some to spare
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


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder, by what they are.

    Attributes:
        folder: The folder.
        files: All visible files of the folder; if none of them is a DICOM file, those of the folders within it.
        headers: Descriptions of the DICOM files.
        images: Those of images.
        damaged: Reasons against files that are slices or look like it, but cannot be read.
    """

    folder: Path
    files: tuple[Path, ...]
    headers: tuple[DicomHeader, ...]
    images: tuple[DicomHeader, ...]
    damaged: dict[Path, str]

    def by_series(self) -> dict[str, list[DicomHeader]]:
        """Return the images by the UID of their series, in the order of the number of the series."""
        groups: dict[str, list[DicomHeader]] = defaultdict(list)
        for one in self.images:
            groups[one.text(_SERIES)].append(one)
        return dict(sorted(groups.items(), key=lambda item: (item[1][0].number(_NUMBER), item[0])))

    def require_intact(self, chosen: Sequence[DicomHeader]) -> None:
        """Raise if a file that may belong to a series is damaged: one in a folder of its files.

        Args:
            chosen: The images of the series.

        Raises:
            DataError: There is one.
        """
        folders = {one.path.parent for one in chosen}
        damaged = {
            file.name: why for file, why in self.damaged.items() if file.parent in folders or not chosen
        }
        if damaged:
            shown = " ".join(damaged[name] for name in sorted(damaged)[:3])
            raise DataError(
                f"{self.folder}: slices that cannot be read: found {len(damaged)} ({', '.join(sorted(damaged)[:3])}) of "
                f"{len(chosen) + len(damaged)}, expected none. {shown}"
            )

    def without_images(self) -> str:
        """Return what there is instead of an image, for a message."""
        if self.headers:
            return f"no DICOM series of images but {pluralise(len(self.headers), 'DICOM file')} of other kinds ({self.headers[0].path.name})"
        if self.files:
            first = self.files[0]
            what = recognised_file(first)[0] if first.is_file() else "no file"
            return f"no DICOM series but {pluralise(len(self.files), 'other file')} ({first.name}: {what})"
        return "no DICOM series"


def dicom_files(folder: Path) -> FolderFiles:
    """Return the DICOM files of a folder.

    In a folder without any, such as the disk of a hospital with a DICOMDIR, they are looked for in the folders within it.

    Args:
        folder: The folder.

    Returns:
        The files. Nothing is raised for damaged ones.

    Raises:
        DataError: The folder may not be read.
    """
    files = _image_candidates(_visible(folder))
    marked = [file for file in files if file.is_file() and has_mark(file)]
    if not marked and not _looks_like_slices(files):
        deeper = _image_candidates(_below(folder))
        found = [file for file in deeper if has_mark(file)]
        if found:
            folders = {file.parent for file in found}
            files, marked = [file for file in deeper if file.parent in folders], found
    damaged, headers = _read_headers(marked)
    images = [one for one in headers if one.pixel_bytes is not None and one.text(_CLASS) not in _DERIVED]
    chosen = set(marked)
    damaged |= _lost_slices(
        [file for file in files if file not in chosen], images or headers, alone=not marked
    )
    return FolderFiles(folder, tuple(files), tuple(headers), tuple(images), damaged)


def same_series(header: DicomHeader) -> list[Path]:
    """Return the files of the same series as a file in its folder, the file itself included.

    Args:
        header: Description of the file.

    Returns:
        The files; those that cannot be read are left out.
    """
    uid, found = header.text(_SERIES), []
    for file in _visible(header.path.parent):
        if file == header.path:
            found.append(file)
        elif file.is_file() and has_mark(file):
            with suppress(DataError):
                found += [file] if read_header(file).text(_SERIES) == uid else []
    return found


def _image_candidates(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not file.is_dir() and file.name.upper() != "DICOMDIR"]


def _looks_like_slices(files: Sequence[Path]) -> bool:
    """Return whether files without the mark of DICOM seem to be slices all the same."""
    return bool(_lost_slices(files, (), alone=True))


def _below(folder: Path) -> list[Path]:
    """Return the visible files in the folders within a folder, down to the depth of exports."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _DEEPEST)
        if depth:
            found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _read_headers(files: Sequence[Path]) -> tuple[dict[Path, str], list[DicomHeader]]:
    """Return what is wrong with each damaged file, and the headers of the other files."""
    damaged: dict[Path, str] = {}
    headers = []
    for file in files:
        try:
            header = read_header(file)
        except DataError as error:
            damaged[file] = str(error)
            continue
        if header.is_directory:
            continue
        if not (header.text(_CLASS) or header.text(_SERIES) or header.number(_ROWS) or header.pixel_bytes):
            size = file.stat().st_size
            damaged[file] = (
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
            damaged[file] = f"{file}: found no pixel data, expected {expected} bytes. Copy the file again."
        elif (
            header.syntax in UNCOMPRESSED and header.pixel_bytes is not None and header.pixel_bytes < expected
        ):
            damaged[file] = (
                f"{file}: PixelData: found {header.pixel_bytes} bytes, expected {expected}. Copy the file again."
            )
        else:
            headers.append(header)
    return damaged, headers


def _lost_slices(files: Sequence[Path], headers: Sequence[DicomHeader], *, alone: bool) -> dict[Path, str]:
    """Return what is wrong with files that lack the DICOM prefix but are named like slices or look like DICOM."""
    kinds = {_kind_of_name(one.path) for one in headers}
    patterns = {_pattern_of_name(one.path) for one in headers}
    found: dict[Path, str] = {}
    for file in files:
        named_alike = _kind_of_name(file) in kinds
        if not file.is_file():
            if named_alike:
                found[file] = _why_unreadable(file)
            continue
        if file.stat().st_size == 0:
            if named_alike:
                found[file] = f"{file}: found 0 bytes, expected a slice. Copy the file again."
            continue
        head = head_of(file)
        bare = head[:6] == b"\x02\x00\x00\x00UL" or head[132:138] == b"\x02\x00\x00\x00UL"
        content, remedy = recognised_content(head)
        if bare or (named_alike and content in ("unknown content", "only zeros") and not alone):
            found[file] = (
                f"{file}: found no DICM at byte 128, expected it after the preamble of a DICOM file. Export or copy the file again."
            )
        elif _pattern_of_name(file) in patterns or (
            _kind_of_name(file) and named_alike and content != "text"
        ):
            found[file] = f"{file}: found {content}, expected a slice. {remedy}."
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
