"""The choice of one series among those of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, collected_warnings, warn_once
from medseg.io.dicom.dicom_header import DicomHeader
from medseg.io.dicom.multi_frame import slices_of
from medseg.io.dicom.placed_slices import Slice, has_position
from medseg.io.dicom.series_files import dicom_files
from medseg.runtime.formatting import pluralise

_MODALITY, _IMAGE_TYPE, _FRAMES, _ROWS, _COLUMNS = 0x00080060, 0x00080008, 0x00280008, 0x00280010, 0x00280011
_SAME_DIRECTION = 0.01
_SLICES_OF_A_VOLUME = 0.5  # fraction that is parallel


@dataclass(frozen=True)
class FoundSeries:
    """A series of a folder, without anything that identifies a patient.

    Attributes:
        number: Its place in the list, from 1 on.
        uid: SeriesInstanceUID; empty if it has none.
        headers: Descriptions of its files.
    """

    number: int
    uid: str
    headers: tuple[DicomHeader, ...]

    @property
    def modality(self) -> str:
        """The modality, such as ``CT``."""
        return self.headers[0].text(_MODALITY) or "unknown"

    @cached_property
    def what_else(self) -> str:
        """What it is if it is certainly no volume: ``localizer``, ``without positions`` or ``not parallel``; else empty."""
        if all("LOCALIZER" in one.text(_IMAGE_TYPE).upper().split("\\") for one in self.headers):
            return "localizer"
        if not any(has_position(one) for one in self.headers):
            return "without positions"
        slices = self._slices
        normals = np.array([np.cross(*one.orientation) for one in slices])
        if len(slices) > 1 and _largest_parallel(normals) <= _SLICES_OF_A_VOLUME * len(slices):
            return "not parallel"
        return ""

    def described(self) -> str:
        """Return number, modality, size, spacing, number of slices and UID for a list."""
        first = self.headers[0]
        count = sum(max(1, one.number(_FRAMES, 1)) for one in self.headers)
        size = f"{pluralise(count, 'slice')} of {first.number(_COLUMNS)}x{first.number(_ROWS)}"
        else_ = f", {self.what_else}" if self.what_else else ""
        return f"{self.number}: {self.modality}, {size}{self._spacing()}{else_}, UID {self.uid or 'missing'}"

    def _spacing(self) -> str:
        slices = self._slices
        if not slices:
            return ""
        one = slices[0]
        sizes = [one.spacing[1], one.spacing[0]]
        heights = np.unique(np.round([other.position @ np.cross(*one.orientation) for other in slices], 2))
        if len(heights) > 1 and self.what_else != "not parallel":
            sizes.append(float(np.median(np.diff(heights))))
        elif one.thickness:
            sizes.append(abs(one.thickness))
        return f", {'x'.join(f'{size:.3g}' for size in sizes)} mm"

    @cached_property
    def _slices(self) -> list[Slice]:
        """The slices; none if one of them cannot be placed."""
        with collected_warnings():
            try:
                return slices_of(self.headers)
            except DataError:
                return []


def _largest_parallel(normals: NDArray[np.float64]) -> int:
    """Return how many slices are parallel to each other at most."""
    return int((np.abs(normals @ normals.T) > 1 - _SAME_DIRECTION).sum(axis=1).max())


def list_series(folder: Path) -> list[FoundSeries]:
    """Return the series of images in a folder, or in the folders within it if it holds no DICOM file itself.

    Args:
        folder: The folder.

    Returns:
        The series in the order of their numbers in DICOM, then UIDs.

    Raises:
        DataError: The folder may not be read.
    """
    return _numbered(dicom_files(folder).by_series())


def _numbered(groups: dict[str, list[DicomHeader]]) -> list[FoundSeries]:
    return [
        FoundSeries(number, uid, tuple(group)) for number, (uid, group) in enumerate(groups.items(), start=1)
    ]


def choose_series(folder: Path, series: str | int | None = None) -> list[DicomHeader]:
    """Return the files of one series of a folder, and warn about other files.

    Without a choice, the only series is taken, or the only one that is not a localizer or another object that is no volume.

    Args:
        folder: The folder.
        series: UID of the series, or its number in the list of `list_series`; None for no choice.

    Returns:
        Descriptions of its files.

    Raises:
        DataError: There is no series, no such one, or more than one and no choice; or one of its slices is damaged.
    """
    found = dicom_files(folder)
    entries = _numbered(found.by_series())
    if not entries:
        found.require_intact(())
        raise DataError(
            f"{folder}: found {found.without_images()}, expected one. Give a folder with one series."
        )
    chosen = _chosen(folder, entries, series)
    found.require_intact(chosen.headers)
    own = {one.path for one in chosen.headers}
    images = {one.path for one in found.images}
    others = [file for file in found.files if file not in images and file not in found.damaged]
    if others:
        shown = ", ".join(file.name for file in others[:3])
        warn_once(
            f"{folder}: found {pluralise(len(others), 'other file')} ({shown}) next to the {len(own)} slices; ignored."
        )
    return list(chosen.headers)


def _chosen(folder: Path, entries: Sequence[FoundSeries], series: str | int | None) -> FoundSeries:
    if series is not None:
        wanted = str(series).strip()
        match = [one for one in entries if wanted == one.uid or wanted == str(one.number)]
        if not match:
            raise DataError(
                f"{folder}: series: found none with the number or UID {wanted!r:.80}, expected one of:{_listed(entries)}\nGive one of these."
            )
        return match[0]
    if len(entries) == 1:
        return entries[0]
    volumes = [one for one in entries if not one.what_else]
    if len(volumes) == 1:
        warn_once(
            f"{folder}: found {len(entries)} series, of which only number {volumes[0].number} is a volume; it is used:{_listed(entries)}\n"
            "Choose another one with --series (series in Python and configs)."
        )
        return volumes[0]
    raise DataError(
        f"{folder}: found {len(entries)} series, expected one:{_listed(entries)}\nChoose one by its number or UID with --series (series in Python and "
        "configs), or give a folder with one series."
    )


def _listed(entries: Sequence[FoundSeries]) -> str:
    return "".join(f"\n  {one.described()}" for one in entries)
