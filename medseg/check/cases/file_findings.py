"""Reading of one file: its voxels if they can be read, and findings about the file and its header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.check.finding import Finding, message_parts
from medseg.data.datasets.cases import ReadingOptions
from medseg.data.datasets.names import relative_name
from medseg.errors import DataError, collected_warnings
from medseg.io.file_content import recognised_file, require_readable
from medseg.io.files import NATURAL_IMAGES, NIFTI, read_stored_labels, suffix_of
from medseg.io.nifti.nifti_geometry import placement
from medseg.io.nifti.nifti_header import open_nifti
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.volumes.grid import Grid
from medseg.volumes.plausible import LARGEST_SPACING_MM, check_plausible, format_dimensions
from medseg.volumes.volume import Volume

SMALLEST_SPACING_MM = 1e-4
_DAMAGE = re.compile(
    r"voxel data are damaged or end early \((?P<reason>.*)\); expected (?P<expected>.*)\. Copy"
)
_CONTENT_CODES = {
    "HTML page": "FILE_IS_WEB_PAGE",
    "Git LFS pointer": "FILE_IS_GIT_LFS_POINTER",
    "archive": "FILE_IS_ARCHIVE",
    "gzip data": "FILE_IS_ARCHIVE",
    "xz data": "FILE_IS_ARCHIVE",
    "bzip2 data": "FILE_IS_ARCHIVE",
    "zstd data": "FILE_IS_ARCHIVE",
}
_OTHER_KINDS = (
    "text",
    "image",
    "array",
    "document",
    "only zeros",
    "a DICOM file",
    "HDF5",
    "MINC",
    "MetaImage",
    "Analyze",
    "FreeSurfer",
)
_NOTE_CODES = {
    "content": "NAME_DIFFERS_FROM_CONTENT",
    "sform and qform": "QFORM_SFORM_DIFFER",
    "voxel size": "PIXDIM_DIFFERS",
    "affine": "AXES_SHEARED",
}  # by the field that a note begins with; others are contradictory header fields
_GEOMETRY_CODES = {
    "qform_code and sform_code": "ORIENTATION_UNKNOWN",
    "sform and qform": "QFORM_SFORM_AXES_DIFFER",
}
_READ_ANYWAY: dict[str, OrientationFrom] = {
    "ORIENTATION_UNKNOWN": "pixdim",
    "QFORM_SFORM_AXES_DIFFER": "sform",
}


@dataclass(frozen=True)
class ReadFile:
    """What is known of a file after it was read.

    Attributes:
        volume: The voxels; None if they cannot be read.
        findings: Findings about the file, its header and its grid.
        guessed: Whether it was read although its header leaves open where left and right are.
    """

    volume: Volume | None
    findings: tuple[Finding, ...]
    guessed: bool = False


def read_file(path: Path, root: Path, case: str, reading: ReadingOptions, *, label: bool = False) -> ReadFile:
    """Read a file and describe everything that is unusual about it.

    Args:
        path: The file or DICOM folder.
        root: Folder of the dataset, for names.
        case: Id of the case.
        reading: What the user decided about contradictory headers and DICOM series.
        label: Whether it is a label map or instance map; its values are then returned as stored.

    Returns:
        The voxels, or None, and findings.
    """
    name = relative_name(path, root)
    missing = _missing(path, name, case, label=label)
    if missing is not None:
        return ReadFile(None, (missing,))
    findings: list[Finding] = []
    form = reading.orientation_from
    if suffix_of(path) in NIFTI:
        found, form = _header_findings(path, name, case, reading.orientation_from)
        findings += found
        if any(finding.code in _UNUSABLE for finding in found):
            return ReadFile(None, tuple(findings))
    with collected_warnings() as notes:
        try:
            if label:
                volume = read_stored_labels(path, orientation_from=form)
            else:
                volume = replace(reading, orientation_from=form).read_image(path)
        except DataError as error:
            return ReadFile(None, (*findings, _voxel_finding(error, path, name, case)))
    known = {finding.found for finding in findings}
    findings += [note for note in _reader_notes(notes, path, name, case) if note.found not in known]
    findings += _grid_findings(volume.grid, path, name, case)
    return ReadFile(volume, tuple(findings), form != reading.orientation_from)


_UNUSABLE = {
    *("FILE_UNREADABLE", "FILE_EMPTY", "FILE_IS_WEB_PAGE", "FILE_IS_GIT_LFS_POINTER", "FILE_IS_ARCHIVE"),
    *("FILE_IS_NOT_AN_IMAGE", "FILE_DAMAGED", "HEADER_INVALID", "AFFINE_INVALID"),
}  # findings of a header after which voxels are not read


def _missing(path: Path, name: str, case: str, *, label: bool) -> Finding | None:
    """Return a finding if a path does not exist or cannot be opened."""
    if path.is_dir():
        return None
    if not path.exists() and not path.is_symlink():
        code = "LABEL_MISSING" if label else "IMAGE_MISSING"
        return Finding(code, name, "file", "no such file", case=case)
    try:
        require_readable(path)
    except DataError as error:
        parts = message_parts(str(error), path)
        empty = parts.found == "0 bytes"
        return Finding(
            "FILE_EMPTY" if empty else "FILE_UNREADABLE",
            name,
            "content",
            parts.found,
            parts.expected,
            parts.remedy,
            case,
        )
    return None


def _header_findings(
    path: Path, name: str, case: str, orientation_from: OrientationFrom | None
) -> tuple[list[Finding], OrientationFrom | None]:
    """Return the findings of a NIfTI header, and the form by which its voxels can be read."""
    try:
        file = open_nifti(path)
    except DataError as error:
        return [_unusable(error, path, name, case)], orientation_from
    notes = [*_notes(file.notes, name, case)]
    if not file.voxel_file.exists():
        missing = Finding(
            "FILE_DAMAGED",
            name,
            "voxels",
            f"no file {file.voxel_file.name}",
            "",
            "Copy it to the same folder.",
            case,
        )
        return [*notes, missing], orientation_from
    try:
        placed = placement(file, orientation_from)
    except DataError as error:
        parts = message_parts(str(error), path)
        code = _GEOMETRY_CODES.get(parts.field, "AFFINE_INVALID")
        finding = Finding(
            code, name, parts.field or "affine", parts.found, parts.expected, parts.remedy, case
        )
        return [*notes, finding], _READ_ANYWAY.get(code, orientation_from)
    return [*notes, *_notes(placed.notes, name, case)], orientation_from


def _notes(notes: tuple[str, ...], name: str, case: str) -> Iterator[Finding]:
    for note in notes:
        parts = message_parts(note)
        code = _NOTE_CODES.get(parts.field, "HEADER_CONTRADICTORY")
        yield Finding(code, name, parts.field, parts.found, parts.expected, parts.remedy, case)


def _unusable(error: DataError, path: Path, name: str, case: str) -> Finding:
    """Return a finding about a file that is no NIfTI file, or whose header has an invalid field."""
    parts = message_parts(str(error), path)
    code = _content_code(parts.found)
    if code is None:
        damaged = "damaged gzip data" in parts.found or parts.found.endswith(" bytes")
        code = "FILE_DAMAGED" if damaged else "HEADER_INVALID"
    field = parts.field.removeprefix("not a readable NIfTI file").strip(": ") or "content"
    expected = "" if code.startswith("FILE_IS_") else parts.expected  # an image, not a header of some bytes
    return Finding(code, name, field, parts.found, expected, parts.remedy, case)


def _content_code(found: str) -> str | None:
    """Return the code for what a file really is, None for an image of its kind."""
    for words, code in _CONTENT_CODES.items():
        if words in found and "damaged" not in found:
            return code
    known = any(words in found for words in _OTHER_KINDS)
    return "FILE_IS_NOT_AN_IMAGE" if known else None


def _voxel_finding(error: DataError, path: Path, name: str, case: str) -> Finding:
    """Return a finding about voxels that cannot be read."""
    parts = message_parts(str(error), path)
    if path.is_dir():
        return Finding(
            "DICOM_SERIES_INVALID",
            name,
            parts.field or "series",
            parts.found,
            parts.expected,
            parts.remedy,
            case,
        )
    if suffix_of(path) not in NIFTI:
        content, remedy = recognised_file(path)
        code = _content_code(content)
        if code in ("FILE_IS_WEB_PAGE", "FILE_IS_GIT_LFS_POINTER", "FILE_IS_ARCHIVE") or "text" in content:
            return Finding(code or "FILE_IS_NOT_AN_IMAGE", name, "content", content, "", f"{remedy}.", case)
    if "channels" in parts.found:
        return Finding(
            "CHANNEL_COUNT_DIFFERS", name, "channels", parts.found, parts.expected, parts.remedy, case
        )
    if parts.field == "vox_offset":
        return Finding("HEADER_INVALID", name, parts.field, parts.found, parts.expected, parts.remedy, case)
    damage = _DAMAGE.search(str(error))
    if damage:
        reason = message_parts(damage["reason"])
        expected = reason.expected or damage["expected"]
        return Finding(
            "FILE_DAMAGED", name, reason.field or "voxels", reason.found, expected, parts.remedy, case
        )
    found = parts.found if "found " in str(error) else f"{parts.field}: {parts.found}".strip(": ")
    return Finding("FILE_DAMAGED", name, "voxels", found, parts.expected, parts.remedy, case)


def _reader_notes(notes: list[str], path: Path, name: str, case: str) -> Iterator[Finding]:
    """Yield findings for what a reader reports, except the notes of NIfTI headers, which have their own findings."""
    for note in notes:
        parts = message_parts(note, path)
        if suffix_of(path) in NIFTI and "bytes after the voxels" not in note:
            continue
        yield Finding(
            "READER_NOTE", name, parts.field or "content", parts.found, parts.expected, parts.remedy, case
        )


def _grid_findings(grid: Grid, path: Path, name: str, case: str) -> Iterator[Finding]:
    """Yield findings about voxel sizes and angles that no scanner produces."""
    if (
        min(grid.spacing) < SMALLEST_SPACING_MM
        and not grid.in_pixels
        and suffix_of(path) not in NATURAL_IMAGES
    ):
        yield Finding(
            "VOXEL_SIZE_IMPLAUSIBLE", name, "voxel size", f"{format_dimensions(grid.spacing)} mm", case=case
        )
    with collected_warnings() as notes:
        try:
            check_plausible(grid, path)
        except DataError as error:
            parts = message_parts(str(error), path)
            code = "VOXEL_SIZE_IMPLAUSIBLE" if max(grid.spacing) > LARGEST_SPACING_MM else "AFFINE_INVALID"
            yield Finding(code, name, parts.field, parts.found, parts.expected, parts.remedy, case)
    for note in notes:
        parts = message_parts(note, path)
        code = "AXES_SHEARED" if parts.field == "affine" else "VOXELS_ANISOTROPIC"
        yield Finding(code, name, parts.field, parts.found, parts.expected, parts.remedy, case)
