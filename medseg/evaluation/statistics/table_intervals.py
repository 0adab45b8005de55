"""Confidence intervals of every figure of a table of label metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medseg.evaluation.statistics.bootstrap import (
    FEW_SUBJECTS,
    UNSEEN_FAILURES_BELOW,
    Interval,
    mean_of_known,
    resampled_means,
    unseen_failure_rate,
)
from medseg.runtime.formatting import pluralise


def table_intervals(
    rows: Mapping[tuple[str, str], Sequence[float]], subjects: Mapping[str, str], metrics: Sequence[str]
) -> dict[str, dict[str, Interval]]:
    """Return the 95 % intervals of the means over cases, by label name and then by metric.

    Args:
        rows: The values of all metrics by case and label; a label that was not measured in a case is left out.
        subjects: Subject by case id. All cases of a subject are resampled together.
        metrics: Names of the metrics, in the order of the values.

    Returns:
        The intervals; those of the mean of the labels' means are under the name ``""``.
    """
    cases, names = (tuple(dict.fromkeys(key[part] for key in rows)) for part in (0, 1))
    place_of = [{key: place for place, key in enumerate(keys)} for keys in (cases, names)]
    values = np.full((len(cases), len(metrics), len(names)), np.nan)
    for (case, name), found in rows.items():
        values[place_of[0][case], :, place_of[1][name]] = found
    if not values.size:
        return {"": {metric: Interval(float("nan"), float("nan")) for metric in metrics}}
    owners = [subjects[case] for case in cases]
    draws = resampled_means(values.reshape(len(cases), -1), owners).reshape(-1, *values.shape[1:])
    known = np.isfinite(values)

    def measured(where: np.ndarray) -> int:
        return len({owner for owner, one in zip(owners, where, strict=True) if one})

    intervals = {
        "": {
            metric: Interval.from_draws(mean_of_known(draws[:, j]), measured(known[:, j].any(-1)))
            for j, metric in enumerate(metrics)
        }
    }
    for k, name in enumerate(names):
        intervals[name] = {
            metric: Interval.from_draws(draws[:, j, k], measured(known[:, j, k]))
            for j, metric in enumerate(metrics)
        }
    return intervals


def subjects_note(subjects: int) -> str:
    """Return the number of subjects in words, with a remark if there are few.

    Args:
        subjects: Number of subjects.

    Returns:
        Such as "12 subjects, which are few".
    """
    return pluralise(subjects, "subject") + (", which are few" if subjects < FEW_SUBJECTS else "")


def unseen_failures_note(subjects: int) -> str:
    """Return a sentence without a full stop about failures that too few subjects may not show.

    Args:
        subjects: Number of subjects.

    Returns:
        The sentence; empty if there are many subjects, or one, for which there is no interval.
    """
    if not 1 < subjects < UNSEEN_FAILURES_BELOW:
        return ""
    rate = unseen_failure_rate(subjects)
    return f"failures in up to {100 * rate:.0f} % of patients may be absent from {subjects} subjects, and then from every interval"


def cautions(subjects: int) -> list[str]:
    """Return what a page says about intervals if there are few subjects.

    Args:
        subjects: Number of subjects.

    Returns:
        Sentences with full stops.
    """
    few = f"These are few subjects: below {FEW_SUBJECTS}, an interval can miss the true mean more often than in 5 of 100 studies."
    unseen = unseen_failures_note(subjects)
    found = [few] if subjects < FEW_SUBJECTS else []
    return [*found, f"{unseen[0].upper()}{unseen[1:]}."] if unseen else found
