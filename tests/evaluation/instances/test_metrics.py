"""Instance metrics against pycocotools, torchmetrics, and figures that can be counted by hand."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.evaluation.instances.average_precision import THRESHOLDS, average_precision
from medseg.evaluation.instances.instance_options import InstanceOptions
from medseg.evaluation.instances.metrics import match_instances, pool_counts
from medseg.labels.instance_overlaps import overlaps_of
from medseg.labels.instances import Instances


def squares(corners, size=4, shape=(24, 24), scores=None):
    masks = np.zeros((len(corners), *shape), bool)
    for mask, corner in zip(masks, corners, strict=True):
        mask[tuple(slice(c, c + size) for c in corner)] = True
    return Instances.from_masks(masks, scores=scores)


def random_pair(rng, shape=(60, 66), count=12):
    """References that may touch, and predictions near most of them, that may overlap, with distinct scores."""
    ids = np.zeros(shape, int)
    for k in range(1, count + 1):
        start = [int(rng.integers(0, n - 12)) for n in shape]
        ids[tuple(slice(s, s + int(rng.integers(6, 12))) for s in start)] = k
    reference = Instances.from_map(ids, classes={k: 1 + k % 2 for k in range(1, count + 1)})
    masks, classes = [], []
    for index, mask in enumerate(reference.to_masks()):
        if rng.random() < 0.2:
            continue
        noisy = np.roll(mask, rng.integers(-1, 2, len(shape)), tuple(range(len(shape))))
        noisy[rng.random(shape) < 0.002] = True
        masks.append(noisy)
        classes.append(int(reference.classes[index]) if rng.random() < 0.9 else 2)
    extra = np.zeros((2, *shape), bool)
    extra[0, 1:5, 1:4] = extra[1, 20:25, 20:25] = True
    scores = rng.random(len(masks) + 2)  # distinct, over images too
    return Instances.from_masks(np.concatenate([masks, extra]), [*classes, 1, 2], scores), reference


def of_class(instances, index):
    return instances.select(instances.classes == index)


def coco_figures(pairs):
    """AP, AP50 and AP75 by pycocotools of images `(prediction, reference)`, from masks as run lengths."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def encoded(instances):
        return [
            {**run, "counts": run["counts"].decode()}
            for run in (coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in instances.to_masks())
        ]

    truth, results = COCO(), []
    truth.dataset = {
        "info": {},
        "images": [{"id": k, "height": r.shape[0], "width": r.shape[1]} for k, (_, r) in enumerate(pairs, 1)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [],
    }
    for image, (prediction, reference) in enumerate(pairs, start=1):
        for run, label, area in zip(encoded(reference), reference.classes, reference.areas, strict=True):
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "segmentation": run,
                    "area": int(area),
                    "iscrowd": 0,
                    "bbox": [0, 0, 1, 1],
                }
            )
        for run, label, score in zip(encoded(prediction), prediction.classes, prediction.scores, strict=True):
            results.append(
                {"image_id": image, "category_id": int(label), "segmentation": run, "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_pycocotools(seed):
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng) for _ in range(4)]
    found = [
        pool_counts(match_instances(of_class(p, c), of_class(r, c)) for p, r in pairs).metrics()
        for c in (1, 2)
    ]
    mean = [np.mean([getattr(one, name) for one in found]) for name in ("ap", "ap50", "ap75")]
    assert 0.05 < mean[0] < 0.95
    assert mean == pytest.approx(coco_figures(pairs), abs=1e-12)


# Panoptic, segmentation and recognition quality of classes 1 and 2 by `torchmetrics.functional.detection.panoptic_quality` of
# torchmetrics 1.9.0. It is not installed for the tests, because lightning-fabric imports it wherever it is found, and with it
# torchvision and transformers, which takes seconds in each process that trains.
TORCHMETRICS = [
    [(0.443244888, 0.664867312, 0.666666687), (0.307590763, 0.768976897, 0.400000006)],
    [(0.483294090, 0.664529353, 0.727272749), (0.213943214, 0.695315421, 0.307692319)],
    [(0.132394363, 0.661971807, 0.200000003), (0.271120415, 0.632614295, 0.428571433)],
]


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_torchmetrics(seed):
    prediction, reference = random_pair(np.random.default_rng(seed))
    # torchmetrics takes maps, on which nothing overlaps.
    painted = prediction.to_map()
    kept = [int(k) - 1 for k in np.unique(painted) if k]
    prediction = Instances.from_map(painted, classes={k + 1: int(prediction.classes[k]) for k in kept})
    for c, expected in zip((1, 2), TORCHMETRICS[seed], strict=True):
        found = match_instances(of_class(prediction, c), of_class(reference, c)).metrics()
        assert found.tp > 0
        assert (found.pq, found.sq, found.rq) == pytest.approx(expected, rel=1e-6)


