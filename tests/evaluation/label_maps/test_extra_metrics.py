from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from medseg.errors import ConfigError
from medseg.evaluation.entry_points import evaluate
from medseg.evaluation.label_maps.boundary_iou import boundary_iou
from medseg.evaluation.label_maps.centerline_dice import centerline_dice, skeleton
from medseg.evaluation.label_maps.lesion_wise import PENALTY_MM, lesion_wise
from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.metric_catalog import CATALOG, EXTRA
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.metrics import METRICS, compare_label_maps
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

ALL = MetricOptions(metrics=("all",))
NAN, INF = math.nan, math.inf


def pair(prediction: np.ndarray, reference: np.ndarray, spacing=(1.0, 1.0, 1.0), diagonal=1.0) -> MaskPair:
    return MaskPair(prediction, reference, np.asarray(spacing, float), diagonal)


def tube(*places: tuple[slice | int, ...], shape: tuple[int, ...] = (24, 13, 13)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def volume(mask: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> Volume:
    return Volume(mask[None].astype(np.uint8), Grid.from_spacing(mask.shape, spacing), "label")


def test_cldice_sees_a_gap_that_dice_hardly_sees() -> None:
    vessel = tube(np.s_[2:22, 5:8, 5:8])
    broken = vessel.copy()
    broken[11:13] = False
    found = centerline_dice(pair(broken, vessel))
    line = skeletonize(np.pad(vessel, 1))[1:-1, 1:-1, 1:-1]
    sensitivity = (line & broken).sum() / line.sum()
    assert found == pytest.approx(2 * sensitivity / (1 + sensitivity))  # all of the broken skeleton is inside
    assert found < 1


def test_cldice_forgives_a_different_width() -> None:
    thin, thick = tube(np.s_[2:22, 6, 6]), tube(np.s_[2:22, 5:8, 5:8])
    assert centerline_dice(pair(thick, thin)) == 1
    assert centerline_dice(pair(thin, tube(np.s_[2:22, 10, 10]))) == 0


def test_skeletons_of_slices_lines_and_dots() -> None:
    dot = tube(np.s_[4, 4, 4])
    assert centerline_dice(pair(dot, dot)) == 1
    square = np.zeros((1, 9, 9), bool)
    square[0, 2:7, 3:6] = True
    np.testing.assert_array_equal(skeleton(square)[0], skeletonize(square[0]))
    assert skeleton(np.ones((1, 1, 5), bool)).all()
    for side in range(1, 5):  # nothing is thinned away completely
        assert skeleton(np.ones((side,) * 3, bool)).any()


@pytest.mark.parametrize("width", [1.0, 2.0, 3.5])
def test_boundary_iou_by_erosion(width: float) -> None:
    """In a plane with equal spacing, the boundary is the mask without its erosion by a disk."""
    rng = np.random.default_rng(3)
    masks = [ndimage.gaussian_filter(rng.standard_normal((40, 40)), 3) > 0 for _ in range(2)]
    offsets = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"))
    disk = np.hypot(*offsets) <= width
    first, second = (mask & ~ndimage.binary_erosion(mask, disk) for mask in masks)
    expected = (first & second).sum() / (first | second).sum()
    found = boundary_iou(pair(masks[0][..., None], masks[1][..., None], diagonal=50), width)
    assert found == pytest.approx(expected)


def test_boundary_iou_in_mm_and_on_sheared_grids() -> None:
    rng = np.random.default_rng(4)
    a, b = (ndimage.gaussian_filter(rng.standard_normal((14, 12, 9)), 2) > 0 for _ in range(2))
    straight = boundary_iou(pair(a, b, (0.7, 0.7, 2.5)), 1.5)
    turned = boundary_iou(pair(a, b, np.diag([0.7, 0.7, 2.5])), 1.5)
    assert straight == pytest.approx(turned)
    union = (a & b).sum() / (a | b).sum()
    assert boundary_iou(pair(a, b), 100.0) == pytest.approx(union)  # a boundary as wide as the masks
    assert boundary_iou(pair(a, b, diagonal=5000), None) == pytest.approx(union)
    narrow = boundary_iou(pair(a, b), 0.01)
    assert narrow == boundary_iou(pair(a, b), 1.0) < union  # never narrower than the surface


def cubes(*starts: tuple[int, int, int], side: int = 4, shape=(40, 12, 12)) -> np.ndarray:
    return tube(*(tuple(slice(at, at + side) for at in start) for start in starts), shape=shape)


def test_lesions_count_the_same_whatever_their_size() -> None:
    large, small = cubes((2, 2, 2), side=8), cubes((30, 4, 4))
    dice, hd95 = lesion_wise(pair(large, large | small), 3, 50.0)
    assert dice == 0.5
    assert hd95 == PENALTY_MM / 2


def test_false_lesions_count_as_zero() -> None:
    lesion, false = cubes((2, 2, 2)), cubes((20, 2, 2)) | cubes((30, 2, 2), side=1)
    dice, hd95 = lesion_wise(pair(lesion | false, lesion), 3, 50.0)
    assert dice == pytest.approx(1 / 3)  # predicted components count however small they are
    assert hd95 == pytest.approx(2 * PENALTY_MM / 3)


def test_references_that_touch_after_dilation_are_one_lesion() -> None:
    two = cubes((2, 2, 2), (11, 2, 2))  # five voxels between them
    first = cubes((2, 2, 2))
    assert lesion_wise(pair(first, two), 3, 50.0)[0] == pytest.approx(2 / 3)  # one lesion, half of it found
    assert lesion_wise(pair(first, two), 1, 50.0)[0] == 0.5  # two lesions
    near = cubes((2, 2, 2), (8, 2, 2))  # a prediction in two pieces is one lesion together
    assert lesion_wise(pair(near, first), 3, 50.0)[0] == pytest.approx(2 / 3)


def test_small_references_are_not_counted_but_what_is_predicted_there_is_not_false() -> None:
    large, tiny = cubes((2, 2, 2)), cubes((30, 2, 2), side=3)
    assert lesion_wise(pair(large | tiny, large | tiny), 3, 50.0) == (1.0, 0.0)
    assert lesion_wise(pair(large, large | tiny), 3, 50.0) == (1.0, 0.0)
    assert lesion_wise(pair(large, large | tiny), 3, 20.0)[0] == 0.5
    assert np.isnan(lesion_wise(pair(tiny, tiny), 3, 50.0)).all()  # nothing to count
    halves = (0.5, 0.5, 1.0)  # 27 voxels of 0.25 mm³
    assert np.isnan(lesion_wise(pair(tiny, tiny, halves), 3, 6.75)).all()
    assert lesion_wise(pair(tiny, tiny, halves), 3, 6.7) == (1.0, 0.0)


def test_the_distance_of_a_lesion_is_its_own() -> None:
    reference = cubes((2, 2, 2), (24, 2, 2))
    prediction = cubes((2, 2, 2), (26, 2, 2))
    assert lesion_wise(pair(prediction, reference, (1.5, 1, 1)), 3, 50.0)[1] == pytest.approx(3 / 2)


@pytest.mark.parametrize("seed", range(3))
def test_lesion_wise_equals_the_definition_step_by_step(seed: int) -> None:
    """Component by component on whole volumes, as the challenge describes it."""
    rng = np.random.default_rng(seed)
    prediction, reference = (
        ndimage.gaussian_filter(rng.standard_normal((30, 26, 22)), 1.6) > 0.16 for _ in range(2)
    )
    near, dilation = ndimage.generate_binary_structure(3, 2), 1
    everywhere = np.ones((3, 3, 3))
    grown, count = ndimage.label(ndimage.binary_dilation(reference, near, dilation), everywhere)
    parts, predictions = ndimage.label(prediction, everywhere)
    dice, used = [], set()
    for number in range(1, count + 1):
        lesion = reference & (grown == number)
        inside = set(np.unique(parts[ndimage.binary_dilation(lesion, near, dilation)])) - {0}
        used |= inside
        if lesion.sum() > 10:
            found = np.isin(parts, list(inside))
            dice.append(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))
    expected = sum(dice) / (len(dice) + predictions - len(used))
    assert count > 3
    assert lesion_wise(pair(prediction, reference), dilation, 10.0)[0] == pytest.approx(expected)


def test_values_of_empty_masks_are_those_of_the_catalog() -> None:
    nothing, something = np.zeros((6, 6, 6), bool), np.ones((6, 6, 6), bool)
    labels = Labels.from_names({"lesion": 1})

    def measured(prediction: np.ndarray, reference: np.ndarray, options: MetricOptions) -> dict[str, float]:
        (row,) = compare_label_maps(volume(prediction), volume(reference), labels, options)
        return {metric: row.value(metric) for metric in CATALOG}

    columns = [metric for metric in CATALOG if not metric.endswith("_ml")]
    missed, invented = measured(nothing, something, ALL), measured(something, nothing, ALL)
    left_out = measured(nothing, nothing, ALL)
    perfect = measured(nothing, nothing, MetricOptions(metrics=("all",), both_empty="perfect"))
    same = measured(something, something, ALL)
    for metric in columns:
        info = CATALOG[metric]
        if metric != "specificity":  # it is that of the other voxels, and this image has none
            np.testing.assert_equal(missed[metric], info.missed, err_msg=metric)
            np.testing.assert_equal(same[metric], info.perfect, err_msg=metric)
            assert math.isnan(left_out[metric]), metric
        np.testing.assert_equal(
            invented[metric], 0.0 if metric == "specificity" else info.invented, err_msg=metric
        )
        assert perfect[metric] == info.perfect, metric


def test_catalog_lists_every_column() -> None:
    assert set(CATALOG) == {*METRICS, *(column for columns in EXTRA.values() for column in columns)}


def test_requested_metrics_are_in_tables_and_files(tmp_path) -> None:
    reference = volume(cubes((2, 2, 2)))
    table = evaluate(reference, reference, metrics=["lesion_wise", "cldice"])
    assert table.metrics[-3:] == ("cldice", "lesion_dice", "lesion_hd95_mm")
    assert "clDice" in repr(table)
    assert "lesion-wise HD95 mm" in repr(table)
    assert "boundary IoU" not in repr(table)
    table.write_tsv(tmp_path / "cases.tsv")
    header, line = (tmp_path / "cases.tsv").read_text().splitlines()
    assert header.split("\t")[-3:] == ["cldice", "lesion_dice", "lesion_hd95_mm"]
    assert [float(cell) for cell in line.split("\t")[-3:]] == [1, 1, 0]
    summary = table.summary()
    assert summary["labels"]["label_1"]["cldice"]["mean"] == 1
    assert set(summary["label_intervals"]["label_1"]) == set(table.metrics)
    assert summary["lesion_min_mm3"] == 50
    assert summary["empty_masks"]["lesion_hd95_mm"] == {"both": None, "prediction": 374, "reference": 374}
    assert "boundary_mm" not in summary
    assert "cldice" not in evaluate(reference, reference).summary()["labels"]["label_1"]


def test_the_rule_for_empty_masks_is_written_below_the_table() -> None:
    reference = volume(cubes((2, 2, 2)))
    assert "empty masks: both, not counted" in repr(evaluate(reference, reference))
    perfect = evaluate(reference, reference, both_empty="perfect")
    assert "empty masks: both, counted as perfect" in repr(perfect)
    assert perfect.summary()["both_empty"] == "perfect"
    assert perfect.summary()["empty_masks"]["dice"] == {"both": 1, "prediction": 0, "reference": 0}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metrics": ("cldise",)}, "Did you mean 'cldice'"),
        ({"metrics": ("dice",)}, "always computed"),
        ({"both_empty": "one"}, "expected leave_out or perfect"),
        ({"boundary_mm": 0.0}, "boundary_mm"),
        ({"lesion_dilation": -1}, "lesion_dilation"),
        ({"lesion_min_mm3": NAN}, "lesion_min_mm3"),
        ({"tolerance_mm": INF}, "tolerance_mm"),
    ],
)
def test_faulty_options_are_named(options, match) -> None:
    with pytest.raises(ConfigError, match=match):
        MetricOptions(**options)
