from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medseg.errors import ConfigError, DataError
from medseg.evaluation.label_maps.surface import surface_distances, surface_voxels


def blob(seed: int, shape: tuple[int, ...], level: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal(shape), 1.2) > level


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 0.5, 1.1)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_monai(seed: int, spacing: tuple[float, float, float]) -> None:
    prediction, reference = blob(seed, (13, 11, 9)), blob(seed + 100, (13, 11, 9), 0.1)
    ours = surface_distances(prediction, reference, spacing)
    p, r = one_hot(prediction), one_hot(reference)
    for percentile in (95, 50, 100):
        theirs = compute_hausdorff_distance(p, r, percentile=percentile, spacing=list(spacing))
        assert ours.hausdorff(percentile) == pytest.approx(theirs.item(), abs=1e-5)
    for tolerance in (0.0, 0.7, 1.0, 2.5):
        theirs = compute_surface_dice(p, r, [tolerance], spacing=list(spacing), use_subvoxels=False)
        assert ours.surface_dice(tolerance) == pytest.approx(theirs.item(), abs=1e-6)
    theirs = compute_average_surface_distance(p, r, symmetric=True, spacing=list(spacing))
    assert ours.average() == pytest.approx(theirs.item(), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(2, 8)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    density=st.floats(0.02, 0.98),
)
def test_distances_equal_a_distance_transform(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], density: float
) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random(shape) < density, rng.random(shape) < density
    prediction[0, 0, 0] = reference[-1, -1, -1] = True
    ours = surface_distances(prediction, reference, spacing)
    surfaces = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    to_reference = ndimage.distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]
    to_prediction = ndimage.distance_transform_edt(~surfaces[0], sampling=spacing)[surfaces[1]]
    np.testing.assert_allclose(np.sort(ours.to_reference), np.sort(to_reference), atol=1e-9)
    np.testing.assert_allclose(np.sort(ours.to_prediction), np.sort(to_prediction), atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_shifted_cube_is_as_far_as_it_was_shifted(axis: int, steps: int) -> None:
    spacing = (0.5, 1.25, 3.0)
    reference = np.zeros((20, 20, 20), dtype=bool)
    reference[4:12, 4:12, 4:12] = True
    found = surface_distances(np.roll(reference, steps, axis), reference, spacing)
    shift = steps * spacing[axis]
    assert found.hausdorff(100) == pytest.approx(shift)
    assert found.surface_dice(shift) == 1
    surface_size = 8**3 - 6**3
    # the trailing face is `shift` away; the rest of the surface is at most as far
    assert found.to_reference.shape == found.to_prediction.shape == (surface_size,)
    assert found.surface_dice(0) < 1


def test_two_parallel_plates() -> None:
    reference = np.zeros((12, 6, 6), dtype=bool)
    prediction = reference.copy()
    reference[2], prediction[7] = True, True
    found = surface_distances(prediction, reference, (2.0, 1.0, 1.0))
    assert found.hausdorff(95) == found.hausdorff(0) == found.average() == 10
    assert found.surface_dice(9.99) == 0
    assert found.surface_dice(10) == 1


def test_tolerance_allows_for_rounding_of_spacings() -> None:
    reference = np.zeros((8, 6, 6), dtype=bool)
    prediction = reference.copy()
    reference[2], prediction[5] = True, True
    spacing = (float(np.float32(0.7)) + 1e-9, 1.0, 1.0)
    assert surface_distances(prediction, reference, spacing).surface_dice(2.1) == 1


def test_equal_masks_are_zero_apart() -> None:
    mask = blob(3, (9, 9, 9))
    found = surface_distances(mask, mask, (1, 2, 3))
    assert found.hausdorff(100) == 0
    assert found.average() == 0
    assert found.surface_dice(0) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_measured_in_its_plane(axis: int) -> None:
    spacing2d = (0.8, 1.9)
    prediction2d, reference2d = blob(5, (15, 12)), blob(6, (15, 12))
    prediction, reference = np.expand_dims(prediction2d, axis), np.expand_dims(reference2d, axis)
    spacing = list(spacing2d)
    spacing.insert(axis, 5.0)
    found = surface_distances(prediction, reference, spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = compute_hausdorff_distance(
            one_hot(prediction2d), one_hot(reference2d), percentile=95, spacing=list(spacing2d)
        )
    assert found.hausdorff(95) == pytest.approx(theirs.item(), abs=1e-5)
    assert len(found.to_reference) == surface_voxels(prediction2d).sum() < prediction2d.sum()


def test_a_flat_mask_in_a_deep_volume_is_all_surface() -> None:
    mask = np.zeros((9, 9, 5), dtype=bool)
    mask[2:7, 2:7, 2] = True
    assert len(surface_distances(mask, mask, (1, 1, 1)).to_reference) == 25


def test_a_single_voxel_volume() -> None:
    mask = np.ones((1, 1, 1), dtype=bool)
    assert surface_distances(mask, mask, (1, 1, 1)).hausdorff() == 0


@pytest.mark.parametrize("shape", [(7, 6, 5), (1, 6, 5), (6, 5), (4,)])
def test_surface_is_the_difference_to_the_erosion(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.8
    np.testing.assert_array_equal(surface_voxels(mask), mask ^ ndimage.binary_erosion(mask))


def test_empty_masks_have_defined_answers() -> None:
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    both = surface_distances(empty, empty, (1, 1, 1))
    assert np.isnan([both.hausdorff(), both.average(), both.surface_dice(1)]).all()
    for pair in ((empty, full), (full, empty)):
        one = surface_distances(*pair, (1, 1, 1))
        assert one.hausdorff(95) == one.hausdorff(100) == one.average() == np.inf
        assert one.surface_dice(1e9) == 0


def test_invalid_masks_raise() -> None:
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(DataError, match=r"\(3, 3, 3\) and \(3, 3, 2\)"):
        surface_distances(mask, mask[..., :2], (1, 1, 1))
    with pytest.raises(DataError, match="one spacing per axis"):
        surface_distances(mask, mask, (1, 1))
    found = surface_distances(mask, mask, (1, 1, 1))
    with pytest.raises(ConfigError, match="percentile: found 101"):
        found.hausdorff(101)
    for tolerance in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="tolerance_mm"):
            found.surface_dice(tolerance)


def test_oblique_axes_are_measured_in_world_coordinates():
    """A box moved along a sheared axis, against distances between the voxels' places in the world."""
    steps = np.array(
        [[1.0, 0.0, 0.5], [0.0, 1.5, 0.0], [0.0, 0.0, 1.0]]
    )  # columns: one voxel along each axis
    reference = np.zeros((24, 14, 20), bool)
    reference[6:12, 4:10, 3:9] = True
    prediction = np.roll(reference, 5, axis=2)
    places = [np.argwhere(surface_voxels(mask)) @ steps.T for mask in (prediction, reference)]
    apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    expected = max(np.percentile(apart.min(axis), 95) for axis in (0, 1))
    assert surface_distances(prediction, reference, steps).hausdorff() == pytest.approx(expected)
    assert surface_distances(prediction, reference, np.diag([1, 2, 3])).hausdorff() == pytest.approx(
        surface_distances(prediction, reference, (1, 2, 3)).hausdorff()
    )
