"""A small CT series, written slice by slice with pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


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
