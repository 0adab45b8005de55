"""Measure how long reading and writing a large CT takes, as NIfTI with several gzip libraries and as DICOM.

    python benchmarks/file_formats.py --series ct_series/            # 600 slices, a few minutes
    python benchmarks/file_formats.py --series ct_series/ --publish

The slices of a DICOM series are repeated until there are 600. They are written and read as ``.nii.gz`` by medseg (ISA-L) and by Python's
``gzip`` (zlib), and read as a folder of single-frame files and as an enhanced multi-frame file. All voxels are compared with the
source. Processor seconds of this process are shown, which other programs disturb less than seconds. The table is written to
docs/measurements.md with ``--publish``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from measurements_page import machine, markdown, show_section
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

import medseg
from medseg.io import read_grid

SLICES = 600
GEOMETRY = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept")


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of an action, and its result."""
    began = time.process_time()
    result = action()
    return time.process_time() - began, result


def repeated(series: Path) -> tuple[medseg.Volume, list[Dataset]]:
    """Return a CT of `SLICES` slices, and the slices as datasets with positions of their own."""
    one = medseg.read(series)
    copies = -(-SLICES // one.grid.shape[2])
    data = np.ascontiguousarray(np.tile(one.data, (1, 1, 1, copies))[..., :SLICES])
    volume = medseg.Volume(data, medseg.Grid(data.shape[1:], one.grid.affine))
    files = [pydicom.dcmread(path) for path in series.iterdir()]
    normal = np.cross(*np.array(files[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    files.sort(key=lambda file: float(np.array(file.ImagePositionPatient, dtype=float) @ normal))
    first, last = (np.array(files[k].ImagePositionPatient, dtype=float) for k in (0, -1))
    step, uid, slices = (last - first) / (len(files) - 1), generate_uid(), []
    for number in range(SLICES):
        copy = pydicom.dcmread(files[number % len(files)].filename)
        copy.ImagePositionPatient = [f"{value:.6f}" for value in first + number * step]
        copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        copy.SeriesInstanceUID, copy.InstanceNumber = uid, number + 1
        slices.append(copy)
    return volume, slices


def enhanced(slices: list[Dataset]) -> Dataset:
    """Return the slices as one multi-frame dataset."""
    whole = pydicom.dcmread(slices[0].filename)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for name in (*GEOMETRY, "ImagePositionPatient"):
        if name in whole:
            delattr(whole, name)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = slices[0].PixelSpacing
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    whole.SharedFunctionalGroupsSequence, whole.NumberOfFrames = [shared], len(slices)
    whole.PerFrameFunctionalGroupsSequence = []
    for one in slices:
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = one.RescaleSlope, one.RescaleIntercept
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        whole.PerFrameFunctionalGroupsSequence.append(group)
    whole.PixelData = b"".join(one.PixelData for one in slices)
    return whole


def nifti_rows(volume: medseg.Volume, folder: Path) -> list[tuple[str, ...]]:
    """Return a row per way to write and read ``.nii.gz``."""
    rows = []
    path = folder / "ct.nii.gz"
    written, _ = timed(lambda: medseg.write(volume, path))
    read, found = timed(lambda: medseg.read(path))
    require_same(found.data, volume)
    rows.append(row("`.nii.gz`, medseg (ISA-L)", path, written, read))
    plain = nib.Nifti1Image(volume.data[0], volume.grid.affine).to_bytes()
    for level in (1, 6):
        path = folder / f"level_{level}.nii.gz"
        written, packed = timed(partial(gzip.compress, plain, level))
        path.write_bytes(packed)
        read, unpacked = timed(partial(unpacked_bytes, path))
        stored = nib.Nifti1Image.from_stream(io.BytesIO(unpacked))
        require_same(np.asarray(stored.dataobj)[None], volume)
        rows.append(row(f"`.nii.gz`, gzip of Python, level {level}", path, written, read))
        path.unlink()
    return rows


def unpacked_bytes(path: Path) -> bytes:
    """Return the decompressed content of a file."""
    return gzip.decompress(path.read_bytes())


def dicom_rows(volume: medseg.Volume, slices: list[Dataset], folder: Path) -> list[tuple[str, ...]]:
    """Return a row per kind of DICOM file."""
    rows = []
    single = folder / "single"
    single.mkdir()
    for number, one in enumerate(slices):
        one.save_as(single / f"{number:04d}.dcm", enforce_file_format=True)
    read, found = timed(lambda: medseg.read(single))
    require_same(found.data, volume)
    rows.append(row(f"DICOM, {SLICES} files", single, None, read))
    grid, _ = timed(lambda: read_grid(single))
    rows.append(row(f"DICOM, {SLICES} files, the grid only", single, None, grid))
    whole = enhanced(slices)
    path = folder / "enhanced.dcm"
    whole.save_as(path, enforce_file_format=True)
    read, found = timed(lambda: medseg.read(path))
    require_same(found.data, volume)
    rows.append(row("DICOM, one enhanced file", path, None, read))
    return rows


def require_same(found: NDArray[Any], volume: medseg.Volume) -> None:
    """End the benchmark if voxels differ."""
    if not np.array_equal(found, volume.data):
        raise SystemExit("found other voxels than were written")


def row(name: str, path: Path, written: float | None, read: float) -> tuple[str, ...]:
    """Return the cells of a row."""
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files) / 1e6
    return (name, f"{size:.0f}", "" if written is None else f"{written:.1f}", f"{read:.1f}")


def main() -> None:
    """Measure all formats and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--series", type=Path, required=True, help="folder of an uncompressed CT series")
    parser.add_argument("--publish", action="store_true", help="write the table to docs/measurements.md")
    options = parser.parse_args()
    volume, slices = repeated(options.series)
    with tempfile.TemporaryDirectory() as name:
        rows = [*nifti_rows(volume, Path(name)), *dicom_rows(volume, slices, Path(name))]
    size = f"{'x'.join(map(str, volume.grid.shape))} {volume.data.dtype}, {volume.data.nbytes / 1e6:.0f} MB"
    table = markdown(("format", "MB", "write, CPU s", "read, CPU s"), rows)
    text = f"{machine()}; a CT of {size}.\n\n{table}"
    show_section("file-formats", text, publish=options.publish)


if __name__ == "__main__":
    main()
