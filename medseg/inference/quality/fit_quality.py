"""Fit the quality model to out-of-fold predictions, whose true Dice and reference volumes are known.

Regressions and quantiles are cross-fitted: the residual or deviation of a case is that from a fit without its fold. Intervals of
the Dice are those of cross-validation residuals (Barber, Candès, Ramdas and Tibshirani 2021, *Predictive Inference with the
Jackknife+*, without its last step: the regression is fitted to all cases). Intervals of volumes are split conformal, separately for
labels that were and were not predicted (a taxonomy in the sense of Vovk et al. 2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medseg.inference.quality.conformal import conformal_interval, conformal_quantile
from medseg.inference.quality.feature_kinds import FEATURE_KINDS
from medseg.inference.quality.image_features import Features
from medseg.inference.quality.quality_model import (
    EXPECTED_DICE,
    DiceRegression,
    Measured,
    QualityModel,
    UsualRange,
    UsualRanges,
    VolumeRatios,
    deviations,
    place,
)
from medseg.inference.quality.too_few_cases import LEAST_CASES, LEAST_FOR_FLAGS

COVERAGE = 0.9
FLAGGED_SHARE = 0.02
"""Nominal fraction of usual cases with a flag. Networks of other folds and chance add to it, and 5 % is to be kept."""
_PERCENTILES = (2, 50, 98)
_GROUPS = 5  # for cross-fitting within a single fold
_PENALTIES = np.geomspace(1e-2, 1e2, 9)  # per case
_DIGITS = 6


@dataclass(frozen=True)
class ReferenceCase:
    """An out-of-fold case with its reference.

    Attributes:
        case: Case id.
        fold: Fold that held it out.
        features: Properties of image and prediction.
        dice: True Dice by label; labels without one, such as those absent in both, are left out.
        volumes_ml: Predicted volume by label that was annotated.
        reference_ml: Reference volume by label that was annotated.
    """

    case: str
    fold: int
    features: Features
    dice: Mapping[str, float]
    volumes_ml: Mapping[str, float]
    reference_ml: Mapping[str, float]


def fit_quality(
    cases: Sequence[ReferenceCase], *, coverage: float = COVERAGE, flagged_share: float = FLAGGED_SHARE
) -> QualityModel:
    """Fit a quality model, and measure by cross-validation how well such a model works.

    Args:
        cases: Out-of-fold cases of all folds, at least one.
        coverage: Nominal coverage of intervals.
        flagged_share: Nominal fraction of usual cases with a flag.

    Returns:
        The quality model. Labels and properties with fewer than 20 cases are left out.
    """
    fitted = _fitted(cases, coverage, flagged_share)
    folds = sorted({case.fold for case in cases})
    if len(folds) < 2:
        return fitted
    others = {
        fold: _fitted([case for case in cases if case.fold != fold], coverage, flagged_share)
        for fold in folds
    }
    return fitted.replace(measured=measure_quality(cases, others).to_plain())


def measure_quality(cases: Sequence[ReferenceCase], models: Mapping[int, QualityModel]) -> Measured:
    """Measure coverage, flagged fraction and rank correlation.

    Args:
        cases: Cases with references.
        models: For each fold, a quality model that was fitted without its cases.

    Returns:
        The figures over all cases and labels.
    """
    dice_inside, volume_inside, flagged, pairs = [], [], [], []
    for case in cases:
        model = models[case.fold]
        found = model.judge(case.features)
        if model.threshold is not None:
            flagged.append(found.to_review)
        for one in found.labels:
            true, reference = case.dice.get(one.name), case.reference_ml.get(one.name)
            if true is not None and one.dice is not None:
                pairs.append((one.dice, true))
                if one.dice_low is not None and one.dice_high is not None:
                    dice_inside.append(one.dice_low <= true <= one.dice_high)
            if reference is not None and one.volume_low_ml is not None and one.volume_high_ml is not None:
                volume_inside.append(one.volume_low_ml <= reference <= one.volume_high_ml)
    return Measured(
        dice_coverage=_mean(dice_inside),
        volume_coverage=_mean(volume_inside),
        flagged=_mean(flagged),
        correlation=_rank_correlation(pairs),
    )


def _fitted(cases: Sequence[ReferenceCase], coverage: float, flagged_share: float) -> QualityModel:
    groups = _groups(cases)
    names = list(dict.fromkeys(name for case in cases for name in case.volumes_ml))
    usual, largest = _calibrated(cases, groups)
    found = {name: _regression(cases, groups, name, usual, coverage) for name in names}
    if len(cases) >= LEAST_FOR_FLAGS:
        flagged_share = max(flagged_share, 1 / (len(cases) + 1))
    known = [(name, one) for name, one in found.items() if one is not None]
    expected = [
        replace(
            case,
            features={EXPECTED_DICE: {name: values[index] for name, (_, values) in known if index in values}},
        )
        for index, case in enumerate(cases)
    ]
    of_dice, largest_of_dice = _calibrated(expected, groups)
    return QualityModel(
        cases=len(cases),
        coverage=coverage,
        flagged_share=flagged_share,
        threshold=_finite(conformal_quantile(np.maximum(largest, largest_of_dice), 1 - flagged_share)),
        dice={name: regression for name, (regression, _) in known},
        volumes={name: _ratios(cases, name, coverage) for name in names},
        usual={**usual, **of_dice},
    )


def _groups(cases: Sequence[ReferenceCase]) -> NDArray[np.int64]:
    """Return the folds of cases; within a single fold, five groups."""
    folds = np.array([case.fold for case in cases])
    return folds if len(set(folds.tolist())) > 1 else np.arange(len(cases)) % _GROUPS


def _regression(
    cases: Sequence[ReferenceCase],
    groups: NDArray[np.int64],
    name: str,
    usual: UsualRanges,
    coverage: float,
) -> tuple[DiceRegression, dict[int, float]] | None:
    """Return the regression of one label and the cross-fitted expectation by index of a case; None with too few cases."""
    known = [
        index for index, case in enumerate(cases) if name in case.dice and case.volumes_ml.get(name, 0.0) > 0
    ]
    if len(known) < LEAST_CASES:
        return None
    columns = [
        (kind, subject)
        for kind, by_subject in usual.items()
        for subject in by_subject
        if not FEATURE_KINDS[kind].of_label or subject == name or subject.startswith(f"{name} in ")
    ]
    x = np.array([[place(cases[index].features, *column, usual) for column in columns] for index in known])
    y = np.array([cases[index].dice[name] for index in known])
    own, expected = groups[known], np.zeros(len(known))
    for group in np.unique(own):
        intercept, weights = _ridge(x[own != group], y[own != group])
        expected[own == group] = np.clip(intercept + x[own == group] @ weights, 0, 1)
    intercept, weights = _ridge(x, y)
    by_kind: dict[str, dict[str, float]] = {}
    for (kind, subject), weight in zip(columns, weights, strict=True):
        by_kind.setdefault(kind, {})[subject] = _short(float(weight))
    low, high = map(_finite, conformal_interval(y - expected, coverage))
    regression = DiceRegression(
        intercept=_short(intercept), weights=by_kind, low=low, high=high, cases=len(known)
    )
    return regression, dict(zip(known, expected.tolist(), strict=True))


def _ridge(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return intercept and weights of a ridge regression whose penalty has the least leave-one-out error."""
    if len(y) < 2 or not x.shape[1]:
        return float(np.mean(y)) if len(y) else 0.0, np.zeros(x.shape[1])
    means, middle = x.mean(0), float(y.mean())
    u, singular, vt = np.linalg.svd(x - means, full_matrices=False)
    projected = u.T @ (y - middle)
    best: tuple[float, NDArray[np.float64]] = (math.inf, np.zeros(x.shape[1]))
    for penalty in _PENALTIES * len(y):
        kept = singular**2 / (singular**2 + penalty)
        leverage = (u**2 * kept).sum(1) + 1 / len(y)
        left_out = (y - middle - u @ (kept * projected)) / (1 - np.minimum(leverage, 0.999))
        error = float(np.mean(left_out**2))
        if error < best[0]:
            best = error, vt.T @ (singular / (singular**2 + penalty) * projected)
    return middle - float(means @ best[1]), best[1]