def test_counts_by_hand():
    reference = squares([(0, 0), (0, 10), (10, 0), (16, 16)])
    # One exact, one of IoU 12/20, one of IoU 8/24, one where there is nothing.
    prediction = squares([(0, 0), (0, 11), (12, 0), (10, 10)])
    found = match_instances(prediction, reference).metrics()
    assert (found.tp, found.fn, found.fp) == (2, 2, 2)
    assert found.f1 == found.rq == 0.5
    assert found.sq == pytest.approx((1 + 12 / 20) / 2)
    assert found.pq == pytest.approx(found.sq * 0.5)
    assert (found.detected, found.false_detections) == (3, 1)
    assert (found.sensitivity, found.precision) == (0.75, 0.75)
    # Of four of equal score two hit: precision 1/2 up to recall 1/2, which 51 of the 101 recalls do not exceed.
    assert found.ap50 == pytest.approx(1 / 2 * 51 / 101)
    stricter = match_instances(prediction, reference, InstanceOptions(detection_iou=0.5)).metrics()
    assert (stricter.detected, stricter.false_detections) == (2, 2)


def test_without_scores_the_curve_is_one_point():
    reference = squares([(0, 0), (0, 10), (10, 0), (16, 16)])
    prediction = squares([(10, 10), (0, 10), (0, 0)])
    found = match_instances(prediction, reference).metrics()
    # Precision 2/3 up to recall 1/2, which 51 of the 101 recalls do not exceed.
    assert found.ap50 == pytest.approx(2 / 3 * 51 / 101)
    backwards = match_instances(prediction.select([2, 1, 0]), reference).metrics()
    assert backwards.ap50 == found.ap50


def test_better_scores_raise_the_average_precision():
    reference = squares([(0, 0), (0, 10)])
    corners = [(0, 0), (0, 10), (12, 12)]
    good = match_instances(squares(corners, scores=[0.9, 0.8, 0.1]), reference).metrics()
    bad = match_instances(squares(corners, scores=[0.2, 0.1, 0.9]), reference).metrics()
    assert good.ap == pytest.approx(1)
    assert bad.ap == pytest.approx(2 / 3)


def test_an_iou_of_half_is_not_found():
    reference = squares([(0, 0)], size=4)
    halves = Instances.from_crops((24, 24), [(0, 0), (2, 0)], [np.ones((2, 4), bool)] * 2)
    assert match_instances(halves, reference).metrics().tp == 0
    assert match_instances(halves, reference).metrics().detected == 1


def test_every_instance_is_in_one_pair_even_if_predictions_overlap():
    reference = squares([(0, 0)])
    twice = squares([(0, 0), (0, 0)], scores=[0.9, 0.8])
    found = match_instances(twice, reference).metrics()
    assert (found.tp, found.fp) == (1, 1)
    over = overlaps_of(squares([(0, 0)]), squares([(0, 0), (1, 0)]))  # references that overlap each other
    assert over.iou.tolist() == [1.0, 12 / 20]
    assert over.one_to_one().tolist() == [0]


@pytest.mark.parametrize(
    ("predicted", "expected", "values"),
    [
        (0, 0, {"f1": math.nan, "pq": math.nan, "sq": math.nan, "ap": math.nan, "sensitivity": math.nan}),
        (0, 2, {"f1": 0, "pq": 0, "sq": math.nan, "ap": 0, "sensitivity": 0, "precision": math.nan}),
        (2, 0, {"f1": 0, "pq": 0, "sq": math.nan, "ap": math.nan, "sensitivity": math.nan, "precision": 0}),
    ],
)
def test_empty_images_have_defined_answers(predicted, expected, values):
    corners = [(0, 0), (10, 10)]
    found = match_instances(squares(corners[:predicted]), squares(corners[:expected])).metrics()
    for name, value in values.items():
        assert getattr(found, name) == pytest.approx(value, nan_ok=True), name


def test_false_predictions_in_an_empty_image_lower_the_pooled_precision():
    full = match_instances(squares([(0, 0)], scores=[0.5]), squares([(0, 0)]))
    empty = match_instances(squares([(9, 9)], scores=[0.9]), squares([]))
    assert full.metrics().ap == pytest.approx(1)
    assert pool_counts([full, empty]).metrics().ap == pytest.approx(0.5)
    assert pool_counts([]).metrics().predictions == 0


