"""A small CT series, written slice by slice with pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg.volumes.volume import Volume


class Series:
    """A small CT series; fields of `slices` may be changed before `save`."""

    def __init__(self, folder: Path, count: int = 5, *, tilt: float = 0.0, gap: float = 2.5) -> None:
        self.folder = folder
        self.array = np.random.default_rng(0).integers(-1000, 1000, (count, 6, 8)).astype(np.int16)
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        self.slices = []
        for index in range(count):
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
            one.Modality, one.InstanceNumber, one.PatientID = "CT", 77 - index, "x"
            one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            one.ImagePositionPatient = [-20.5, 10 + tilt * index, 100 + gap * index]
            one.PixelSpacing = [0.7, 0.9]  # between rows, between columns
            one.Rows, one.Columns = self.array.shape[1:]
            one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
            one.BitsAllocated = one.BitsStored = 16
            one.HighBit, one.PixelRepresentation = 15, 1
            one.RescaleSlope, one.RescaleIntercept = 1, -24
            one.PixelData = self.array[index].tobytes()
            self.slices.append(one)

    def save(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, one in enumerate(self.slices):
            one.save_as(self.folder / f"{(index * 7) % 100:02d}.dcm", enforce_file_format=True)
        return self.folder


def save_series(folder: Path, volume: Volume, **attributes: object) -> Path:
    """Write a volume as a complete CT series with one file per slice along its third axis, and return the folder.

    Args:
        folder: Folder to create.
        volume: Image of one channel of whole numbers, on any grid.
        attributes: DICOM attributes of every slice, such as the name of the patient; None leaves one out.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.grid.affine
    directions = affine[:3, :3] / volume.spacing
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(volume.grid.shape[2]):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = (
            "Test^Case",
            "7",
            "19700101",
            "O",
        )
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20200101", "120000", "1", "A1"
        one.PatientPosition, one.Laterality = "HFS", ""
        one.ReferringPhysicianName, one.Manufacturer, one.Modality = "", "test", "CT"
        one.SeriesNumber, one.InstanceNumber, one.AcquisitionNumber = 3, index + 1, 1
        one.ImageType, one.KVP, one.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", ""
        one.ImageOrientationPatient = [f"{value:.12g}" for value in directions[:, :2].T.ravel()]
        one.ImagePositionPatient = [f"{value:.10g}" for value in affine[:3, 3] + index * affine[:3, 2]]
        one.PixelSpacing = [volume.spacing[1], volume.spacing[0]]
        one.SliceThickness = volume.spacing[2]
        pixels = volume.data[0, :, :, index].T.astype(np.int16)
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
        one.PixelData = np.ascontiguousarray(pixels).tobytes()
        with pydicom.config.disable_value_validation():  # tests also write values that break the standard
            for name, value in attributes.items():
                if name in one:
                    delattr(one, name)
                if value is not None:
                    setattr(one, name, value)
            one.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)
    return folder


def enhanced(series: Series, order: Sequence[int] | None = None) -> Dataset:
    """Return the slices of a series as the frames of one enhanced multi-frame CT.

    Args:
        series: The series; fields of its slices may have been changed.
        order: The slice of each frame; None for the order of the slices.

    Returns:
        The dataset, whose pixels are not compressed.
    """
    slices = series.slices if order is None else [series.slices[i] for i in order]
    first = slices[0]
    whole = Dataset()
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name in _SHARED:
        setattr(whole, name, first.get(name))
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(slices)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(first, "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_item(first, "ImageOrientationPatient")]
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = []
    for one in slices:
        group = Dataset()
        group.PlanePositionSequence = [_item(one, "ImagePositionPatient")]
        group.PixelValueTransformationSequence = [_item(one, "RescaleSlope", "RescaleIntercept")]
        whole.PerFrameFunctionalGroupsSequence.append(group)
    whole.PixelData = b"".join(one.PixelData for one in slices)
    return whole


_SHARED = (
    *(
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "PatientID",
        "Rows",
        "Columns",
    ),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    "PixelRepresentation",
)


def _item(source: Dataset, *names: str) -> Dataset:
    item = Dataset()
    for name in names:
        if name in source:
            setattr(item, name, source.get(name))
    return item
