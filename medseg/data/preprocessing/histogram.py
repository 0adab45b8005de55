"""Histograms of intensities that need little memory for any number of voxels: values are rounded to 13 significant bits.

Whole numbers up to 8192 are exact, which covers Hounsfield units; the relative error of larger and fractional values is
at most 1 / 8192. No voxels are sampled at random, and their order has no influence.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.config import Config
from medseg.errors import DataError

_DROPPED_BITS = 11  # of the 23 bits that float32 stores after the leading one
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
_HEAD = "<4d"  # mean, variance, minimum and maximum of a packed histogram


class IntensityStatistics(Config):
    """Statistics of the intensities of one channel, in the units of the file.

    Attributes:
        mean: Population mean.
        std: Population standard deviation.
        low: Minimum.
        percentile_00_5: Percentile 0.5, to 13 significant bits.
        median: Median, to 13 significant bits.
        percentile_99_5: Percentile 99.5, to 13 significant bits.
        high: Maximum.
    """

    mean: float
    std: float
    low: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Counts of rounded values, and exact moments of the values themselves.

    Attributes:
        values: Rounded values `(n,)` in ascending order.
        counts: Number of voxels `(n,)` of each value.
        mean: Mean before rounding.
        variance: Variance before rounding.
        low: Minimum before rounding.
        high: Maximum before rounding.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    mean: float
    variance: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: NDArray[np.float32]) -> Histogram:
        """Count values after rounding them.

        Args:
            values: At least one finite value, `(N,)`.

        Returns:
            The histogram.
        """
        found, counts = np.unique(_rounded(values), return_counts=True)
        mean, variance = float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64))
        return cls(found, counts, mean, variance, float(values.min()), float(values.max()))

    @classmethod
    def unpack(cls, text: str) -> Histogram:
        """Restore a histogram.

        Args:
            text: What `pack` returned.

        Returns:
            The histogram.

        Raises:
            ValueError: The text is damaged.
        """
        try:
            raw = zlib.decompress(base64.b85decode(text))
        except zlib.error as error:
            raise ValueError(str(error)) from None
        mean, variance, low, high = struct.unpack_from(_HEAD, raw)
        table = np.frombuffer(raw, np.int64, offset=struct.calcsize(_HEAD)).reshape(2, -1)
        bits = np.cumsum(table[0]).astype(np.uint32)
        return cls(_of_ordered(bits), table[1], mean, variance, low, high)

    def pack(self) -> str:
        """Return the histogram as a short text, without loss.

        Returns:
            About 10 kB for the foreground of a CT.
        """
        bits = _ordered(self.values).astype(np.int64)
        table = np.stack([np.diff(bits, prepend=0), self.counts.astype(np.int64)])
        head = struct.pack(_HEAD, self.mean, self.variance, self.low, self.high)
        return base64.b85encode(zlib.compress(head + table.tobytes())).decode()

    def intensities(self) -> IntensityStatistics:
        """Return the statistics of this histogram alone."""
        return pool_histograms([self])


def foreground_histograms(data: NDArray[Any], inside: NDArray[np.bool_], where: str) -> tuple[Histogram, ...]:
    """Return the histogram of each channel of an image inside its foreground.

    Args:
        data: Image `(C, X, Y, Z)`.
        inside: Voxels `(X, Y, Z)` of any label, without those to ignore.
        where: The case, for the message.

    Returns:
        One histogram per channel; none if there is no foreground.

    Raises:
        DataError: An intensity is beyond float32.
    """
    if not inside.any():
        return ()
    histograms = []
    for channel in data:
        with np.errstate(over="ignore"):
            values = channel[inside].astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{where}: found intensities beyond 3e38, expected float32. Rescale the image.")
        histograms.append(Histogram.from_values(values))
    return tuple(histograms)


def pool_histograms(histograms: Sequence[Histogram]) -> IntensityStatistics:
    """Return statistics over several cases, which have equal weight regardless of their number of voxels.

    nnU-Net samples the same number of foreground voxels from every case; its statistics converge to these.

    Args:
        histograms: At least one histogram.

    Returns:
        The statistics.
    """
    share = 1 / len(histograms)
    mean = share * sum(h.mean for h in histograms)
    square = share * sum(h.variance + (h.mean - mean) ** 2 for h in histograms)
    values = np.concatenate([h.values for h in histograms])
    weights = np.concatenate([h.counts * (share / h.counts.sum()) for h in histograms])
    low, median, high = _percentiles(values, weights, (LOW_PERCENTILE, 50.0, HIGH_PERCENTILE))
    return IntensityStatistics(
        mean=mean,
        std=float(np.sqrt(square)),
        low=min(h.low for h in histograms),
        percentile_00_5=low,
        median=median,
        percentile_99_5=high,
        high=max(h.high for h in histograms),
    )


def _percentiles(
    values: NDArray[np.float32], weights: NDArray[np.float64], wanted: Sequence[float]
) -> list[float]:
    """Return weighted percentiles: the smallest values at which the cumulative weight reaches the given percentages."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.asarray(wanted) / 100 * reached[-1] * (1 - 1e-12))
    return [float(values[order[min(place, len(order) - 1)]]) for place in places]


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers in the order of the values, whose differences are small and therefore short when compressed."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(_DROPPED_BITS)


def _of_ordered(numbers: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return the values of `_ordered`."""
    bits = numbers << np.uint32(_DROPPED_BITS)
    negative = ~bits & ~np.uint32((1 << _DROPPED_BITS) - 1)
    return np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), negative).view(np.float32)


def _rounded(values: ArrayLike) -> NDArray[np.float32]:
    """Round away the last 11 bits of values, half away from zero; the largest finite number stays finite."""
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    rounded = (bits + np.uint32(1 << (_DROPPED_BITS - 1))) & ~np.uint32((1 << _DROPPED_BITS) - 1)
    result = rounded.view(np.float32)
    return np.where(np.isfinite(result), result, np.asarray(values, dtype=np.float32))
