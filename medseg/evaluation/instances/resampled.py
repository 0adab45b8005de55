"""Confidence intervals of instance metrics: subjects are resampled, and their counts are pooled as those of the study are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.instances.average_precision import THRESHOLDS, average_precision
from medseg.evaluation.instances.metrics import MatchCounts, threshold_index
from medseg.evaluation.statistics.bootstrap import Interval, mean_of_known, resampled_weights

Array = NDArray[np.float64]


def instance_intervals(
    counts: Mapping[str, Mapping[str, MatchCounts]], subjects: Mapping[str, str]
) -> dict[str, dict[str, Interval]]:
    """Return the 95 % intervals of the metrics over all cases together, by label name and then by metric.

    Args:
        counts: The counts by label name and case id.
        subjects: Subject by case id. All cases of a subject are resampled together.

    Returns:
        The intervals of all metrics but counts; those of the mean of the labels are under the name ``""``.
    """
    names = sorted({subjects[case] for by_case in counts.values() for case in by_case})
    if not names:
        return {"": {}}
    place = {name: index for index, name in enumerate(names)}
    drawn: dict[str, list[dict[str, Array]]] = {label: [] for label in counts}
    for weights in resampled_weights(len(names)):
        for label, by_case in counts.items():
            owners = [place[subjects[case]] for case in by_case]
            drawn[label].append(_resampled_metrics(tuple(by_case.values()), weights[:, owners]))
    draws = {
        label: {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
        for label, parts in drawn.items()
    }
    intervals = {}
    for label, by_metric in draws.items():
        measured = {
            subjects[case] for case, one in counts[label].items() if one.references or len(one.scores)
        }
        intervals[label] = {
            metric: Interval.from_draws(values, len(measured)) for metric, values in by_metric.items()
        }
    together = {
        metric: np.stack([one[metric] for one in draws.values()], axis=1)
        for metric in next(iter(draws.values()))
    }
    intervals[""] = {
        metric: Interval.from_draws(mean_of_known(values), len(names)) for metric, values in together.items()
    }
    return intervals


def _resampled_metrics(parts: Sequence[MatchCounts], weights: Array) -> dict[str, Array]:
    """Return each metric for every resample; `weights` `(draws, cases)` says how often a case was drawn."""
    sums = {
        name: weights @ np.array([getattr(part, name) for part in parts], dtype=np.float64)
        for name in ("references", "tp", "iou_sum", "detected", "false_detections", "shared", "united")
    }
    predictions = weights @ np.array([len(part.scores) for part in parts], dtype=np.float64)
    pairs = weights @ np.stack([part.pairs for part in parts]).astype(np.float64)
    either = predictions + sums["references"]
    precisions = _resampled_precisions(parts, weights)
    f1 = _ratios(2 * sums["tp"], either)
    return {
        "f1": f1,
        "pq": _ratios(2 * sums["iou_sum"], either),
        "sq": _ratios(sums["iou_sum"], sums["tp"]),
        "rq": f1,
        "sensitivity": _ratios(sums["detected"], sums["references"]),
        "precision": _ratios(predictions - sums["false_detections"], predictions),
        "ap": precisions.mean(axis=1),
        "ap50": precisions[:, threshold_index(0.5)],
        "ap75": precisions[:, threshold_index(0.75)],
        "accuracy": _ratios(sums["tp"], either - sums["tp"]),
        "mean_accuracy": _ratios(pairs, either[:, None] - pairs).mean(axis=1),
        "aji": _ratios(sums["shared"], sums["united"]),
    }


def _resampled_precisions(parts: Sequence[MatchCounts], weights: Array) -> Array:
    """Return the average precision `(draws, thresholds)` of every resample."""
    scores = np.concatenate([part.scores for part in parts])
    hits = np.concatenate([part.hits for part in parts], axis=1)
    case_of = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    different, which = np.unique(weights, axis=0, return_inverse=True)  # few cases are drawn in few ways
    references = different @ np.array([part.references for part in parts], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, hits, case_of = scores[order], hits[:, order], case_of[order]
    found = np.empty((len(different), len(THRESHOLDS)))
    for draw, (times, expected) in enumerate(zip(different, references, strict=True)):
        drawn = times[case_of] > 0
        found[draw] = average_precision(scores[drawn], hits[:, drawn], expected, copies=times[case_of[drawn]])
    return found[which.reshape(-1)]


def _ratios(part: Array, whole: Array) -> Array:
    """Return quotients, NaN where the divisor is 0."""
    undefined = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.asarray(np.divide(part, whole, out=undefined, where=whole > 0))
