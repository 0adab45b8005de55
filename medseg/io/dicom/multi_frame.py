"""The frames of multi-frame DICOM files in space.

Enhanced CT, MR, PET and other modern objects state the position, orientation, spacing and scale of frames in functional groups, each
for one frame or for all of them. Radiation doses state the offsets of frames along their normal, reconstructed nuclear images their
distance. Frames over time, as of ultrasound, have no positions and are no volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.io.dicom.dicom_header import DicomHeader
from medseg.io.dicom.placed_slices import Slice, is_multi_frame, require_still_image, slice_of
from medseg.io.dicom.pydicom_files import read_dataset, without_content
from medseg.runtime.formatting import pluralise

_EXPORT = "Export the file again"
_Numbers = NDArray[np.float64]


def slices_of(headers: Sequence[DicomHeader]) -> list[Slice]:
    """Return the slices of the files of a series.

    Args:
        headers: Descriptions of the files.

    Returns:
        One slice per file, or per frame of a multi-frame file, in the order of the files.

    Raises:
        DataError: A file is a mosaic or a film, or states no position.
        ConfigError: A multi-frame file needs pydicom, which is not installed.
    """
    return [
        one
        for header in headers
        for one in (frames_of(header) if is_multi_frame(header) else [slice_of(header)])
    ]


def frames_of(header: DicomHeader) -> list[Slice]:
    """Return the frames of a multi-frame file.

    Args:
        header: Description of the file.

    Returns:
        One slice per frame, in the order of the file.

    Raises:
        DataError: Frames have no position, or their number is not that of the positions.
        ConfigError: pydicom is not installed.
    """
    require_still_image(header)
    dataset = read_dataset(header.path, pixels=False)
    with without_content(header.path, _EXPORT):
        count = int(dataset.get("NumberOfFrames") or 1)
        if groups := dataset.get("PerFrameFunctionalGroupsSequence"):
            found = [_in_groups(dataset, group, header, frame) for frame, group in enumerate(groups)]
        elif dataset.get("GridFrameOffsetVector") is not None:
            offsets = np.atleast_1d(np.array(dataset.GridFrameOffsetVector, dtype=np.float64))
            found = _along_normal(dataset, header, offsets - offsets[0])
        elif "TOMO" in (dataset.get("ImageType") or ()) and dataset.get("DetectorInformationSequence"):
            found = _along_normal(
                dataset,
                header,
                np.arange(count, dtype=np.float64) * float(dataset.get("SpacingBetweenSlices") or 0),
            )
        else:
            raise DataError(
                f"{header.path}: found a multi-frame file of {pluralise(count, 'frame')} without a position for each frame, such as a film, expected the slices of a "
                "volume. Export the series as one file per slice, or as an enhanced image with functional groups."
            )
    if len(found) != count:
        raise DataError(
            f"{header.path}: found positions of {pluralise(len(found), 'frame')}, expected {count} as NumberOfFrames states. {_EXPORT}."
        )
    return found


def _in_groups(dataset: Any, group: Any, header: DicomHeader, frame: int) -> Slice:
    """Return a frame whose geometry is in its functional groups, or in those that all frames share."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]

    def value(sequence: str, name: str, *, required: bool = True) -> Any:
        for one in (group, shared):
            items = one.get(sequence) if one is not None else None
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        if required:
            raise DataError(
                f"{header.path}: {sequence} of frame {frame + 1}: found no {name}, expected the geometry of each frame. {_EXPORT} with its geometry."
            )
        return None

    transformation = "PixelValueTransformationSequence"
    slope = value(transformation, "RescaleSlope", required=False)
    intercept = value(transformation, "RescaleIntercept", required=False)
    distance = value("PixelMeasuresSequence", "SpacingBetweenSlices", required=False)
    spacing = _pair(value("PixelMeasuresSequence", "PixelSpacing"))
    return Slice(
        header,
        _numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), (2, 3)),
        _numbers(value("PlanePositionSequence", "ImagePositionPatient"), (3,)),
        spacing,
        float(distance or value("PixelMeasuresSequence", "SliceThickness", required=False) or 0),
        _rescale(dataset) if slope is None else (float(slope), float(intercept or 0)),
        frame,
    )


def _along_normal(dataset: Any, header: DicomHeader, offsets: NDArray[np.floating[Any]]) -> list[Slice]:
    """Return frames at offsets (mm) from the position of the first one along their normal."""
    detector = (dataset.get("DetectorInformationSequence") or [dataset])[0]
    place = {name: detector.get(name) or dataset.get(name) for name in _PLACE}
    missing = [name for name, value in place.items() if not value]
    if dataset.get("PixelSpacing") is None:
        missing.append("PixelSpacing")
    if len(offsets) > 1 and not offsets.any():
        missing.append("the distance of frames")
    if missing:
        raise DataError(
            f"{header.path}: {', '.join(missing)}: missing, expected the geometry of the frames. {_EXPORT} with its geometry."
        )
    orientation = _numbers(place["ImageOrientationPatient"], (2, 3))
    first = _numbers(place["ImagePositionPatient"], (3,))
    normal = np.cross(*orientation)
    distance = float(abs(offsets[1])) if len(offsets) > 1 else float(dataset.get("SliceThickness") or 0)
    return [
        Slice(
            header,
            orientation,
            first + offset * normal,
            _pair(dataset.PixelSpacing),
            distance,
            _rescale(dataset),
            k,
        )
        for k, offset in enumerate(offsets)
    ]


_PLACE = ("ImageOrientationPatient", "ImagePositionPatient")


def _rescale(dataset: Any) -> tuple[float, float]:
    """Return slope and intercept that all frames share; the unit of a dose is Gy or a fraction of the prescribed one."""
    slope = dataset.get("DoseGridScaling") or dataset.get("RescaleSlope") or 1
    return float(slope), float(dataset.get("RescaleIntercept") or 0)


def _numbers(values: Any, shape: tuple[int, ...]) -> _Numbers:
    return np.array([float(value) for value in values], dtype=np.float64).reshape(shape)


def _pair(values: Any) -> tuple[float, float]:
    rows, columns = values
    return float(rows), float(columns)
