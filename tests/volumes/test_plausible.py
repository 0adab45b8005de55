from __future__ import annotations

import warnings

import numpy as np
import pytest

from medseg.errors import DataError, DataWarning
from medseg.volumes.grid import Grid
from medseg.volumes.plausible import check_plausible, check_resampling


def sheared(slope: float) -> Grid:
    affine = np.eye(4)
    affine[0, 2] = slope
    return Grid((4, 4, 4), affine)


@pytest.mark.parametrize("spacing", [(1500, 1500, 2000), (1, 1, 101), (1e30, 1, 1)])
def test_voxels_larger_than_a_body_are_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(
        DataError, match=r"a\.nii: voxel size: found .* mm, expected at most 100 mm\. Check the units"
    ):
        check_plausible(Grid.from_spacing((4, 4, 4), spacing), "a.nii")


@pytest.mark.parametrize("spacing", [(100, 50, 30), (0.3e-3, 0.3e-3, 1e-3), (0.8, 0.8, 5)])
def test_other_voxels_are_accepted(spacing: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_plausible(Grid.from_spacing((4, 4, 4), spacing), "a.nii")
        check_plausible(sheared(0.0005), "a.nii")


def test_shear_is_reported_and_too_much_of_it_refused() -> None:
    with pytest.warns(
        DataWarning, match=r"tilted\.nii: affine: found axes that are 14\.04 degrees from a right angle"
    ):
        check_plausible(sheared(0.25), "tilted.nii")
    with pytest.raises(DataError, match=r"a\.nii: affine: found axes that are 56\.3 degrees .*at most 30"):
        check_plausible(sheared(1.5), "a.nii")


@pytest.mark.parametrize(
    ("shape", "old", "wanted"),
    [
        ((20, 22, 24), 400.0, (8000, 8800, 9600)),
        ((20, 22, 18), 40.0, (800, 880, 720)),
        ((512, 512, 80), 0.001, (1, 1, 1)),
        ((2000, 2000, 2000), 1.0, (4000, 4000, 2000)),
    ],
)
def test_resampling_that_does_not_end_or_leaves_nothing(
    shape: tuple[int, ...], old: float, wanted: tuple[int, ...]
) -> None:
    with pytest.raises(
        DataError, match=r"a\.nii: voxel size: found .* voxels\), expected one near the 1x1x1 mm of the model"
    ):
        check_resampling(shape, (old,) * 3, wanted, (1, 1, 1), "a.nii")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((512, 512, 80), (273, 273, 267)),
        ((64, 64, 3), (64, 64, 1)),
        ((10, 10, 1), (300, 300, 1)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_usual_resampling_is_accepted(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    check_resampling(shape, (1, 1, 1), wanted, (1, 1, 1), "a.nii")
