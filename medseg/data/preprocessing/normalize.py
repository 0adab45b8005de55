"""Normalisation of intensities: statistics of a volume or a dataset, and their application."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.config import Config
from medseg.data.preprocessing.histogram import IntensityStatistics
from medseg.data.settings import ChannelIntensities, Method

STD_FLOOR = 1e-8
RGB_TOP = 255
LOWEST_STORED_HU, HIGHEST_STORED_HU = -1024.0, 3071.0  # the 12 bits in which scanners store CT
_CHUNK = 1 << 18  # voxels measured at a time


class Normalization(Config):
    """The normalisation of one channel to a common scale of intensities.

    Attributes:
        method: ``ct`` clips to [low, high], subtracts `mean` and divides by `std`, all measured on the foreground of the
            training set. ``zscore`` uses mean and standard deviation of each volume; ``zscore_nonzero`` those of its
            non-zero voxels, and leaves zeros at zero (brain-extracted MR); ``zscore_mask`` those inside `nonzero_mask`,
            which all channels share, and changes nothing outside (nnU-Net's ``use_mask_for_norm``). ``rescale`` maps each
            volume to [0, 1], ``rgb`` divides by 255, and ``none`` changes nothing.
        mean: Mean intensity; for ``ct`` only.
        std: Standard deviation; for ``ct`` only.
        low: Intensity below which values are clipped; null for none. For ``ct`` only.
        high: Intensity above which values are clipped; null for none. For ``ct`` only.

    Examples:
        >>> Normalization(method="ct", mean=40, std=20, low=0, high=80).apply(np.array([-1000.0, 40, 60]))
        array([-2.,  0.,  1.], dtype=float32)
    """

    method: Method = "zscore"
    mean: float = 0.0
    std: float = 1.0
    low: float | None = None
    high: float | None = None

    def apply(self, channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Return one channel normalised.

        Args:
            channel: Intensities `(X, Y, Z)`.
            mask: Voxels `(X, Y, Z)` that ``zscore_mask`` measures and changes; None uses `nonzero_mask` of the channel.

        Returns:
            Normalised intensities `(X, Y, Z)` float32.
        """
        if self.method == "zscore_mask" and mask is None:
            mask = nonzero_mask(channel[None])
        return self.scale(channel, mask).apply(channel, mask)

    def scale(self, channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Scale:
        """Measure a whole channel, some slices at a time, so that parts of it can then be normalised.

        Args:
            channel: Intensities `(X, Y, Z)`.
            mask: Voxels `(X, Y, Z)` to measure with ``zscore_mask``.

        Returns:
            The normalisation with the measured numbers.
        """
        if self.method == "ct":
            return Scale(self.low, self.high, self.mean, max(self.std, STD_FLOOR))
        if self.method in ("zscore", "zscore_nonzero", "zscore_mask"):
            where = {"zscore": "all", "zscore_nonzero": "nonzero", "zscore_mask": "mask"}[self.method]
            mean, std = _mean_and_std(channel, mask, where)
            # In single precision, the mean of intensities around a million would lose its last digits.
            return Scale(None, None, np.float64(mean), np.float64(max(std, STD_FLOOR)), where)
        if self.method == "rescale":
            low, high = float(np.float32(channel.min())), float(np.float32(channel.max()))
            return Scale(None, None, low, max(high - low, STD_FLOOR))
        return Scale(None, None, 0.0, float(RGB_TOP) if self.method == "rgb" else 1.0)


@dataclass(frozen=True)
class Scale:
    """A normalisation with all its numbers: clip, subtract, divide.

    Attributes:
        low: Lower limit of intensities, or None.
        high: Upper limit of intensities, or None.
        shift: Number that is subtracted.
        divisor: Number by which the difference is divided.
        where: Voxels that change: ``"all"``, the ``"nonzero"`` ones, or those in a ``"mask"``.
    """

    low: float | None
    high: float | None
    shift: float
    divisor: float
    where: str = "all"

    def apply(self, values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Return normalised values of any shape; `mask` has the same shape."""
        raw = values.astype(np.float32)
        scaled = raw if self.low is None and self.high is None else np.clip(raw, self.low, self.high)
        if self.shift != 0 or self.divisor != 1:
            scaled = np.asarray((scaled - self.shift) / self.divisor, dtype=np.float32)
        if self.where == "all":
            return scaled
        inside = raw != 0 if self.where == "nonzero" else mask
        assert inside is not None
        return np.where(inside, scaled, raw)


def _mean_and_std(channel: NDArray[Any], mask: NDArray[np.bool_] | None, where: str) -> tuple[float, float]:
    """Return mean and standard deviation of the chosen voxels in double precision; 0 and 1 if there are none."""

    def chosen() -> Iterator[NDArray[np.float32]]:
        step = max(1, _CHUNK // max(1, channel[..., 0].size))
        for start in range(0, channel.shape[-1], step):
            values = channel[..., start : start + step].astype(np.float32)
            if where == "nonzero":
                values = values[values != 0]
            elif where == "mask":
                assert mask is not None
                values = values[mask[..., start : start + step]]
            yield values

    count = sum(values.size for values in chosen())
    if not count:
        return 0.0, 1.0
    mean = sum(float(values.sum(dtype=np.float64)) for values in chosen()) / count
    variance = sum(float(((values - np.float64(mean)) ** 2).sum()) for values in chosen()) / count
    return mean, float(np.sqrt(variance))


def nonzero_mask(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the voxels `(X, Y, Z)` that are non-zero in any channel of `(C, X, Y, Z)`, and the holes they enclose.

    A single slice encloses nothing, because all its voxels touch the outside (nnU-Net's rule).
    """
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes((data != 0).any(axis=0)), dtype=bool)


def mask_rows(channels: Sequence[Normalization]) -> tuple[int | None, ...]:
    """Return which of the masks of a case belongs to each channel.

    Args:
        channels: The normalisation of each channel.

    Returns:
        Index of the mask per channel, None for a channel that is normalised everywhere. Channels with ``zscore_mask`` share a
        mask; each channel with ``zscore_nonzero`` has its own.

    Examples:
        >>> mask_rows([Normalization(method=name) for name in ("zscore_mask", "ct", "zscore_mask")])
        (0, None, 0)
    """
    keys = [
        {"zscore_mask": "shared", "zscore_nonzero": str(number)}.get(channel.method)
        for number, channel in enumerate(channels)
    ]
    order = list(dict.fromkeys(key for key in keys if key is not None))
    return tuple(None if key is None else order.index(key) for key in keys)


def normalizations(
    methods: Sequence[Method | Literal["hounsfield"]],
    intensities: Mapping[int, IntensityStatistics] | None = None,
    given: Mapping[int, ChannelIntensities] | None = None,
) -> tuple[Normalization, ...]:
    """Return the normalisation of each channel.

    This is the only place where statistics of a dataset become a normalisation.

    Args:
        methods: One method per channel.
        intensities: Statistics of the foreground of the training cases by index of the channel; only needed for ``ct``.
        given: Statistics that are used instead, by index of the channel.

    Returns:
        One normalisation per channel. ``ct`` has the percentiles 0.5 and 99.5 as limits, and mean and standard deviation.
        ``hounsfield`` becomes ``ct`` with the limits of stored CT values, so that every intensity window is preserved.

    Examples:
        >>> [found.method for found in normalizations(["zscore", "none"])]
        ['zscore', 'none']
    """
    found = []
    for channel, method in enumerate(methods):
        if method == "hounsfield":
            low, high = LOWEST_STORED_HU, HIGHEST_STORED_HU
            found.append(Normalization(method="ct", mean=low, std=1000, low=low, high=high))
        elif given and channel in given:
            found.append(Normalization.parse({"method": "ct", **given[channel].to_plain()}))
        elif method == "ct":
            assert intensities is not None
            measured = intensities[channel]
            found.append(
                Normalization(
                    method="ct",
                    mean=measured.mean,
                    std=measured.std,
                    low=measured.percentile_00_5,
                    high=measured.percentile_99_5,
                )
            )
        else:
            found.append(Normalization(method=method))
    return tuple(found)
