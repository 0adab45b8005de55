"""The DICOM series that an image was read from, to which segmentations of the image refer."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import read_header
from medseg.io.dicom.multi_frame import frames_of
from medseg.io.dicom.pydicom_files import read_dataset, without_content
from medseg.volumes.volume import Volume

HEADER_KEY = "dicom_series"
"""Key of the source series in `Volume.header`."""
_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_TEXTS = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName")
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
_TAKEN_OVER = (
    *(*_UIDS, *_TEXTS, *_FORMS),
    *(
        "SpecificCharacterSet",
        "Modality",
        "SeriesNumber",
        "Rows",
        "Columns",
        "PixelSpacing",
        "SliceThickness",
    ),
    *(
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "LossyImageCompression",
        "LossyImageCompressionRatio",
    ),
    "LossyImageCompressionMethod",
)


@dataclass(frozen=True)
class SourceSeries:
    """The files of a series in the order of its slices; nothing of their content is kept in memory.

    Attributes:
        files: One file per slice, along the third axis of the volume.
        frames: Index of the frame of each slice in its file from 0 on, None for a file of one slice; empty if all are.

    Examples:
        >>> SourceSeries((Path("1.dcm"), Path("2.dcm")))
        SourceSeries(2 slices)
    """

    files: tuple[Path, ...]
    frames: tuple[int | None, ...] = ()

    def datasets(self) -> list[Any]:
        """Return the headers of all slices, with the attributes that a segmentation must take over, and no others.

        Attributes of patient and study that are missing become empty, as do dates and times that are none.

        Returns:
            One pydicom dataset per slice, in the order of the slices.

        Raises:
            DataError: A file is missing or damaged, or the series was stripped of its UIDs.
        """
        if self.is_multi_frame:
            headers = self._frame_headers()
        else:
            headers = [read_dataset(file, pixels=False, only=_TAKEN_OVER) for file in self.files]
        folder = self.files[0].parent
        with without_content(folder, "Export the series again"):
            missing = [name for name in _UIDS if not all(header.get(name) for header in headers)]
            uids = Counter(str(header.get("SOPInstanceUID")) for header in headers)
            for header in headers:
                _complete(header)
        if missing:
            raise DataError(
                f"{folder}: {', '.join(missing)}: found none, expected the UIDs of the source series, to which a DICOM segmentation refers. The "
                "series was stripped of them; use the original series, or write .nii.gz instead."
            )
        if len(uids) < len(headers) and not self.is_multi_frame:
            raise DataError(
                f"{folder}: SOPInstanceUID: found {len(uids)} different ones in {len(headers)} slices, expected one per slice. Use the original "
                "series, or write .nii.gz instead."
            )
        return headers

    @property
    def is_multi_frame(self) -> bool:
        """Whether the slices are frames of multi-frame files."""
        return any(frame is not None for frame in self.frames)

    def _frame_headers(self) -> list[Any]:
        """Return a header for each frame, with the geometry of the frame and its number as ReferencedFrameNumber."""
        from pydicom.dataset import Dataset

        file, *others = dict.fromkeys(self.files)
        if others:
            raise DataError(
                f"{file.parent}: found {len(others) + 1} multi-frame files, expected one as the source of a DICOM segmentation. Write .nii.gz or .seg.nrrd instead."
            )
        whole = read_dataset(file, pixels=False, only=_TAKEN_OVER)
        slices = frames_of(read_header(file))
        headers = []
        for frame in self.frames:
            one, header = slices[frame or 0], Dataset()
            header.update(whole)
            header.ImageOrientationPatient = [f"{value:.12g}" for value in one.orientation.ravel()]
            header.ImagePositionPatient = [f"{value:.12g}" for value in one.position]
            header.PixelSpacing = list(one.spacing)
            header.ReferencedFrameNumber = one.frame + 1 if one.frame is not None else None
            headers.append(header)
        return headers

    def __repr__(self) -> str:
        return f"SourceSeries({len(self.files)} slices)"


def _complete(header: Any) -> None:
    """Add attributes of patient and study that a segmentation must have, if only empty."""
    for name in _TEXTS:
        if header.get(name) is None:
            setattr(header, name, "")
    for name, form in _FORMS.items():
        if not re.fullmatch(form, str(header.get(name) or "").strip()):
            setattr(header, name, "")


def source_series_of(volume: Volume) -> SourceSeries | None:
    """Return the series from which a volume was read, or on whose grid it was predicted.

    Args:
        volume: An image or label map.

    Returns:
        The series; None for other sources.
    """
    found = volume.header.get(HEADER_KEY)
    return found if isinstance(found, SourceSeries) else None
