from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

from medseg.errors import ConfigError, DataError
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.metrics import compare_label_maps, confusion_matrix
from medseg.evaluation.label_maps.surface import surface_distances, surface_voxels
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"background": 0, "liver": 3, "spleen": 7})
SPACING = (0.8, 1.5, 2.5)


def volume(data: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Volume:
    return Volume(data[None], Grid.from_spacing(data.shape, spacing), "label")


def random_map(
    seed: int, shape: tuple[int, ...] = (12, 10, 8), values: tuple[int, ...] = (0, 3, 7)
) -> Volume:
    return volume(np.random.default_rng(seed).choice(np.array(values, np.uint8), shape))


def boxes(prediction: slice, reference: slice) -> tuple[Volume, Volume]:
    """Two one-label maps with a bar of 4 x 4 voxels along the first axis."""
    arrays = [np.zeros((16, 8, 8), np.uint8) for _ in range(2)]
    arrays[0][prediction, 2:6, 2:6] = 3
    arrays[1][reference, 2:6, 2:6] = 3
    return volume(arrays[0], (2, 1, 1)), volume(arrays[1], (2, 1, 1))


def test_overlap_and_volumes_by_hand() -> None:
    row = compare_label_maps(
        *boxes(slice(4, 12), slice(2, 10)), LABELS, MetricOptions(tolerance_mm=2), case="a"
    )[0]
    assert (row.case, row.label_value, row.label) == ("a", 3, "liver")
    assert row.dice == pytest.approx(2 * 6 / 16)
    assert row.iou == pytest.approx(6 / 10)
    assert row.volume_ml == pytest.approx(8 * 16 * 2 / 1000)
    assert row.volume_error_ml == 0
    assert row.volume_error_percent == 0
    assert row.hd95_mm == pytest.approx(4)  # two voxels of 2 mm
    assert row.surface_dice < 1


def test_volume_error_has_the_sign_of_too_much() -> None:
    row = compare_label_maps(*boxes(slice(2, 12), slice(2, 10)), LABELS)[0]
    assert row.volume_error_ml == pytest.approx(2 * 16 * 2 / 1000)
    assert row.volume_error_percent == pytest.approx(25)


@pytest.mark.parametrize("seed", range(3))
def test_equals_monai(seed: int) -> None:
    prediction, reference = random_map(seed), random_map(seed + 50)
    rows = compare_label_maps(prediction, reference, LABELS, MetricOptions(tolerance_mm=1.5))
    p, r = (
        torch.from_numpy(np.stack([v.data[0] == value for value in LABELS.values])[None]).float()
        for v in (prediction, reference)
    )
    spacing = list(SPACING)
    expected = {
        "dice": compute_dice(p, r, include_background=False),
        "iou": compute_iou(p, r, include_background=False),
        "hd95_mm": compute_hausdorff_distance(p, r, percentile=95, spacing=spacing),
        "surface_dice": compute_surface_dice(p, r, [1.5, 1.5], spacing=spacing),
    }
    for metric, values in expected.items():
        found = [getattr(row, metric) for row in rows]
        np.testing.assert_allclose(found, values[0].numpy(), atol=1e-5, err_msg=metric)


@pytest.mark.parametrize("where", [np.s_[0, 3:6, 3:6], np.s_[2:5, 4, 0], np.s_[-1, -1, -1], np.s_[:, :, :]])
def test_crops_change_no_distance(where: tuple[object, ...]) -> None:
    """Labels at the border, one voxel thick, far apart: as measured on the whole volume by MONAI."""
    arrays = [np.zeros((9, 8, 7), np.uint8) for _ in range(2)]
    arrays[0][where] = 3
    arrays[1][4:7, 2:5, 1:4] = 3
    row = compare_label_maps(volume(arrays[0]), volume(arrays[1]), LABELS)[0]
    p, r = (torch.from_numpy(np.stack([a != 3, a == 3])[None]).float() for a in arrays)
    theirs = compute_hausdorff_distance(p, r, percentile=95, spacing=list(SPACING))
    assert row.hd95_mm == pytest.approx(theirs.item(), abs=1e-5)


def test_one_slice_is_measured_in_its_plane() -> None:
    arrays = [np.zeros((20, 20, 1), np.uint8) for _ in range(2)]
    arrays[0][5:15, 5:15], arrays[1][7:13, 7:13] = 3, 3
    row = compare_label_maps(
        volume(arrays[0], (1, 1, 5)), volume(arrays[1], (1, 1, 5)), LABELS, MetricOptions(tolerance_mm=1.9)
    )[0]
    assert row.hd95_mm == pytest.approx(math.sqrt(8), rel=0.2)
    assert row.surface_dice == 0  # by area instead of outline the inner square would lie on the outer


def test_empty_masks_have_the_documented_answers() -> None:
    nothing = volume(np.zeros((6, 6, 6), np.uint8))
    something = volume(np.full((6, 6, 6), 3, np.uint8))
    absent = compare_label_maps(nothing, nothing, LABELS)[0]
    overlap = ("dice", "iou", "surface_dice")
    assert all(
        math.isnan(getattr(absent, m)) for m in (*overlap, "hd95_mm", "assd_mm", "volume_error_percent")
    )
    assert absent.volume_ml == absent.reference_ml == absent.volume_error_ml == 0
    missed, invented = (
        compare_label_maps(nothing, something, LABELS)[0],
        compare_label_maps(something, nothing, LABELS)[0],
    )
    for row in (missed, invented):
        assert [getattr(row, metric) for metric in overlap] == [0, 0, 0]
        assert row.hd95_mm == row.assd_mm == math.inf
    assert (missed.sensitivity, invented.precision) == (0, 0)
    assert all(math.isnan(value) for value in (missed.precision, invented.sensitivity, absent.precision))
    assert missed.masd_mm == invented.masd_mm == math.inf
    assert missed.volume_error_percent == -100
    assert math.isnan(invented.volume_error_percent)
    assert invented.volume_error_ml == pytest.approx(216 * 3 / 1000)


@pytest.mark.parametrize("axcodes", ["LPS", "SAR", "ILP", "PSL"])
def test_another_orientation_of_the_same_voxels_is_accepted(axcodes: str) -> None:
    prediction, reference = random_map(1), random_map(2)
    plain = compare_label_maps(prediction, reference, LABELS)
    turned = compare_label_maps(prediction.reoriented(axcodes), reference, LABELS)
    for a, b in zip(plain, turned, strict=True):
        assert a == b
    both = compare_label_maps(prediction.reoriented(axcodes), reference.reoriented("RSP"), LABELS)
    assert [row.hd95_mm for row in both] == pytest.approx([row.hd95_mm for row in plain])


def test_different_grids_raise_with_both_and_their_distance() -> None:
    reference = random_map(0)
    shifted = np.array(reference.grid.affine)
    shifted[0, 3] += 2
    moved = Volume(reference.data, Grid(reference.grid.shape, shifted), "label")
    with pytest.raises(
        DataError,
        match=r"case_1: prediction: .*found 12x10x8 voxels of .*, RAS, first voxel at .*expected 12x10x8 .* 2 mm apart.*resampled",
    ):
        compare_label_maps(moved, reference, LABELS, case="case_1")
    smaller = reference.cropped((0, 0, 0), (11, 10, 8))
    with pytest.raises(DataError, match=r"found 11x10x8 voxels.*expected 12x10x8 voxels"):
        compare_label_maps(smaller, reference, LABELS)


def test_grids_within_a_hundredth_of_a_millimetre_are_the_same() -> None:
    reference = random_map(0)
    affine = np.array(reference.grid.affine)
    affine[:3, 3] += 0.005
    near = Volume(reference.data, Grid(reference.grid.shape, affine), "label")
    assert [row.dice for row in compare_label_maps(near, reference, LABELS)] == [1, 1]


def test_values_missing_in_the_label_table_raise() -> None:
    with pytest.raises(DataError, match=r"case_1: reference: unknown label value: found 9"):
        compare_label_maps(random_map(0), random_map(1, values=(0, 3, 9)), LABELS, case="case_1")


def test_inputs_other_than_label_maps_raise() -> None:
    reference = random_map(0)
    image = reference.with_data(reference.data.astype(np.float32), "image")
    with pytest.raises(DataError, match=r"1 channels of float32.*read_labels"):
        compare_label_maps(image, reference, LABELS)
    with pytest.raises(ConfigError, match="tolerance_mm"):
        compare_label_maps(reference, reference, LABELS, MetricOptions(tolerance_mm=-1))


def test_integer_types_give_equal_metrics() -> None:
    data = np.random.default_rng(0).random((6, 6, 6)) < 0.5
    one = Labels.from_names({"a": 1})
    rows = [
        compare_label_maps(volume(data), volume(data.astype(dtype)), one)[0]
        for dtype in (bool, np.uint8, np.int16, np.uint32, np.int64)
    ]
    assert rows == [rows[0]] * 5
    assert rows[0].dice == 1


def test_an_image_of_integers_is_taken_as_a_label_map() -> None:
    reference = random_map(0)
    assert compare_label_maps(reference.with_data(reference.data, "image"), reference, LABELS)[0].dice == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), k=st.integers(1, 300))
