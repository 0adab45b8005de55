"""From a volume as it lies on disk to the volume a network sees, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import ndimage

from medseg.config import Config
from medseg.data.settings import Method, Millimetres
from medseg.errors import DataError
from medseg.geometry import Grid, separable_maps, shape_at_spacing, turned
from medseg.resampling import AxisMap
from medseg.volume import Volume

STD_FLOOR = 1e-8
SAMPLES_PER_CASE = 20_000
AIR_HU, DENSEST_HU = -1024.0, 3071.0  # of 12 bits, as scanners store them


class Normalization(Config):
    """How the intensities of one channel are brought to a common scale.

    ``ct`` clips to [low, high], subtracts mean and divides by std, all measured over the foreground of the
    training set; ``zscore`` uses the volume's own mean and std; ``zscore_nonzero`` those of its non-zero
    voxels, and leaves zeros at zero (brain-extracted MR); ``rescale`` maps to [0, 1].
    """

    method: Method = "zscore"
    mean: float = 0.0
    std: float = 1.0
    low: float | None = None
    high: float | None = None

    def apply(self, channel: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise one channel `(X, Y, Z)`."""
        values = channel.astype(np.float32)
        if self.method == "ct":
            clipped = np.clip(values, self.low, self.high)
            return np.asarray((clipped - self.mean) / max(self.std, STD_FLOOR), dtype=np.float32)
        if self.method == "zscore":
            # Sums in float64: intensities of a million in float32 lose the mean's last digits.
            mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
            return np.asarray((values - mean) / max(std, STD_FLOOR), dtype=np.float32)
        if self.method == "zscore_nonzero":
            inside = values != 0
            if not inside.any():
                return values
            mean, std = values[inside].mean(dtype=np.float64), values[inside].std(dtype=np.float64)
            return np.where(inside, (values - mean) / max(std, STD_FLOOR), 0).astype(np.float32)
        if self.method == "rescale":
            low, high = float(values.min()), float(values.max())
            return np.asarray((values - low) / max(high - low, STD_FLOOR), dtype=np.float32)
        return values


class Preprocessing(Config):
    """Everything needed to prepare an image; stored with a model, so that prediction repeats training.

    Attributes:
        orientation: axis codes of the network's arrays.
        spacing: mm per array axis, or null to keep each file's own.
        crop_to_nonzero: crop to the box of voxels that are not 0 in some channel.
        channels: one normalisation per channel.
    """

    orientation: str = "RAS"
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    crop_to_nonzero: bool = True
    channels: tuple[Normalization, ...] = (Normalization(),)


@dataclass(frozen=True)
class Prepared:
    """A prepared image and what is needed to bring a result back to the file's grid.

    Attributes:
        image: `(C, X, Y, Z)` float32 on the network's grid.
        source: grid of the file. header: its geometry fields.
        start, shape: the box that was cut from the reoriented file, in voxels.
    """

    image: Volume
    source: Grid
    header: Any
    start: tuple[int, ...]
    shape: tuple[int, ...]


def check_image(image: Volume, channels: int, where: str) -> None:
    """Raise a `DataError` unless `image` has this many channels and only finite voxels."""
    if image.channels != channels:
        raise DataError(
            f"{where}: channels: found {image.channels}, expected {channels}. "
            "Give one file per channel in the order of training, or one file that holds them all."
        )
    if image.data.dtype.kind == "f" and not np.isfinite(image.data).all():
        count = int((~np.isfinite(image.data)).sum())
        raise DataError(
            f"{where}: found {count} voxels that are NaN or infinite, expected none. Repair them."
        )


