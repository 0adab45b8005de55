"""Average precision of scored instances, as on COCO (Lin et al. 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.labels.instance_overlaps import InstanceOverlaps

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)


def match_by_score(overlaps: InstanceOverlaps, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which predictions `(10, m)` match a reference, for each of `THRESHOLDS`.

    Predictions choose in descending order of score; each takes the unmatched reference of highest IoU (the last of
    equals) if that IoU reaches the threshold.

    Args:
        overlaps: Overlaps of the predictions and references of one image and class.
        scores: Scores `(m,)` of the predictions.

    Returns:
        `(10, m)`, True for a match.
    """
    hits = np.zeros((len(THRESHOLDS), overlaps.predictions), dtype=bool)
    first = np.searchsorted(overlaps.predicted, np.arange(overlaps.predictions + 1))
    order = np.argsort(-scores, kind="stable")
    for hit, threshold in zip(hits, THRESHOLDS, strict=True):
        taken = np.zeros(overlaps.references, dtype=bool)
        for prediction in order:
            pairs = slice(first[prediction], first[prediction + 1])
            candidates = overlaps.expected[pairs]
            iou = np.where(taken[candidates], -1, overlaps.iou[pairs])
            if len(iou) and iou.max() >= threshold - 1e-10:
                hit[prediction] = True
                taken[candidates[len(iou) - 1 - iou[::-1].argmax()]] = True
    return hits


def average_precision(
    scores: NDArray[np.float64],
    hits: NDArray[np.bool_],
    references: float,
    *,
    copies: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the area under the precision-recall curve, with monotonic precision sampled at 101 recalls.

    Predictions of equal score are counted together, so that their order has no influence. If all have the same score, the
    curve is a single point.

    Args:
        scores: Scores `(m,)` of the predictions of one class, over all images.
        hits: Matches `(t, m)`, see `match_by_score`.
        references: Number of reference instances, over all images.
        copies: How often each prediction counts, `(m,)`, in a resample of the images; None for once.

    Returns:
        `(t,)`, one per threshold; NaN without references, 0 without predictions.
    """
    if references == 0:
        return np.full(len(hits), np.nan)
    if not len(scores):
        return np.zeros(len(hits))
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    counted = np.ones(len(scores)) if copies is None else copies[order]
    found = (hits[:, order] * counted).cumsum(axis=1)[:, last_of_score]
    precision = found / counted.cumsum()[last_of_score]
    recall = found / references
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(hits))
    for index, (p, r) in enumerate(zip(precision, recall, strict=True)):
        at = np.searchsorted(r, _RECALLS, side="left")
        result[index] = np.append(p, 0)[at].mean()
    return result
