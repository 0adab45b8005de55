"""Intensities on a common scale: what is measured on a volume or a dataset, and what is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.config import Config
from medseg.data.settings import Method
from medseg.errors import DataError
from medseg.volumes.volume import Volume

STD_FLOOR = 1e-8
RGB_TOP = 255
SAMPLES_PER_CASE = 20_000
LOWEST_STORED_HU, HIGHEST_STORED_HU = -1024.0, 3071.0  # the 12 bits in which scanners store CT
_CHUNK = 1 << 18  # voxels that are measured at a time


class Normalization(Config):
    """How the intensities of one channel are brought to a common scale.

    ``ct`` clips to [low, high], subtracts mean and divides by std, all measured over the foreground of the
    training set; ``zscore`` uses the volume's own mean and std; ``zscore_nonzero`` those of its non-zero
    voxels, and leaves zeros at zero (brain-extracted MR); ``zscore_mask`` those inside `nonzero_mask`, which all
    channels share, and changes nothing outside (nnU-Net's ``use_mask_for_norm``); ``rescale`` maps to [0, 1];
    ``rgb`` divides by 255.
    """

    method: Method = "zscore"
    mean: float = 0.0
    std: float = 1.0
    low: float | None = None
    high: float | None = None

    def apply(self, channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Normalise one channel `(X, Y, Z)`.

        Args:
            channel: intensities.
            mask: where ``zscore_mask`` measures and changes values; None takes the channel's own `nonzero_mask`.
        """
        if self.method == "zscore_mask" and mask is None:
            mask = nonzero_mask(channel[None])
        return self.scale(channel, mask).apply(channel, mask)

    def scale(self, channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Scale:
        """Measure a whole channel `(X, Y, Z)`, some slices at a time, so that parts of it can then be normalised."""
        if self.method == "ct":
            return Scale(self.low, self.high, self.mean, max(self.std, STD_FLOOR))
        if self.method in ("zscore", "zscore_nonzero", "zscore_mask"):
            where = {"zscore": "all", "zscore_nonzero": "nonzero", "zscore_mask": "mask"}[self.method]
            mean, std = _mean_and_std(channel, mask, where)
            # Double precision: intensities of a million in single precision lose the mean's last digits.
            return Scale(None, None, np.float64(mean), np.float64(max(std, STD_FLOOR)), where)
        if self.method == "rescale":
            low, high = float(np.float32(channel.min())), float(np.float32(channel.max()))
            return Scale(None, None, low, max(high - low, STD_FLOOR))
        return Scale(None, None, 0.0, float(RGB_TOP) if self.method == "rgb" else 1.0)


@dataclass(frozen=True)
class Scale:
    """A normalisation with all its numbers: clip, subtract, divide.

    Attributes:
        low, high: limits, if any. shift: subtracted. divisor: divided by.
        where: ``"all"`` voxels, those that are ``"nonzero"``, or those in a ``"mask"``; others keep their values.
    """

    low: float | None
    high: float | None
    shift: float
    divisor: float
    where: str = "all"

    def apply(self, values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Normalise values of any shape; `mask` has theirs."""
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
    """Of the chosen voxels, in double precision; 0 and 1 if there are none."""

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
    """Voxels `(X, Y, Z)` of `(C, X, Y, Z)` that are not 0 in some channel, and the holes that they enclose.

    Nothing is enclosed in a single slice, whose voxels all touch the outside (nnU-Net's rule).
    """
    return np.asarray(ndimage.binary_fill_holes((data != 0).any(axis=0)), dtype=bool)


def measure(
    pairs: Iterable[tuple[Volume, Volume]], methods: Sequence[Method | Literal["hounsfield"]], seed: int = 0
) -> tuple[Normalization, ...]:
    """Measure what the normalisations need over the foreground of a training set.

    Args:
        pairs: image and label volumes; read only when some method is ``ct``.
        methods: one per channel.
        seed: of the voxel sample, 20,000 foreground voxels a case.

    Returns:
        ``ct`` channels with percentiles 0.5 and 99.5 as low and high, mean and standard deviation; ``hounsfield``
        ones as ``ct`` from air to the densest value, so that no window of a CT is lost.
    """
    if "ct" not in methods:
        return tuple(_measured(method, np.zeros(0, np.float32)) for method in methods)
    samples: list[NDArray[np.float32]] = []
    for number, (image, label) in enumerate(pairs):
        foreground = image.data[:, label.data[0] > 0].astype(np.float32)
        if foreground.shape[1] == 0:
            continue
        chosen = np.random.default_rng((seed, number)).integers(foreground.shape[1], size=SAMPLES_PER_CASE)
        samples.append(foreground[:, chosen])
    if not samples:
        raise DataError("labels: found no foreground voxel in any training case. Check the label maps.")
    values = np.concatenate(samples, axis=1)
    return tuple(_measured(method, channel) for method, channel in zip(methods, values, strict=True))


def _measured(method: Method | Literal["hounsfield"], values: NDArray[np.float32]) -> Normalization:
    if method == "hounsfield":
        return Normalization(
            method="ct", mean=LOWEST_STORED_HU, std=1000, low=LOWEST_STORED_HU, high=HIGHEST_STORED_HU
        )
    if method != "ct":
        return Normalization(method=method)
    low, high = np.percentile(values, [0.5, 99.5])
    return Normalization(
        method=method, mean=float(values.mean()), std=float(values.std()), low=float(low), high=float(high)
    )
