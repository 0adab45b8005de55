"""Writing of label maps as DICOM structure sets (RTSTRUCT) with pydicom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.io.dicom.pydicom_files import RTSTRUCT, require_dicom_packages, without_content, write_dataset
from medseg.io.dicom.segmentations.coded_names import Code, coded_name, report_unknown
from medseg.io.dicom.segmentations.planar_contours import mask_contours
from medseg.io.dicom.segmentations.seg_output import (
    LONGEST_NAME,
    occurring_labels,
    series_description,
    series_number,
)
from medseg.io.dicom.source_series import SourceSeries
from medseg.io.itk.sitk import LPS_TO_RAS
from medseg.labels.label_table import Label, Labels
from medseg.labels.segments import Algorithm
from medseg.runtime.machine import installed_version
from medseg.volumes.volume import Volume

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_CONTOUR_DATA = 0x30060050
_COPIED = (
    *(
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
    ),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber", "FrameOfReferenceUID"),
)


def write_rtstruct(
    label_map: Volume, path: Path, source: SourceSeries, names: Labels, algorithm: Algorithm | None
) -> None:
    """Write a label map as a structure set that refers to its source series.

    Every island of a label in a slice is a closed planar contour; holes are cut out as
    `medseg.io.dicom.segmentations.planar_contours` describes.

    Args:
        label_map: Label map on the grid of the series: the third axis counts slices.
        path: The file to create or replace.
        source: The series.
        names: Names and colours of the values.
        algorithm: The model; None for a label map of unknown origin.

    Raises:
        DataError: The series has no UIDs, values are not those of `names`, or the file cannot be written.
        ConfigError: pydicom is not installed.
    """
    require_dicom_packages(path)
    headers = source.datasets()
    present = occurring_labels(label_map, names, path)
    report_unknown([label.name for label in present])
    with without_content(path, "Write .nii.gz instead, and report the error"):
        dataset = _structure_set(headers, algorithm)
        dataset.StructureSetROISequence = [_roi(label, headers[0], algorithm) for label in present]
        dataset.RTROIObservationsSequence = [
            _observation(place, label) for place, label in enumerate(present, start=1)
        ]
        dataset.ROIContourSequence = [_contours(label_map, label, headers) for label in present]
    write_dataset(dataset, path)


def _structure_set(headers: list[Any], algorithm: Algorithm | None) -> Any:
    """Return the dataset without its regions of interest."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, generate_uid

    source, now = headers[0], datetime.now()
    dataset, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTSTRUCT
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    # The coordinates of a contour may take more bytes than an explicit length of text can state.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in _COPIED:
        setattr(dataset, name, source.get(name))
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber = series_number(source), 1
    dataset.SeriesDescription = series_description(algorithm)
    dataset.SeriesDate = dataset.InstanceCreationDate = dataset.StructureSetDate = f"{now:%Y%m%d}"
    dataset.SeriesTime = dataset.InstanceCreationTime = dataset.StructureSetTime = f"{now:%H%M%S}"
    dataset.OperatorsName = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = "medseg"
    dataset.SoftwareVersions = installed_version()
    dataset.StructureSetLabel, dataset.StructureSetName = "LABELS", series_description(algorithm)
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.PositionReferenceIndicator = ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(headers)]
    return dataset


def _frame_of_reference(headers: list[Any]) -> Any:
    """Return the item that refers to study, series and all slices."""
    from pydicom.dataset import Dataset

    source = headers[0]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = [_image(header) for header in headers]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(header: Any) -> Any:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if header.get("ReferencedFrameNumber") is not None:
        image.ReferencedFrameNumber = header.ReferencedFrameNumber
    return image


def _roi(label: Label, source: Any, algorithm: Algorithm | None) -> Any:
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ROIName = label.value, label.name[:LONGEST_NAME]
    roi.ReferencedFrameOfReferenceUID = source.FrameOfReferenceUID
    roi.ROIGenerationAlgorithm = "AUTOMATIC" if algorithm else ""
    if algorithm:
        roi.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"[:LONGEST_NAME]
    return roi


def _observation(number: int, label: Label) -> Any:
    from pydicom.dataset import Dataset

    coded = coded_name(label.name)
    observation = Dataset()
    observation.ObservationNumber, observation.ReferencedROINumber = number, label.value
    observation.RTROIInterpretedType = (
        "ORGAN" if coded.known and coded.category.meaning.startswith("Anat") else ""
    )
    observation.ROIInterpreter = ""
    kind = _code(coded.type)
    if coded.side and not coded.region:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(coded.side)]
    observation.RTROIIdentificationCodeSequence = [kind]
    return observation


def _code(code: Code) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _contours(label_map: Volume, label: Label, headers: list[Any]) -> Any:
    """Return the item with all contours of a label."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROIDisplayColor = list(label.colour)
    item.ContourSequence = []
    for k, points in _points(label_map, label.value):
        contour = Dataset()
        contour.ContourImageSequence = [_image(headers[k])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour[_CONTOUR_DATA] = _decimals(points)
        item.ContourSequence.append(contour)
    item.ReferencedROINumber = label.value
    return item


def _decimals(points: NDArray[np.float64]) -> Any:
    """Return coordinates as an encoded element; pydicom would check each number, which takes most of the time."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    text = "\\".join([f"{value:.10g}" for value in points.ravel().tolist()])
    content = (text + " " * (len(text) % 2)).encode()
    return RawDataElement(Tag(_CONTOUR_DATA), "DS", len(content), content, 0, True, True)


def _points(label_map: Volume, value: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the slice and the points `(N, 3)` (LPS, mm) of each contour of a label."""
    affine = LPS_TO_RAS @ label_map.grid.affine
    mask = label_map.data[0] == value
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for contour in mask_contours(mask[..., k]):
            indices = np.column_stack([contour, np.full(len(contour), k)])
            yield k, indices @ affine[:3, :3].T + affine[:3, 3]
