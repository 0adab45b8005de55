"""Writing of label maps as DICOM segmentations (SEG) with highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import DataError
from medseg.io.dicom.pydicom_files import require_dicom_packages, without_content, write_dataset
from medseg.io.dicom.segmentations.coded_names import Code, coded_name, report_unknown
from medseg.io.dicom.source_series import SourceSeries
from medseg.labels.label_table import Label, Labels
from medseg.labels.segments import Algorithm
from medseg.runtime.machine import installed_version
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LONGEST_NAME = 64
VALUE_TEXT = "Label value {}"
"""Description of a segment, by which the value in the label map is found again; segment numbers have no gaps."""
_SERIES_OFFSET, _LARGEST_NUMBER = 1000, 2**31 - 2
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
_LARGEST_VALUE = 65535


def write_seg(
    label_map: Volume,
    path: Path,
    source: SourceSeries,
    names: Labels,
    algorithm: Algorithm | None,
    *,
    labelmap: bool,
) -> None:
    """Write a label map as a DICOM segmentation that refers to its source series.

    Args:
        label_map: Label map on the grid of the series: the third axis counts slices.
        path: The file to create or replace.
        source: The series.
        names: Names and colours of the values.
        algorithm: The model; None for a label map of unknown origin.
        labelmap: Whether to write type LABELMAP, one frame of values per slice, instead of BINARY, one frame of bits per
            segment and slice.

    Raises:
        DataError: The series has no UIDs, values are not those of `names`, or the file cannot be written.
        ConfigError: highdicom is not installed.
    """
    require_dicom_packages(path)
    from highdicom.seg import Segmentation
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    headers = source.datasets()
    present = occurring_labels(label_map, names, path)
    frames = np.moveaxis(label_map.data[0], (0, 1, 2), (2, 1, 0)).astype(np.uint16)
    numbers = {
        label.value: label.value if labelmap else place for place, label in enumerate(present, start=1)
    }
    if not labelmap:
        lookup = np.zeros(max(numbers) + 1, np.uint16)
        lookup[list(numbers)] = list(numbers.values())
        frames = lookup[frames]
    report_unknown([label.name for label in present])
    with without_content(path, "Write .nii.gz instead, and report the error"):
        _state_distances(headers, label_map.grid)
        dataset = Segmentation(
            source_images=[_multi_frame_source(headers)] if source.is_multi_frame else headers,
            pixel_array=frames[_frame_order(headers, path)] if source.is_multi_frame else frames,
            segmentation_type="LABELMAP" if labelmap else "BINARY",
            segment_descriptions=[_description(label, numbers[label.value], algorithm) for label in present],
            series_instance_uid=generate_uid(),
            series_number=series_number(headers[0]),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name="medseg",
            software_versions=installed_version(),
            device_serial_number="none",
            content_description="Label map",
            content_label="LABELS",
            series_description=series_description(algorithm),
            omit_empty_frames=not labelmap,
            transfer_syntax_uid=RLELossless if labelmap else ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
        )
    write_dataset(dataset, path)


def _frame_order(headers: Sequence[Any], path: Path) -> list[int]:
    """Return the index of the slice of each frame of a multi-frame source."""
    numbers = [int(header.ReferencedFrameNumber) for header in headers]
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise DataError(
            f"{path}: found a multi-frame source with frames that repeat others, expected each slice once. Write .nii.gz instead."
        )
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def _multi_frame_source(headers: Sequence[Any]) -> Any:
    """Return a multi-frame dataset of frame headers, in the order of the frames, with functional groups for their geometry."""
    from pydicom.dataset import Dataset

    ordered = sorted(headers, key=lambda header: int(header.ReferencedFrameNumber))
    whole, shared, measures, orientation = Dataset(), Dataset(), Dataset(), Dataset()
    whole.update(ordered[0])
    del whole.ReferencedFrameNumber
    whole.NumberOfFrames = len(ordered)
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    measures.SpacingBetweenSlices = whole.SpacingBetweenSlices
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = []
    for header in ordered:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = header.ImagePositionPatient
        group.PlanePositionSequence = [position]
        whole.PerFrameFunctionalGroupsSequence.append(group)
    return whole


def _state_distances(headers: Sequence[Any], grid: Grid) -> None:
    """State thickness and distance of slices where a source does not, and one orientation where it was rounded."""
    axes = grid.affine[:3, :3] / grid.spacing
    distance = abs(float(np.cross(axes[:, 0], axes[:, 1]) @ grid.affine[:3, 2]))
    for header in headers:
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        header.SpacingBetweenSlices = distance
        if not header.get("SliceThickness"):
            header.SliceThickness = distance


def occurring_labels(label_map: Volume, names: Labels, path: Path) -> list[Label]:
    """Return the labels that occur in a label map; for an empty one, the first label of the table.

    Args:
        label_map: The label map.
        names: Names of the values; a value of a region has the name of the region.
        path: The file that is written, for messages.

    Returns:
        The labels in ascending order of values.

    Raises:
        DataError: A value has no name, or is too large for DICOM.
    """
    labels = {label.value: label for label in names.foreground}
    labels |= {one.output_value: Label(one.name, one.output_value, one.colour) for one in names.regions}
    values = [int(value) for value in np.unique(label_map.data) if value != 0]
    if names.ignore in values:
        raise DataError(
            f"{path}: found the value {names.ignore} of voxels that were not annotated, expected labels, because a DICOM segmentation cannot "
            "mark such voxels. Write .nii.gz instead."
        )
    unnamed = [value for value in values if value not in labels]
    if unnamed or (values and not 0 < values[0] <= values[-1] <= _LARGEST_VALUE):
        raise DataError(
            f"{path}: found the values {', '.join(map(str, (unnamed or values)[:5]))}, expected values from 1 to {_LARGEST_VALUE} that have a name. Give "
            "their names."
        )
    if not values and not labels:
        raise DataError(f"{path}: found an empty label map without names, expected a label. Give the names.")
    return [labels[value] for value in values] or [labels[min(labels)]]


def series_number(header: Any) -> int:
    """Return the number of the series of a segmentation, which follows from that of its source."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return _SERIES_OFFSET + number if 0 <= number <= _LARGEST_NUMBER - _SERIES_OFFSET else _SERIES_OFFSET


def series_description(algorithm: Algorithm | None) -> str:
    """Return the description of the series of a segmentation."""
    return f"Segmentation by {algorithm.name}"[:LONGEST_NAME] if algorithm else "Segmentation"


def _description(label: Label, number: int, algorithm: Algorithm | None) -> Any:
    """Return the item of the segment sequence."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    coded = coded_name(label.name)
    made_by = algorithm or Algorithm("medseg", installed_version())
    item = SegmentDescription(
        segment_number=number,
        segment_label=label.name[:LONGEST_NAME],
        segmented_property_category=CodedConcept(*coded.category),
        segmented_property_type=CodedConcept(*coded.type),
        algorithm_type="AUTOMATIC" if algorithm else "SEMIAUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            made_by.name[:LONGEST_NAME], CodedConcept(*_FAMILY), made_by.version[:LONGEST_NAME]
        ),
        anatomic_regions=[CodedConcept(*coded.region)] if coded.region else None,
        display_color=CIELabColor.from_rgb(*label.colour),
    )
    item.SegmentDescription = VALUE_TEXT.format(label.value)
    if coded.side:
        if coded.region:  # the side is that of the structure
            item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [CodedConcept(*coded.side)]
        else:
            item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                CodedConcept(*coded.side)
            ]
    return item
