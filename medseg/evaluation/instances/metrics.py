"""Agreement of predicted instances with reference instances, class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.instances.average_precision import THRESHOLDS, average_precision, match_by_score
from medseg.evaluation.instances.instance_options import DEFAULT_INSTANCE_OPTIONS, InstanceOptions
from medseg.evaluation.instances.size_classes import SizeCounts, count_by_size, pool_sizes
from medseg.labels.instance_overlaps import InstanceOverlaps, overlaps_of
from medseg.labels.instances import Instances


@dataclass(frozen=True)
class InstanceMetrics:
    """The metrics of one class, of one case or of several together.

    Values for an absent class:

    | predictions | references | f1, pq, rq, accuracy, aji | sq  | ap, ap50, ap75 | sensitivity | precision |
    |-------------|------------|---------------------------|-----|----------------|-------------|-----------|
    | none        | none       | NaN                       | NaN | NaN            | NaN         | NaN       |
    | none        | some       | 0                         | NaN | 0              | 0           | NaN       |
    | some        | none       | 0                         | NaN | NaN            | NaN         | 0         |

    Means leave out NaN. A class that is predicted where there is none lowers F1 and PQ but not AP, because its recall
    is undefined; over several cases it lowers AP, too.

    Attributes:
        references: Number of reference instances.
        predictions: Number of predicted instances.
        tp: Pairs of a prediction and a reference with an IoU above `InstanceOptions.matching_iou` (0.5); each instance is in at
            most one pair.
        fn: References without such a prediction.
        fp: Predictions without such a reference.
        f1: 2 tp / (predictions + references).
        pq: Panoptic quality, ``sq * rq`` (Kirillov et al. 2019).
        sq: Segmentation quality, the mean IoU of the pairs; NaN without pairs.
        rq: Recognition quality, the same number as `f1`.
        detected: References that share a voxel with a prediction, or reach the detection IoU with one.
        false_detections: Predictions that share no voxel with a reference, or reach the detection IoU with none.
        sensitivity: detected / references (lesion-wise recall).
        precision: 1 - false_detections / predictions (lesion-wise).
        ap: Average precision, the mean over IoU 0.5, 0.55, ... 0.95 (Lin et al. 2014).
        ap50: Average precision at IoU 0.5.
        ap75: Average precision at IoU 0.75.
        accuracy: tp / (tp + fp + fn), also called critical success index; StarDist and Cellpose call it average precision.
        mean_accuracy: Mean of the same ratio for pairs with IoU above 0.5, 0.55, ... 0.95: the score of the Data Science Bowl
            2018 (Caicedo et al. 2019).
        aji: Aggregated Jaccard index (Kumar et al. 2017): the voxels that each reference shares with the prediction of
            highest IoU, divided by their unions and the voxels of all other predictions.

    >>> import numpy as np
    >>> from medseg.labels.instances import Instances
    >>> lesions = Instances.from_map(np.array([[[1, 0, 2]]]))
    >>> match_instances(lesions, lesions).metrics().f1
    1.0
    """

    references: int
    predictions: int
    tp: int
    fn: int
    fp: int
    f1: float
    pq: float
    sq: float
    rq: float
    detected: int
    false_detections: int
    sensitivity: float
    precision: float
    ap: float
    ap50: float
    ap75: float
    accuracy: float
    mean_accuracy: float
    aji: float


@dataclass(frozen=True)
class MatchCounts:
    """The contribution of one class of one case to the metrics; `pool_counts` combines cases.

    Attributes:
        references: Number of reference instances.
        scores: Scores `(m,)` of the predictions.
        hits: Whether each prediction matches a reference, `(10, m)`, see `match_by_score`.
        tp: Number of pairs with an IoU above that of the options.
        iou_sum: Sum of the IoU of these pairs.
        detected: See `InstanceMetrics`.
        false_detections: See `InstanceMetrics`.
        pairs: Number of pairs `(10,)` with an IoU above each of the thresholds 0.5, 0.55, ... 0.95.
        shared: Numerator of the aggregated Jaccard index, in voxels.
        united: Its denominator.
        by_size: Counts by size, see `InstanceOptions.size_bounds_mm3`.
    """

    references: int
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    tp: int
    iou_sum: float
    detected: int
    false_detections: int
    pairs: NDArray[np.int64]
    shared: int
    united: int
    by_size: tuple[SizeCounts, ...] = ()

    def metrics(self) -> InstanceMetrics:
        """Return the metrics, as defined by `InstanceMetrics`."""
        predictions = len(self.scores)
        f1 = _ratio(2 * self.tp, predictions + self.references)
        sq = _ratio(self.iou_sum, self.tp)
        precisions = average_precision(self.scores, self.hits, self.references)
        return InstanceMetrics(
            references=self.references,
            predictions=predictions,
            tp=self.tp,
            fn=self.references - self.tp,
            fp=predictions - self.tp,
            f1=f1,
            pq=_ratio(2 * self.iou_sum, predictions + self.references),
            sq=sq,
            rq=f1,
            detected=self.detected,
            false_detections=self.false_detections,
            sensitivity=_ratio(self.detected, self.references),
            precision=_ratio(predictions - self.false_detections, predictions),
            ap=float(precisions.mean()),
            ap50=float(precisions[threshold_index(0.5)]),
            ap75=float(precisions[threshold_index(0.75)]),
            accuracy=_ratio(self.tp, predictions + self.references - self.tp),
            mean_accuracy=float(
                np.mean([_ratio(int(tp), predictions + self.references - int(tp)) for tp in self.pairs])
            ),
            aji=_ratio(self.shared, self.united),
        )


def match_instances(
    prediction: Instances,
    reference: Instances,
    options: InstanceOptions = DEFAULT_INSTANCE_OPTIONS,
    *,
    voxel_mm3: float = 1.0,
) -> MatchCounts:
    """Compare the instances of one class of one image.

    Args:
        prediction: Instances of one class, with scores.
        reference: Instances of the same class.
        options: How instances are matched, and by which sizes they are counted.
        voxel_mm3: Volume of a voxel in mm³, for the sizes.

    Returns:
        The counts, from which `MatchCounts.metrics` computes the metrics.

    Raises:
        DataError: The images have different shapes.
    """
    overlaps = overlaps_of(prediction, reference)
    # Pairs are chosen from the highest IoU downwards, so those above a higher threshold are the first of them.
    chosen = overlaps.one_to_one(min(options.matching_iou, float(THRESHOLDS[0])))
    pairs = chosen[overlaps.iou[chosen] > options.matching_iou]
    founded, detected = overlaps.touched(options.detection_iou)
    matched = _matched(overlaps, pairs)
    areas = prediction.areas, reference.areas
    shared, united = _aggregated_jaccard(overlaps, *areas)
    sizes = (np.asarray(areas[0] * voxel_mm3), np.asarray(areas[1] * voxel_mm3))
    return MatchCounts(
        references=len(reference),
        scores=prediction.scores,
        hits=match_by_score(overlaps, prediction.scores),
        tp=len(pairs),
        iou_sum=float(overlaps.iou[pairs].sum()),
        detected=int(detected.sum()),
        false_detections=int((~founded).sum()),
        pairs=np.array([np.count_nonzero(overlaps.iou[chosen] > at) for at in THRESHOLDS]),
        shared=shared,
        united=united,
        by_size=count_by_size(sizes, matched, (founded, detected), options.size_bounds_mm3),
    )


def paired_instances(
    prediction: Instances, reference: Instances, matching_iou: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which instances of one class are in a pair, see `InstanceMetrics.tp`.

    Args:
        prediction: Predicted instances `(m,)`.
        reference: Reference instances `(n,)`.
        matching_iou: IoU above which a prediction and a reference are a pair.

    Returns:
        One flag per prediction `(m,)` and one per reference `(n,)`.
    """
    overlaps = overlaps_of(prediction, reference)
    return _matched(overlaps, overlaps.one_to_one(matching_iou))