def test_flat_volumes_have_the_metrics_of_2d_images():
    prediction, reference = random_pair(np.random.default_rng(1))
    deep = [
        Instances.from_masks(np.repeat(one.to_masks()[..., None], 3, -1), one.classes, one.scores)
        for one in (prediction, reference)
    ]
    assert match_instances(*deep).metrics() == match_instances(prediction, reference).metrics()


@pytest.mark.slow
def test_many_instances_of_an_image_and_of_a_volume():
    flat = np.kron(np.arange(1, 325).reshape(18, 18), np.ones((55, 55), int))
    deep = np.kron(np.arange(1, 126).reshape(5, 5, 5), np.ones((51, 51, 51), np.int32)).astype(np.int32)
    for ids in (flat, deep):
        moved = np.roll(ids, 3, axis=0)
        found = match_instances(Instances.from_map(moved, scores=None), Instances.from_map(ids)).metrics()
        assert found.tp == ids.max()
    assert average_precision(np.empty(0), np.zeros((10, 0), bool), 3).tolist() == [0.0] * len(THRESHOLDS)


def test_different_shapes_raise():
    with pytest.raises(DataError, match="equal shapes"):
        overlaps_of(squares([]), squares([], shape=(9, 9)))


def test_another_matching_iou_changes_pairs_and_what_follows_from_them() -> None:
    reference = squares([(2, 2), (12, 2)])
    prediction = squares([(2, 4), (12, 2)])  # IoU 1/3 and 1
    strict = match_instances(prediction, reference).metrics()
    loose = match_instances(prediction, reference, InstanceOptions(matching_iou=0.3)).metrics()
    assert (strict.tp, strict.fp, strict.fn, strict.accuracy) == (1, 1, 1, pytest.approx(1 / 3))
    assert (loose.tp, loose.fp, loose.fn, loose.accuracy) == (2, 0, 0, 1)
    assert loose.sq == pytest.approx((1 + 1 / 3) / 2)
    assert (loose.ap, loose.mean_accuracy) == (strict.ap, strict.mean_accuracy)
    above = match_instances(prediction, reference, InstanceOptions(matching_iou=0.99)).metrics()
    assert above.tp == 1


def test_below_one_half_each_instance_is_still_in_one_pair() -> None:
    reference = squares([(2, 2)], size=8)
    prediction = squares([(2, 2), (6, 2), (2, 6)], size=4)
    found = match_instances(prediction, reference, InstanceOptions(matching_iou=0.1)).metrics()
    assert (found.tp, found.fp, found.fn) == (1, 2, 0)


def test_mean_accuracy_is_the_mean_over_ten_thresholds() -> None:
    reference, prediction = squares([(2, 2)], size=10), squares([(2, 3)], size=10)
    iou = 90 / 110  # above 0.5 to 0.8, seven thresholds
    assert match_instances(prediction, reference).metrics().mean_accuracy == pytest.approx(0.7)
    assert 0.8 < iou < 0.85


@pytest.mark.parametrize("seed", range(4))
def test_aji_equals_the_algorithm_of_its_paper(seed) -> None:
    """Kumar et al. 2017, algorithm 1, on masks of the size of the image."""
    rng = np.random.default_rng(seed)
    prediction, reference = random_pair(rng)
    ours, theirs = prediction.to_masks(), reference.to_masks()
    shared = united = 0
    used = set()
    for mask in theirs:
        iou = [(mask & other).sum() / (mask | other).sum() for other in ours]
        best = int(np.argmax(iou))
        if iou[best] > 0:
            shared += (mask & ours[best]).sum()
            united += (mask | ours[best]).sum()
            used.add(best)
        else:
            united += mask.sum()
    united += sum(other.sum() for index, other in enumerate(ours) if index not in used)
    assert match_instances(prediction, reference).metrics().aji == pytest.approx(shared / united)


def test_aji_and_accuracy_of_absent_instances() -> None:
    some, none = squares([(2, 2)]), Instances.empty((24, 24))
    for pair in ((some, none), (none, some)):
        found = match_instances(*pair).metrics()
        assert (found.aji, found.accuracy, found.mean_accuracy) == (0, 0, 0)
    nothing = match_instances(none, none).metrics()
    assert np.isnan([nothing.aji, nothing.accuracy, nothing.mean_accuracy]).all()


def test_pooled_cases_are_counted_together() -> None:
    options = InstanceOptions(size_bounds_mm3=(10,))
    first = match_instances(squares([(2, 2)]), squares([(2, 2)]), options)
    second = match_instances(squares([(2, 2), (12, 12)]), squares([(2, 4)]), options)
    pooled = pool_counts([first, second])
    assert pooled.metrics().aji == pytest.approx((16 + 8) / (16 + 24 + 16))
    assert [one.references for one in pooled.by_size] == [0, 2]
    assert pooled.by_size[1].fp == 2
