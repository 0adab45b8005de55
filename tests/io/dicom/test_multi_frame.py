"""Multi-frame DICOM: enhanced images, doses and nuclear images, raw and compressed, against the same slices in single files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import UID, JPEGLSLossless, RLELossless

from medseg.errors import ConfigError, DataError, DataWarning
from medseg.io.files import read, read_grid
from medseg.volumes.volume import Volume
from tests.helpers.dicom_series import Series, enhanced


def saved(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def assert_same(found: Volume, expected: Volume) -> None:
    assert np.array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-9)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_frames_are_read_as_the_slices_of_single_files(
    tmp_path: Path, syntax: UID | None, order: list[int] | None
) -> None:
    series = Series(tmp_path / "single", tilt=0.4)
    whole = enhanced(series, order)
    if syntax is not None:
        whole.compress(syntax)
    path = saved(whole, tmp_path / "enhanced" / "IM1.dcm")
    expected = read(series.save())
    for found in (read(path), read(path.parent)):
        assert_same(found, expected)
        assert found.data.dtype == expected.data.dtype
    assert read_grid(path) == expected.grid


@pytest.mark.parametrize("syntax", [None, RLELossless])
@pytest.mark.parametrize("slopes", [(1, 0.5, 0.25, 2, 3.7), (2, 2, 2, 2, 2), (0.5,) * 5])
def test_each_frame_has_its_own_slope(tmp_path: Path, syntax: UID | None, slopes: tuple[float, ...]) -> None:
    series = Series(tmp_path)
    for one, slope in zip(series.slices, slopes, strict=True):
        one.RescaleSlope, one.Modality = slope, "PT"
    whole = enhanced(series)
    if syntax is not None:
        whole.compress(syntax)
    found = read(saved(whole, tmp_path / "pet.dcm"))
    expected = series.array * np.array(slopes)[:, None, None] - 24
    np.testing.assert_allclose(found.data[0], expected.T, rtol=1e-6)
    assert found.data.dtype.kind == ("f" if len(set(slopes)) > 1 or slopes[0] < 1 else "i")


@pytest.mark.parametrize(
    ("modality", "inverted"), [("CT", False), ("PT", False), ("MR", False), ("XA", True)]
)
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_inverted_marks_of_frames(tmp_path: Path, modality: str, inverted: bool, syntax: UID | None) -> None:
    series = Series(tmp_path)
    whole = enhanced(series)
    whole.PhotometricInterpretation, whole.Modality = "MONOCHROME1", modality
    if syntax is not None:
        whole.compress(syntax)
    stored = -1 - series.array if inverted else series.array
    assert np.array_equal(read(saved(whole, tmp_path / "a.dcm")).data[0], stored.T - 24)


def test_a_frame_that_repeats_another_one_is_left_out(tmp_path: Path) -> None:
    series = Series(tmp_path)
    path = saved(enhanced(series, [0, 1, 2, 3, 4, 2]), tmp_path / "a.dcm")
    with pytest.warns(DataWarning, match=r"found 1 frame \(frame 6 of a\.dcm\) that repeat another slice"):
        found = read(path)
    assert np.array_equal(found.data[0], series.array.T - 24)


def test_frames_with_uneven_gaps_are_named(tmp_path: Path) -> None:
    path = saved(enhanced(Series(tmp_path), [0, 1, 3, 4]), tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"5\.000 mm between frame 2 of a\.dcm and frame 3 of a\.dcm"):
        read(path)


@pytest.mark.parametrize("change", ["positions", "orientation", "spacing", "count"])
def test_incomplete_functional_groups_are_named(tmp_path: Path, change: str) -> None:
    whole = enhanced(Series(tmp_path))
    if change == "positions":
        del whole.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
        message = r"PlanePositionSequence of frame 3: found no ImagePositionPatient"
    elif change == "orientation":
        del whole.SharedFunctionalGroupsSequence
        message = r"of frame 1: found no"
    elif change == "spacing":
        del whole.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        message = r"PixelMeasuresSequence of frame 1: found no PixelSpacing"
    else:
        whole.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[:3]
        message = r"found positions of 3 frames, expected 5 as NumberOfFrames states"
    with pytest.raises(DataError, match=rf"a\.dcm: .*{message}"):
        read(saved(whole, tmp_path / "a.dcm"))


def test_two_volumes_in_one_file_are_refused(tmp_path: Path) -> None:
    series = Series(tmp_path)
    whole = enhanced(series, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    whole.PixelData = whole.PixelData[:480] + bytes(480)
    with pytest.raises(DataError, match=r"found 2 volumes at the same 5 places"):
        read(saved(whole, tmp_path / "a.dcm"))


def several_frames(series: Series) -> Dataset:
    """A multi-frame file without functional groups."""
    one = series.slices[0]
    one.NumberOfFrames = len(series.slices)
    one.PixelData = b"".join(each.PixelData for each in series.slices)
    return one


def test_a_dose_has_the_offsets_of_its_frames_and_its_scale(tmp_path: Path) -> None:
    series = Series(tmp_path / "single")
    expected = read(series.save())
    dose = several_frames(series)
    dose.SOPClassUID = dose.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.2"
    dose.Modality, dose.DoseGridScaling = "RTDOSE", 0.001
    dose.GridFrameOffsetVector = [2.5 * k for k in range(5)]
    del dose.RescaleSlope, dose.RescaleIntercept
    found = read(saved(dose, tmp_path / "dose.dcm"))
    assert found.grid.matches(expected.grid)
    np.testing.assert_allclose(found.data[0], series.array.T * 0.001, rtol=1e-6)


def test_a_nuclear_image_has_the_distance_of_its_frames(tmp_path: Path) -> None:
    series = Series(tmp_path / "single")
    expected = read(series.save())
    nuclear = several_frames(series)
    nuclear.Modality, nuclear.ImageType = "NM", ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    nuclear.ImageType = ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
    nuclear.SpacingBetweenSlices = 2.5
    detector = Dataset()
    detector.ImageOrientationPatient = nuclear.ImageOrientationPatient
    detector.ImagePositionPatient = nuclear.ImagePositionPatient
    del nuclear.ImageOrientationPatient, nuclear.ImagePositionPatient
    nuclear.DetectorInformationSequence = [detector]
    found = read(saved(nuclear, tmp_path / "nm.dcm"))
    assert_same(found, expected)
    del nuclear.SpacingBetweenSlices
    with pytest.raises(DataError, match=r"the distance of frames: missing"):
        read(saved(nuclear, tmp_path / "nm.dcm"))


def test_floating_point_pixels(tmp_path: Path) -> None:
    series = Series(tmp_path)
    whole = enhanced(series)
    values = np.random.default_rng(0).normal(size=series.array.shape).astype(np.float32)
    del whole.PixelData, whole.BitsStored, whole.HighBit, whole.PixelRepresentation
    whole.BitsAllocated, whole.FloatPixelData = 32, values.tobytes()
    for group in whole.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    assert np.array_equal(read(saved(whole, tmp_path / "a.dcm")).data[0], values.T)


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    series = Series(tmp_path / "ct")
    for one in series.slices:
        one.compress(RLELossless)
        one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
    with pytest.raises(
        ConfigError, match=r"High-Throughput JPEG 2000.*pip install pylibjpeg pylibjpeg-openjpeg"
    ):
        read(series.save())


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    series = Series(tmp_path / "ct")
    for one in series.slices:
        one.compress(RLELossless)
        one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.94")
    with pytest.raises(DataError, match=r"TransferSyntaxUID: found JPIP Referenced .*Decompress the series"):
        read(series.save())


def test_multi_frame_files_need_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(enhanced(Series(tmp_path)), tmp_path / "a.dcm")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(
        ConfigError, match=r"a\.dcm: .*found no pydicom, expected this package.*pip install 'medseg\[dicom\]'"
    ):
        read(path)