def _matched(
    overlaps: InstanceOverlaps, pairs: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which predictions and which references are in a pair."""
    matched = (np.zeros(overlaps.predictions, bool), np.zeros(overlaps.references, bool))
    matched[0][overlaps.predicted[pairs]] = matched[1][overlaps.expected[pairs]] = True
    return matched


def _aggregated_jaccard(
    overlaps: InstanceOverlaps, predicted: NDArray[np.int64], expected: NDArray[np.int64]
) -> tuple[int, int]:
    """Return numerator and denominator of the aggregated Jaccard index, in voxels."""
    best = np.full(overlaps.references, -1)
    for pair in np.argsort(-overlaps.iou, kind="stable")[
        ::-1
    ]:  # that of highest IoU, the first of equals, is written last
        best[overlaps.expected[pair]] = pair
    pairs = best[best >= 0]
    shared = int(overlaps.shared[pairs].sum())
    used = np.unique(overlaps.predicted[pairs])
    repeated = predicted[
        overlaps.predicted[pairs]
    ].sum()  # a prediction counts for each reference that it suits best
    united = expected.sum() + repeated - shared + predicted.sum() - predicted[used].sum()
    return shared, int(united)


def pool_counts(parts: Iterable[MatchCounts]) -> MatchCounts:
    """Combine several cases: counts are summed, predictions are ranked together.

    Args:
        parts: The counts of each case.

    Returns:
        The counts of all cases together.
    """
    parts = list(parts)
    return MatchCounts(
        references=sum(part.references for part in parts),
        scores=np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        hits=np.concatenate([np.zeros((len(THRESHOLDS), 0), bool), *(part.hits for part in parts)], axis=1),
        tp=sum(part.tp for part in parts),
        iou_sum=sum(part.iou_sum for part in parts),
        detected=sum(part.detected for part in parts),
        false_detections=sum(part.false_detections for part in parts),
        pairs=np.sum([np.zeros(len(THRESHOLDS), np.int64), *(part.pairs for part in parts)], axis=0),
        shared=sum(part.shared for part in parts),
        united=sum(part.united for part in parts),
        by_size=pool_sizes(part.by_size for part in parts),
    )


def threshold_index(threshold: float) -> int:
    """Return the place of an IoU in `THRESHOLDS`.

    Args:
        threshold: One of them.

    Returns:
        The index.
    """
    return int(np.abs(THRESHOLDS - threshold).argmin())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
