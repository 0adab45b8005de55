"""How far probabilities are from frequencies: expected calibration error, Brier score and reliability diagram.

All are weighted means over voxels, in the whole image or near foreground. Most voxels of an image are trivial background,
which makes every error over the whole image look small; the figures near foreground are the ones to read.

The *confidence* of a voxel is the probability of its predicted label, and it is *right* if that is the label of the
reference. For regions, every region of a voxel counts by itself: its confidence is p where the region is predicted, else 1 - p.

- The expected calibration error divides [0, 1] into 15 bins of equal width and averages the difference between the mean
  confidence and the share of right voxels of each bin, weighted by its voxels (Naeini, Cooper, Hauskrecht: Obtaining well
  calibrated probabilities using Bayesian binning. AAAI 2015; with 15 bins as in Guo et al. 2017).
- The error of one label is the same for its probability p and the share of voxels that are of the label (class-wise error,
  Kull et al. 2019).
- The Brier score is the mean over voxels of the sum over classes of (p - y)² (Brier 1950), between 0 and 2; for regions, the mean
  over regions of (p - y)².
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        low: Lower end of its probabilities.
        high: Upper end.
        share: Share of all voxels.
        confidence: Mean probability.
        frequency: Share of its voxels that are right, or of the label.
    """

    low: float
    high: float
    share: float
    confidence: float
    frequency: float


def reliability(
    p: NDArray[np.float64], right: NDArray[np.bool_], weight: NDArray[np.float64], bins: int = BINS
) -> tuple[Bin, ...]:
    """Return the reliability diagram of some probabilities.

    Args:
        p: Probabilities `(n,)`.
        right: Whether what they are the probability of is the case `(n,)`.
        weight: Weight of each `(n,)`.
        bins: Number of bins of equal width.

    Returns:
        The bins that are not empty, ascending.

    Examples:
        >>> p, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True])
        >>> [(bin.confidence, bin.frequency) for bin in reliability(p, right, np.ones(4), bins=2)]
        [(0.75, 0.75)]
    """
    index = np.minimum((p * bins).astype(int), bins - 1)
    total, confidence, frequency = (
        np.bincount(index, weights=values, minlength=bins) for values in (weight, weight * p, weight * right)
    )
    return tuple(
        Bin(
            number / bins,
            (number + 1) / bins,
            float(total[number] / total.sum()),
            float(confidence[number] / total[number]),
            float(frequency[number] / total[number]),
        )
        for number in np.flatnonzero(total)
    )


def calibration_error(diagram: tuple[Bin, ...]) -> float:
    """Return the expected calibration error of a reliability diagram.

    Args:
        diagram: Its bins; there must be some.

    Returns:
        A number between 0 and 1.

    Examples:
        >>> calibration_error((Bin(0.5, 1.0, 0.25, 0.9, 0.5), Bin(0.0, 0.5, 0.75, 0.3, 0.3)))
        0.1
    """
    return sum(one.share * abs(one.confidence - one.frequency) for one in diagram)


def brier_score(
    p: NDArray[np.float64], inside: NDArray[np.bool_], weight: NDArray[np.float64], *, regions: bool
) -> float:
    """Return the weighted mean Brier score.

    Args:
        p: Probabilities `(n, k)`.
        inside: Which outputs each voxel belongs to `(n, k)`.
        weight: Weight of each voxel `(n,)`.
        regions: Whether the outputs are regions, over which the mean is taken, instead of classes, which are added up.

    Returns:
        The score.
    """
    squares = (p - inside) ** 2
    return float(np.average(squares.mean(-1) if regions else squares.sum(-1), weights=weight))


@dataclass(frozen=True)
class CalibrationFigures:
    """The calibration of some voxels.

    Attributes:
        nll: Mean negative log-likelihood in nats.
        ece: Expected calibration error.
        brier: Brier score.
        by_label: Expected calibration error of each foreground label or region.
        diagram: Reliability diagram.
    """

    nll: float
    ece: float
    brier: float
    by_label: dict[str, float]
    diagram: tuple[Bin, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)
