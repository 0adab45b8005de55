"""How well predicted instances agree with reference instances, class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.instances.average_precision import THRESHOLDS, average_precision, match_by_score
from medseg.labels.instance_overlaps import overlaps_of
from medseg.labels.instances import Instances

MATCHED_ABOVE = 0.5


@dataclass(frozen=True)
class InstanceMetrics:
    """Figures of one class, of one case or of several together. Which values an absent class has:

    | predictions | references | f1, pq, rq | sq  | ap, ap50, ap75 | sensitivity | precision |
    |-------------|------------|------------|-----|----------------|-------------|-----------|
    | none        | none       | NaN        | NaN | NaN            | NaN         | NaN       |
    | none        | some       | 0          | NaN | 0              | 0           | NaN       |
    | some        | none       | 0          | NaN | NaN            | NaN         | 0         |

    NaN is not counted in means. A class that is predicted where there is none lowers F1 and PQ, not AP, whose
    recall has no meaning then; over several cases it lowers AP too.

    Attributes:
        references: reference instances.
        predictions: predicted instances.
        found: pairs of a prediction and a reference with IoU > 0.5, each instance in one pair.
        missed: references without such a prediction.
        false: predictions without such a reference.
        f1: 2 found / (predictions + references).
        pq: panoptic quality, ``sq * rq`` (Kirillov et al. 2019).
        sq: segmentation quality, mean IoU of the pairs found; NaN without one.
        rq: recognition quality, the same number as `f1`.
        detected: references that some prediction touches, or meets with the detection IoU.
        unfounded: predictions that touch no reference, or meet none with the detection IoU.
        sensitivity: detected / references (lesion-wise recall).
        precision: 1 - unfounded / predictions (lesion-wise).
        ap: average precision, mean over IoU 0.5, 0.55, ... 0.95 (Lin et al. 2014).
        ap50, ap75: average precision at IoU 0.5 and 0.75.
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


@dataclass(frozen=True)
class MatchCounts:
    """What one class of one case contributes; cases are put together with `pooled`.

    Attributes:
        references: reference instances.
        scores: of the predictions, `(m,)`.
        hits: which predictions hit a reference, `(10, m)`, see `hits_of`.
        found: pairs with IoU > 0.5. iou_sum: of these.
        detected, unfounded: see `InstanceMetrics`.
    """

    references: int
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    tp: int
    iou_sum: float
    detected: int
    false_detections: int

    def metrics(self) -> InstanceMetrics:
        """The figures, as defined by `InstanceMetrics`."""
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
            ap50=float(precisions[_index_of(0.5)]),
            ap75=float(precisions[_index_of(0.75)]),
        )


def match_instances(
    prediction: Instances, reference: Instances, *, detection_iou: float = 0.0
) -> MatchCounts:
    """Compare instances of one class of one image.

    Args:
        prediction: instances of one class, scored.
        reference: instances of that class.
        detection_iou: IoU from which a reference counts as detected; 0 for any shared voxel.

    Raises:
        DataError: images of different shapes.
    """
    overlaps = overlaps_of(prediction, reference)
    pairs = overlaps.one_to_one(MATCHED_ABOVE)
    founded, detected = overlaps.touched(detection_iou)
    return MatchCounts(
        references=len(reference),
        scores=prediction.scores,
        hits=match_by_score(overlaps, prediction.scores),
        tp=len(pairs),
        iou_sum=float(overlaps.iou[pairs].sum()),
        detected=int(detected.sum()),
        false_detections=int((~founded).sum()),
    )


def pool_counts(parts: Iterable[MatchCounts]) -> MatchCounts:
    """The evidence of several cases as one: counts are summed, predictions ranked together."""
    parts = list(parts)
    return MatchCounts(
        references=sum(part.references for part in parts),
        scores=np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        hits=np.concatenate([np.zeros((len(THRESHOLDS), 0), bool), *(part.hits for part in parts)], axis=1),
        tp=sum(part.tp for part in parts),
        iou_sum=sum(part.iou_sum for part in parts),
        detected=sum(part.detected for part in parts),
        false_detections=sum(part.false_detections for part in parts),
    )


def _index_of(threshold: float) -> int:
    return int(np.abs(THRESHOLDS - threshold).argmin())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
