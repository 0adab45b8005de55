"""All of pydicom's own test files on this machine, each read or refused with a message; voxels against pydicom."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_files

from medseg.errors import MedsegError, collected_warnings
from medseg.io.dicom.dicom_header import has_mark
from medseg.io.files import read, read_grid
from medseg.volumes.volume import Volume

PACKAGE = Path(pydicom.__file__).parent


def attempt(path: Path) -> Volume | None:
    """Read an image and its grid; None if it is refused, which both must do alike."""
    with collected_warnings():
        try:
            volume = read(path)
        except MedsegError:
            return None
        assert read_grid(path) == volume.grid
    return volume


def expected_voxels(path: Path) -> NDArray[np.float64] | None:
    """Voxels `(C, X, Y, Z)` by pydicom; None if it lacks a decoder, or for values that are not intensities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        plain = dataset.PhotometricInterpretation in ("MONOCHROME2", "RGB")
        lossy = dataset.file_meta.TransferSyntaxUID.name.startswith("JPEG")
        if not plain or lossy:
            return None
        try:
            pixels = dataset.pixel_array.astype(np.float64)
        except (ValueError, RuntimeError):  # invalid attributes that pydicom does not forgive, or no decoder
            return None
    frames = pixels if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels[None]
    frames = frames if dataset.SamplesPerPixel > 1 else frames[..., None]
    slope = float(dataset.get("RescaleSlope") or dataset.get("DoseGridScaling") or 1)
    return np.transpose(frames * slope + float(dataset.get("RescaleIntercept") or 0), (3, 2, 1, 0))


@pytest.mark.slow
def test_each_file_is_read_or_refused(tmp_path: Path) -> None:
    answers: Counter[str] = Counter()
    for number, path in enumerate(sorted(map(Path, get_testdata_files()))):
        if PACKAGE not in path.parents:  # downloaded on this machine
            continue
        if "dicomdirtests" in path.parts:
            attempt(path)
        if path.is_dir() or path.suffix in (".json", ".txt", ".dump"):
            answers["others"] += 1
            continue
        copy = tmp_path / str(number) / path.name  # alone, because one file of a series is refused
        copy.parent.mkdir()
        shutil.copy(path, copy)
        found = attempt(copy)
        answers["read" if found else "refused"] += 1
        if found is None or not has_mark(copy):
            continue
        voxels = expected_voxels(copy)
        if voxels is not None:
            answers["compared"] += 1
            assert found.data.shape == voxels.shape, path
            np.testing.assert_allclose(found.data, voxels, rtol=1e-6, err_msg=str(path))
    assert answers["read"] >= 65
    assert answers["compared"] >= 48


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_meta.dcm", "unknown"),
        ("MR_truncated.dcm", "damaged or cut off"),
        ("examples_ybr_color.dcm", "30 frames without a position for each frame"),
        ("rtplan.dcm", "without pixels"),
        ("DICOMDIR-empty.dcm", "found no DICOM series|found .* series|slices that cannot be read"),
    ],
)
def test_refusals_say_why(name: str, message: str) -> None:
    path = next(one for one in map(Path, get_testdata_files()) if one.name == name)
    with collected_warnings(), pytest.raises(MedsegError, match=message):
        read(path)
