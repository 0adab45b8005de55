"""Equal to DeepMind's package ``surface-distance`` and to MONAI; by hand where shapes are simple."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

from medseg.errors import ConfigError, DataError
from medseg.evaluation.label_maps.surface_area import AreaDistances, area_distances

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 0.5, 1.1)]


def blob(seed: int, shape: tuple[int, ...], level: float = 0.0) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.0) > level


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


@pytest.mark.parametrize(
    ("shape", "spacing"), [*(((10, 9, 8), spacing) for spacing in SPACINGS), ((17, 12), (0.7, 2.2))]
)
@pytest.mark.parametrize("drawn", [blob, noise])
def test_equals_the_package_of_deepmind(drawn, shape, spacing) -> None:
    theirs = pytest.importorskip("surface_distance", reason="the package surface-distance is not installed")
    for seed in range(4):
        prediction, reference = drawn(seed, shape), blob(seed + 50, shape, 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses old names of SciPy
            expected = theirs.compute_surface_distances(reference, prediction, spacing)
        ours = area_distances(prediction, reference, spacing)
        for tolerance in (0.0, 0.6, 1.0, 2.5):
            dice = theirs.compute_surface_dice_at_tolerance(expected, tolerance)
            assert ours.surface_dice(tolerance) == pytest.approx(dice, abs=1e-12)
        for percentile in (50, 95, 100):
            distance = theirs.compute_robust_hausdorff(expected, percentile)
            assert ours.hausdorff(percentile) == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_monai(spacing) -> None:
    for seed in range(3):
        prediction, reference = blob(seed, (11, 10, 9)), blob(seed + 50, (11, 10, 9), 0.1)
        p, r = (
            torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))
            for mask in (prediction, reference)
        )
        for tolerance in (0.3, 1.0, 2.5):
            theirs = compute_surface_dice(p, r, [tolerance], spacing=list(spacing), use_subvoxels=True)
            ours = area_distances(prediction, reference, spacing).surface_dice(tolerance)
            assert ours == pytest.approx(theirs.item(), abs=1e-5)


def test_every_neighbourhood_has_the_area_of_the_package() -> None:
    tables = pytest.importorskip(
        "surface_distance.lookup_tables", reason="the package surface-distance is not installed"
    )
    spacing = (0.7, 1.3, 2.1)
    expected = tables.create_table_neighbour_code_to_surface_area(spacing)
    for code in range(1, 256):
        mask = (code & tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL) > 0
        found = area_distances(mask, mask, spacing)
        inner = [area for area, own in zip(found.predicted_areas, _is_centre(mask), strict=True) if own]
        assert sum(inner) == pytest.approx(expected[code], abs=1e-6), code


def _is_centre(mask: np.ndarray) -> np.ndarray:
    """Which of the surface points is the one in the middle of all eight voxels."""
    points = np.zeros([size + 1 for size in mask.shape], bool)
    points[1, 1, 1] = True
    around = ndimage.maximum_filter(np.pad(mask, 1).astype(int), 2)[1:, 1:, 1:]
    within = ndimage.minimum_filter(np.pad(mask, 1).astype(int), 2)[1:, 1:, 1:]
    box = tuple(slice(int(hits.min()), int(hits.max()) + 2) for hits in np.nonzero(mask))
    return points[box][(around != within)[box]]


def test_the_area_of_a_slab_is_that_of_its_faces() -> None:
    mask = np.zeros((40, 40, 12), bool)
    mask[5:35, 5:35, 4:8] = True
    area = area_distances(mask, mask, (2.0, 2.0, 0.5)).predicted_areas.sum()
    faces = 2 * (60 * 60 + 2 * 60 * 2)
    assert area == pytest.approx(faces, rel=0.02)  # edges are cut off


def test_thin_plates_weigh_by_area_not_by_voxels() -> None:
    """By voxels, a plate one voxel thick counts once; its surface has two sides."""
    reference = np.zeros((20, 20, 12), bool)
    reference[2:18, 2:18, 3] = True
    prediction = reference.copy()
    prediction[2:18, 2:18, 8] = True
    found = area_distances(prediction, reference, (1.0, 1.0, 1.0))
    assert found.surface_dice(1.0) == pytest.approx(2 / 3, abs=0.01)
    assert found.hausdorff(95) == pytest.approx(5)


def test_a_sheared_grid_keeps_the_area_of_a_plane() -> None:
    mask = np.zeros((30, 30, 10), bool)
    mask[5:25, 5:25, 4:6] = True
    straight = area_distances(mask, mask, (1.0, 1.0, 2.0)).predicted_areas.sum()
    steps = np.array([[1.0, 0.0, 1.5], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    sheared = area_distances(mask, mask, steps).predicted_areas.sum()
    top = 2 * 20 * 20
    assert straight < sheared < straight + (straight - top)  # two sides lean, top and bottom do not change
    np.testing.assert_allclose(
        area_distances(mask, mask, np.diag([1.0, 1.0, 2.0])).predicted_areas.sum(), straight
    )


def test_one_slice_is_measured_in_its_plane() -> None:
    mask = np.zeros((9, 9, 1), bool)
    mask[2:7, 2:7] = True
    found = area_distances(mask, mask, (1.0, 1.0, 5.0))
    flat = area_distances(mask[..., 0], mask[..., 0], (1.0, 1.0))
    assert found.predicted_areas.sum() == flat.predicted_areas.sum() == pytest.approx(16 + 4 * np.sqrt(0.5))
    sheared = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert area_distances(mask, mask, sheared).predicted_areas.sum() == pytest.approx(
        flat.predicted_areas.sum()
    )


def test_a_line_has_two_ends() -> None:
    line = np.zeros(9, bool)
    line[2:5] = True
    assert area_distances(line, np.roll(line, 1), (2.0,)).hausdorff(100) == 2


def test_empty_masks_have_defined_answers() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    both = area_distances(empty, empty, (1, 1, 1))
    assert np.isnan([both.surface_dice(1), both.hausdorff()]).all()
    for pair in ((empty, full), (full, empty)):
        one = area_distances(*pair, (1, 1, 1))
        assert (one.surface_dice(1e9), one.hausdorff()) == (0, np.inf)


def test_faulty_arguments_are_named() -> None:
    mask = np.ones((3, 3), bool)
    with pytest.raises(DataError, match="expected equal shapes"):
        area_distances(mask, mask[:2], (1, 1))
    with pytest.raises(ConfigError, match="tolerance_mm"):
        AreaDistances(*[np.ones(1)] * 4).surface_dice(-1)