def test_confusion_counts_every_voxel_once(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = rng.integers(0, k, (2, 5, 4, 3)).astype(np.uint16)
    counts = confusion_matrix(prediction, reference, k)
    expected = np.zeros((k, k), int)
    np.add.at(expected, (prediction.ravel(), reference.ravel()), 1)
    np.testing.assert_array_equal(counts, expected)


def test_confusion_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, reference = np.random.default_rng(0).integers(0, 4, (2, 7, 3, 3))
    whole = confusion_matrix(prediction, reference, 4)
    monkeypatch.setattr("medseg.evaluation.label_maps.metrics._BLOCK", 20)
    np.testing.assert_array_equal(confusion_matrix(prediction, reference, 4), whole)


def test_distances_on_a_sheared_grid_are_those_of_the_world():
    affine = np.array([[1.0, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    data = np.zeros((1, 20, 12, 20), np.uint8)
    data[0, 4:10, 3:9, 3:9] = 1
    grid = Grid((20, 12, 20), affine)
    reference = Volume(data, grid, "label")
    prediction = Volume(np.roll(data, 5, axis=3), grid, "label")
    places = [np.argwhere(surface_voxels(v.data[0] > 0)) @ affine[:3, :3].T for v in (prediction, reference)]
    apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    expected = max(np.percentile(apart.min(axis), 95) for axis in (0, 1))
    (row,) = compare_label_maps(prediction, reference, Labels.from_names({"box": 1}))
    assert row.hd95_mm == pytest.approx(expected)


@pytest.mark.parametrize("turn", [-1e-9, 1e-9])
def test_grids_at_45_degrees_are_equal_whatever_their_axis_codes(turn: float) -> None:
    """Which of two axes is the first is a matter of rounding there."""

    def turned_map(angle: float) -> Volume:
        affine = np.diag([0.9, 0.9, 2, 1.0])
        sine, cosine = np.sin(angle) * 0.9, np.cos(angle) * 0.9
        affine[:2, :2] = [[cosine, -sine], [sine, cosine]]
        data = np.random.default_rng(0).choice(np.array([0, 3, 7], np.uint8), (1, 6, 7, 5))
        return Volume(data, Grid((6, 7, 5), affine), "label")

    one, other = turned_map(np.pi / 4 + turn), turned_map(np.pi / 4 - turn)
    assert one.grid.axcodes != other.grid.axcodes
    assert [row.dice for row in compare_label_maps(one, other, LABELS)] == [1, 1]
    flipped = other.reoriented("RAS")
    assert [row.dice for row in compare_label_maps(flipped, one, LABELS)] == [1, 1]


def test_confusion_of_an_empty_map_is_zero() -> None:
    empty = np.zeros(0, np.uint8)
    assert confusion_matrix(empty, empty, 3).tolist() == np.zeros((3, 3)).tolist()


def test_rates_equal_scikit_learn_formulas_by_hand_and_leave_out_ignored_voxels() -> None:
    data = np.zeros((10, 10, 1), np.uint8)
    data[:4, :5] = 3
    shifted = np.roll(data, 1, axis=0)
    (row, *_) = compare_label_maps(volume(shifted), volume(data), LABELS)
    overlap, size = 3 * 5, 4 * 5
    assert row.sensitivity == row.precision == pytest.approx(overlap / size)
    assert row.specificity == pytest.approx((100 - (2 * size - overlap)) / (100 - size))
    reference = data.copy()
    reference[4, :5] = 200  # where the prediction is too large
    ignoring = replace(LABELS, ignore=200)
    (row, *_) = compare_label_maps(volume(shifted), volume(reference), ignoring)
    assert row.precision == row.specificity == 1


def test_masd_weighs_both_directions_alike() -> None:
    small, large = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    small[10:12, 10:12, 1] = 3
    large[5:35, 5:35, 1] = 3
    (row, *_) = compare_label_maps(volume(small), volume(large), LABELS)
    found = surface_distances(small == 3, large == 3, volume(small).spacing)
    assert row.masd_mm == pytest.approx((found.to_reference.mean() + found.to_prediction.mean()) / 2)
    assert row.masd_mm != pytest.approx(row.assd_mm, rel=0.05)
