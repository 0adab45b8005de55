"""Agreement of two measurements of the same cases: bias and limits of agreement (Bland and Altman 1986)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.statistics.bootstrap import Interval

LIMIT_SD = 1.96
"""Standard deviations of the differences from the bias to a limit of agreement."""
_SIDE = 0.025  # of a 95 % interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The differences of two measurements over cases, in the unit of the measurements.

    Attributes:
        cases: Number of cases.
        subjects: Number of subjects of these cases.
        bias: Mean difference, the first measurement minus the second.
        bias_interval: 95 % interval of the bias.
        low: Lower limit of agreement: the bias minus 1.96 standard deviations of the differences.
        low_interval: 95 % interval of the lower limit.
        high: Upper limit of agreement.
        high_interval: 95 % interval of the upper limit.
    """

    cases: int
    subjects: int
    bias: float
    bias_interval: Interval
    low: float
    low_interval: Interval
    high: float
    high_interval: Interval

    @classmethod
    def of(cls, first: Array, second: Array, subjects: Sequence[str]) -> Agreement:
        """Measure the agreement of two measurements.

        Intervals are those of Bland and Altman (1999, Measuring agreement in method comparison studies), which assume normal
        differences: by Student's t distribution, with the standard error s √(1/n) of the bias and s √(1/n + 1.96² / (2 (n − 1)))
        of a limit. The number n is that of the subjects, so that several cases of a subject do not make them narrower.

        Args:
            first: Measurements `(cases,)`, such as predicted volumes.
            second: Measurements `(cases,)` of the same cases, such as reference volumes.
            subjects: Subject of each case.

        Returns:
            The agreement. Limits of a single case are NaN, and so are intervals of a single subject.

        Examples:
            >>> found = Agreement.of(np.array([11.0, 19.0, 32.0]), np.array([10.0, 20.0, 30.0]), ["a", "b", "c"])
            >>> round(found.bias, 3), round(found.low, 3), round(found.high, 3)
            (0.667, -2.327, 3.661)
        """
        from scipy import stats

        differences, n = first - second, len(set(subjects))
        bias = float(differences.mean())
        sd = float(differences.std(ddof=1)) if len(differences) > 1 else math.nan
        t = float(stats.t.isf(_SIDE, n - 1)) if n > 1 else math.nan
        own = t * sd * math.sqrt(1 / n)
        of_limit = t * sd * math.sqrt(1 / n + LIMIT_SD**2 / (2 * (n - 1))) if n > 1 else math.nan
        low, high = bias - LIMIT_SD * sd, bias + LIMIT_SD * sd
        return cls(
            len(differences),
            n,
            bias,
            Interval(bias - own, bias + own),
            low,
            Interval(low - of_limit, low + of_limit),
            high,
            Interval(high - of_limit, high + of_limit),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the figures as plain values; None replaces NaN."""
        plain: dict[str, Any] = {"cases": self.cases, "subjects": self.subjects}
        for name in ("bias", "low", "high"):
            value, interval = getattr(self, name), getattr(self, f"{name}_interval")
            ends = {"low": interval.low, "high": interval.high}
            plain[name] = None if math.isnan(value) else value
            plain[f"{name}_interval"] = {
                end: None if math.isnan(number) else number for end, number in ends.items()
            }
        return plain


def agreement_cells(found: Mapping[str, Agreement]) -> list[list[str]]:
    """Return the header and one row per label of a table of agreements of volumes, as texts.

    Args:
        found: The agreements by label.

    Returns:
        The rows; only the header if there is no label.
    """
    header = ["label", "n", "bias ml", "95 % interval", "lower limit", "95 % interval", "upper limit"]
    rows = [[*header, "95 % interval"]]
    for name, one in found.items():
        figures = (
            (one.bias, one.bias_interval),
            (one.low, one.low_interval),
            (one.high, one.high_interval),
        )
        cells = [text for value, interval in figures for text in (_signed(value), _shown(interval))]
        rows.append([name, str(one.cases), *cells])
    return rows


def _shown(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{_signed(interval.low)} to {_signed(interval.high)}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no negative zero