def prepare(image: Volume, settings: Preprocessing, where: str = "image") -> Prepared:
    """Reorient, crop to non-zero, normalise, resample (cubic; nnU-Net's rule for thick slices).

    Args:
        image: as read from its file.
        settings: resolved preprocessing.
        where: file or case, for messages.

    Raises:
        DataError: wrong channel count, NaN or infinite voxels.
    """
    check_image(image, len(settings.channels), where)
    turned_image = image.reoriented(settings.orientation)
    start, shape = (
        _nonzero_box(turned_image.data) if settings.crop_to_nonzero else ((0, 0, 0), turned_image.grid.shape)
    )
    cropped = turned_image.cropped(start, shape)
    normalised = np.stack([n.apply(c) for n, c in zip(settings.channels, cropped.data, strict=True)])
    volume = Volume(normalised, cropped.grid)
    if settings.spacing is not None:
        volume = volume.resampled(shape=shape_at_spacing(shape, volume.spacing, settings.spacing))
    return Prepared(volume, image.grid, image.header, start, shape)


def prepare_label(label: Volume, prepared: Prepared, settings: Preprocessing) -> Volume:
    """The label map of a prepared image, through the same turn, crop and resampling."""
    cropped = label.reoriented(settings.orientation).cropped(prepared.start, prepared.shape)
    if cropped.grid.shape == prepared.image.grid.shape:
        return cropped
    return cropped.resampled(shape=prepared.image.grid.shape)


@dataclass(frozen=True)
class LabelTarget:
    """An empty label map on a file's own grid, seen from the network's grid.

    Attributes:
        volume: the label map, background everywhere, laid out as NIfTI files are.
        view: the part of it inside the crop with the network's axes `(X, Y, Z)`; writing to it fills `volume`.
        maps: where the voxels of `view` lie on the prepared grid, an `AxisMap` an axis.
    """

    volume: Volume
    view: NDArray[Any]
    maps: tuple[AxisMap, ...]


def label_target(prepared: Prepared, settings: Preprocessing, dtype: DTypeLike) -> LabelTarget:
    """Make the label map that a prediction on a prepared image is written to."""
    source, codes = prepared.source, settings.orientation
    box = source.reoriented(codes).boxed(prepared.start, prepared.shape)
    maps = separable_maps(prepared.image.grid, box)
    if maps is None:
        raise AssertionError("a prepared grid always runs along its file's axes")
    data = np.zeros(source.shape, dtype, order="F")
    inside = tuple(slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    volume = Volume(data[None], source, "label", prepared.header)
    return LabelTarget(volume, turned(data, source.axcodes, codes)[inside], maps)


def resolve_methods(
    wanted: str | Sequence[str], channel_names: Sequence[str]
) -> tuple[Method | Literal["hounsfield"], ...]:
    """One method per channel; ``auto`` is ``ct`` for a channel named CT and ``zscore`` for all others."""
    methods = [wanted] * len(channel_names) if isinstance(wanted, str) else list(wanted)
    if len(methods) != len(channel_names):
        raise DataError(
            f"preprocess.normalize: found {len(methods)} methods, expected {len(channel_names)}, one per channel "
            f"({', '.join(channel_names)}). Give one for each."
        )
    automatic: list[Method] = ["ct" if n.strip().lower() == "ct" else "zscore" for n in channel_names]
    return tuple(a if m == "auto" else m for m, a in zip(methods, automatic, strict=True))  # type: ignore[misc]


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
        return Normalization(method="ct", mean=AIR_HU, std=1000, low=AIR_HU, high=DENSEST_HU)
    if method != "ct":
        return Normalization(method=method)
    low, high = np.percentile(values, [0.5, 99.5])
    return Normalization(
        method=method, mean=float(values.mean()), std=float(values.std()), low=float(low), high=float(high)
    )


def _nonzero_box(data: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and shape of the box that holds every voxel that is not 0 in some channel; all if none."""
    found = ndimage.find_objects((data != 0).any(axis=0).astype(np.uint8))
    if not found or found[0] is None:
        return (0, 0, 0), data.shape[1:]
    box = found[0]
    return tuple(s.start for s in box), tuple(s.stop - s.start for s in box)
