"""Detection of instances by their size: small lesions are missed more often than large ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError


@dataclass(frozen=True)
class SizeCounts:
    """The counts of the instances of one size class.

    Attributes:
        references: References of this size.
        predictions: Predictions of this size.
        tp: References of this size that are matched; the size of the prediction does not matter.
        fn: References of this size that are not matched.
        fp: Predictions of this size that are not matched.
        detected: References of this size that are detected, see `InstanceMetrics`.
        false_detections: Predictions of this size that detect nothing.
    """

    references: int = 0
    predictions: int = 0
    tp: int = 0
    fn: int = 0
    fp: int = 0
    detected: int = 0
    false_detections: int = 0

    @property
    def sensitivity(self) -> float:
        """Detected / references; NaN without references."""
        return self.detected / self.references if self.references else math.nan

    @property
    def precision(self) -> float:
        """1 - false_detections / predictions; NaN without predictions."""
        return 1 - self.false_detections / self.predictions if self.predictions else math.nan

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn); NaN without instances."""
        whole = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / whole if whole else math.nan


COUNTS = tuple(one.name for one in fields(SizeCounts))
RATIOS = ("sensitivity", "precision", "f1")


def pool_sizes(cases: Iterable[Sequence[SizeCounts]]) -> tuple[SizeCounts, ...]:
    """Sum the counts of several cases, size by size.

    Args:
        cases: The counts of each case, one per size class.

    Returns:
        One per size class; empty without cases.
    """
    return tuple(
        SizeCounts(*(sum(getattr(one, name) for one in same) for name in COUNTS))
        for same in zip(*cases, strict=True)
    )


def count_by_size(
    sizes: tuple[NDArray[np.float64], NDArray[np.float64]],
    matched: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    touched: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    bounds: Sequence[float],
) -> tuple[SizeCounts, ...]:
    """Count instances by size.

    Args:
        sizes: Volumes in mm³ of the predictions `(m,)` and of the references `(n,)`.
        matched: Which of them are matched.
        touched: Which of them detect, or are detected.
        bounds: Volumes between the classes, ascending; an instance as large as a bound is in the upper class.

    Returns:
        One more than there are bounds, from small to large; empty without bounds.

    >>> one = np.array([True])
    >>> small, large = count_by_size((np.array([5.0]), np.array([20.0])), (one, one), (one, one), [10.0])
    >>> (small.predictions, large.references, large.f1)
    (1, 1, 1.0)
    """
    if not bounds:
        return ()
    predicted, expected = (np.digitize(own, bounds) for own in sizes)
    found = []
    for index in range(len(bounds) + 1):
        mine, theirs = predicted == index, expected == index
        found.append(
            SizeCounts(
                references=int(theirs.sum()),
                predictions=int(mine.sum()),
                tp=int((theirs & matched[1]).sum()),
                fn=int((theirs & ~matched[1]).sum()),
                fp=int((mine & ~matched[0]).sum()),
                detected=int((theirs & touched[1]).sum()),
                false_detections=int((mine & ~touched[0]).sum()),
            )
        )
    return tuple(found)


def size_names(bounds: Sequence[float]) -> tuple[str, ...]:
    """Return the size classes in words.

    Args:
        bounds: Volumes in mm³ between the classes.

    Returns:
        One name per class.

    >>> size_names([10, 500])
    ('below 10 mm³', '10 to 500 mm³', 'from 500 mm³')
    """
    if not bounds:
        return ()
    shown = [f"{bound:g}" for bound in bounds]
    between = (f"{low} to {high} mm³" for low, high in pairwise(shown))
    return (f"below {shown[0]} mm³", *between, f"from {shown[-1]} mm³")


def checked_bounds(bounds: Sequence[float]) -> tuple[float, ...]:
    """Return bounds of size classes as floats.

    Args:
        bounds: Volumes in mm³ between the classes.

    Returns:
        The bounds.

    Raises:
        ConfigError: They are not positive, not finite, or not ascending.
    """
    found = tuple(float(bound) for bound in bounds)
    ascending = all(low < high for low, high in pairwise((0.0, *found)))
    if not ascending or not all(map(math.isfinite, found)):
        raise ConfigError(
            f"size_bounds_mm3: found {', '.join(f'{bound:g}' for bound in found)}, expected ascending volumes above 0 mm³. "
            "Use 10,500, for example."
        )
    return found
