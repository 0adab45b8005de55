"""Series with uneven gaps, resampled to the true positions of their slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy.interpolate import interp1d

from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_grid, write
from tests.helpers.dicom_series import Series


def placed(folder: Path, heights: list[float], *, tilt: float = 0.0) -> Series:
    series = Series(folder, len(heights))
    for one, height in zip(series.slices, heights, strict=True):
        one.ImagePositionPatient = [-20.5, 10 + tilt * height, 100 + height]
    return series


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize(
    ("heights", "gap"),
    [
        ([0, 2, 4, 8, 10], 2),  # a missing slice
        ([0, 2, 4, 6, 10, 14, 18], 2),  # thin slices below thick ones
        ([0, 4, 8, 9, 13, 17], 4),  # two blocks
        ([0, 5, 7, 9, 11], 2),
        ([0, 2, 4, 5], 1),
    ],
)
def test_slices_are_interpolated_at_their_true_positions(
    tmp_path: Path, heights: list[float], gap: float, tilt: float
) -> None:
    series = placed(tmp_path / "ct", heights, tilt=tilt)
    with pytest.raises(DataError, match=r"uneven gaps.*--uneven resample"):
        read(series.save())
    with pytest.warns(DataWarning, match=r"interpolated linearly to \d+ slices"):
        found = read(series.folder, uneven="resample")
    targets = np.arange(0, heights[-1] + 1e-6, gap)
    expected = interp1d(heights, series.array.astype(float), axis=0)(targets) - 24
    assert found.data.dtype.kind == "i"
    assert np.abs(found.data[0] - expected.T).max() <= 0.5
    exact = [k for k, height in enumerate(targets) if height in heights]
    assert np.array_equal(found.data[0][..., exact], expected.T[..., exact])
    step = found.grid.affine[:3, 2]
    np.testing.assert_allclose(step, [0, -tilt * gap, gap], atol=1e-9)
    np.testing.assert_allclose(found.grid.affine[:3, 3], [20.5, -10, 100], atol=1e-9)
    assert read_grid(series.folder, uneven="resample") == found.grid  # which warns no second time


def test_an_even_series_is_not_touched(tmp_path: Path) -> None:
    folder = Series(tmp_path / "ct").save()
    assert np.array_equal(read(folder, uneven="resample").data, read(folder).data)


def test_a_bent_stack_is_refused(tmp_path: Path) -> None:
    series = placed(tmp_path / "ct", [0, 2, 4, 8, 10])
    series.slices[2].ImagePositionPatient[0] += 3
    with pytest.raises(DataError, match="shifted sideways"):
        read(series.save(), uneven="resample")


def test_a_resampled_series_is_no_source_of_a_segmentation(tmp_path: Path) -> None:
    series = placed(tmp_path / "ct", [0, 2, 4, 8, 10])
    with pytest.warns(DataWarning):
        volume = read(series.save(), uneven="resample")
    labels = volume.with_data((volume.data > 0).astype(np.uint8), kind="label")
    with pytest.raises(DataError, match="only after its slices were resampled"):
        write(labels, tmp_path / "a.seg.dcm")


@pytest.mark.slow
def test_real_series_is_interpolated_between_its_slices(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "uneven_gaps_ct"
    with pytest.warns(DataWarning, match="found gaps of 1.081 to 6.999 mm between 16 slices"):
        found = read(folder, uneven="resample")
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    slices.sort(key=lambda one: float(np.array(one.ImagePositionPatient, dtype=float) @ normal))
    heights = np.array([np.array(one.ImagePositionPatient, dtype=float) @ normal for one in slices])
    stored = np.stack(
        [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    )
    gap = heights[1] - heights[0]
    targets = heights[0] + gap * np.arange(found.grid.shape[2])
    expected = interp1d(heights, stored, axis=0, bounds_error=False, fill_value="extrapolate")(targets)
    assert np.abs(found.data[0] - expected.T).max() <= 0.5