def _ratios(cases: Sequence[ReferenceCase], name: str, coverage: float) -> VolumeRatios:
    """Return the interval of the volume of one label."""
    pairs = [(case.volumes_ml[name], case.reference_ml[name]) for case in cases if name in case.reference_ml]
    logs = [math.log(true / found) if true > 0 else -math.inf for found, true in pairs if found > 0]
    absent = [true for found, true in pairs if found == 0]
    low, high = conformal_interval(logs, coverage)
    enough = math.isfinite(high)
    return VolumeRatios(
        low=_short(math.exp(low)) if enough else None,
        high=_short(math.exp(high)) if enough else None,
        cases=len(logs),
        absent_high_ml=_finite(conformal_quantile(absent, coverage)),
        absent_cases=len(absent),
    )


def _usual(cases: Sequence[ReferenceCase]) -> dict[str, dict[str, UsualRange]]:
    """Return the usual ranges of all properties that enough cases have."""
    values: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        for kind, by_subject in case.features.items():
            if kind in FEATURE_KINDS:
                for subject, value in by_subject.items():
                    values.setdefault((kind, subject), []).append(FEATURE_KINDS[kind].scaled(value))
    found: dict[str, dict[str, UsualRange]] = {}
    for (kind, subject), listed in values.items():
        if len(listed) >= LEAST_CASES:
            least = FEATURE_KINDS[kind].least
            low, median, high = (float(value) for value in np.percentile(listed, _PERCENTILES))
            found.setdefault(kind, {})[subject] = UsualRange(
                median=_short(median),
                below=_short(max(median - low, least)),
                above=_short(max(high - median, least)),
            )
    return found


def _calibrated(
    cases: Sequence[ReferenceCase], groups: NDArray[np.int64]
) -> tuple[dict[str, dict[str, UsualRange]], NDArray[np.float64]]:
    """Return usual ranges, and the largest deviation of each case.

    Deviations are those from ranges without the case's group. Networks of other folds may differ in a property more than the
    cases of one fold do; ranges are widened so that their 98th percentile is 1 for each property.
    """
    found: list[dict[tuple[str, str], float]] = [{} for _ in cases]
    for group in np.unique(groups):
        others = _usual([case for case, one in zip(cases, groups, strict=True) if one != group])
        for index in np.flatnonzero(groups == group).tolist():
            found[index] = {(kind, on): one for kind, on, one in deviations(cases[index].features, others)}
    usual = _usual(cases)
    largest = np.zeros(len(cases))
    for kind, by_subject in usual.items():
        for subject, own in by_subject.items():
            column = np.array([one.get((kind, subject), 0.0) for one in found])
            factor = max(1.0, float(np.percentile(column, _PERCENTILES[-1])))
            largest = np.maximum(largest, column / factor)
            usual[kind][subject] = UsualRange(
                median=own.median, below=_short(own.below * factor), above=_short(own.above * factor)
            )
    return usual, largest


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    from scipy.stats import spearmanr

    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return _short(float(spearmanr(first, second).statistic))


def _mean(values: Sequence[bool]) -> float | None:
    return _short(float(np.mean(values))) if values else None


def _finite(value: float) -> float | None:
    return _short(value) if math.isfinite(value) else None


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
