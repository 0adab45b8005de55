"""From a volume as it lies on disk to the volume a network sees, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import ndimage

from medseg.config import Config
from medseg.data.settings import Method, Orientation, Spacing
from medseg.errors import DataError
from medseg.geometry import Grid, separable_maps, shape_at_spacing, turned
from medseg.resampling import AxisMap, axis_orders, resample, resample_labels
from medseg.volume import Volume

STD_FLOOR = 1e-8
RGB_TOP = 255
SAMPLES_PER_CASE = 20_000
Box = tuple[tuple[int, ...], tuple[int, ...]]


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
        values = channel.astype(np.float32)
        if self.method == "ct":
            clipped = np.clip(values, self.low, self.high)
            return np.asarray((clipped - self.mean) / max(self.std, STD_FLOOR), dtype=np.float32)
        if self.method == "zscore":
            # Sums in float64: intensities of a million in float32 lose the mean's last digits.
            mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
            return np.asarray((values - mean) / max(std, STD_FLOOR), dtype=np.float32)
        if self.method in ("zscore_nonzero", "zscore_mask"):
            if self.method == "zscore_mask":
                inside = nonzero_mask(values[None]) if mask is None else mask
            else:
                inside = values != 0
            if not inside.any():
                return values
            mean, std = values[inside].mean(dtype=np.float64), values[inside].std(dtype=np.float64)
            return np.where(inside, (values - mean) / max(std, STD_FLOOR), values).astype(np.float32)
        if self.method == "rescale":
            low, high = float(values.min()), float(values.max())
            return np.asarray((values - low) / max(high - low, STD_FLOOR), dtype=np.float32)
        return values / np.float32(RGB_TOP) if self.method == "rgb" else values


class Preprocessing(Config):
    """Everything needed to prepare an image; stored with a model, so that prediction repeats training.

    Attributes:
        orientation: axis codes of the network's arrays, or null to keep the order of each file's axes.
        spacing: mm per array axis; null, for all axes or one of them, keeps each file's own.
        crop_to_nonzero: crop to the box of voxels that are not 0 in some channel.
        channels: one normalisation per channel.
    """

    orientation: Orientation | None = "RAS"
    spacing: Spacing | None = None
    crop_to_nonzero: bool = True
    channels: tuple[Normalization, ...] = (Normalization(),)

    def axcodes(self, source: Grid) -> str:
        """Axis codes of the network's arrays for a file on the grid `source`."""
        return self.orientation or source.axcodes

    def target_spacing(self, own: Sequence[float]) -> tuple[float, ...]:
        """Spacing (mm) along the network's axes for an image whose spacing along them is `own`."""
        wanted = self.spacing or (None, None, None)
        return tuple(mine if value is None else value for value, mine in zip(wanted, own, strict=True))


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


def prepare(image: Volume, settings: Preprocessing, where: str = "image", box: Box | None = None) -> Prepared:
    """Reorient, crop to non-zero, normalise, resample (cubic; nnU-Net's rule for thick slices).

    Args:
        image: as read from its file.
        settings: resolved preprocessing.
        where: file or case, for messages.
        box: start and shape of the box of the reoriented image to keep, instead of the non-zero one.

    Raises:
        DataError: wrong channel count, NaN or infinite voxels.
    """
    check_image(image, len(settings.channels), where)
    turned_image = image.reoriented(settings.axcodes(image.grid))
    if box is None and settings.crop_to_nonzero:
        box = _nonzero_box(turned_image.data)
    start, shape = box or ((0, 0, 0), turned_image.grid.shape)
    cropped = turned_image.cropped(start, shape)
    volume = Volume(_normalised(cropped.data, settings.channels, where), cropped.grid)
    target = settings.target_spacing(volume.spacing)
    if settings.spacing is not None:
        volume = _resized(volume, shape_at_spacing(shape, volume.spacing, target), target)
    return Prepared(volume, image.grid, image.header, start, shape)


def prepare_label(label: Volume, prepared: Prepared, settings: Preprocessing) -> Volume:
    """The label map of a prepared image, through the same turn, crop and resampling."""
    cropped = label.reoriented(settings.axcodes(label.grid)).cropped(prepared.start, prepared.shape)
    return _resized(cropped, prepared.image.grid.shape, settings.target_spacing(cropped.spacing))


def nonzero_mask(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels `(X, Y, Z)` of `(C, X, Y, Z)` that are not 0 in some channel, and the holes that they enclose.

    Nothing is enclosed in a single slice, whose voxels all touch the outside (nnU-Net's rule).
    """
    return np.asarray(ndimage.binary_fill_holes((data != 0).any(axis=0)), dtype=bool)


def _normalised(data: NDArray[Any], channels: Sequence[Normalization], where: str) -> NDArray[np.float32]:
    """Every channel of `(C, X, Y, Z)` by its own normalisation."""
    mask = nonzero_mask(data) if any(channel.method == "zscore_mask" for channel in channels) else None
    for channel, values in zip(channels, data, strict=True):
        if channel.method == "rgb" and (values.min() < 0 or values.max() > RGB_TOP):
            raise DataError(
                f"{where}: intensities: found {values.min():g} to {values.max():g}, expected 0 to {RGB_TOP} of a "
                "colour picture. Convert it to 8 bits."
            )
    return np.stack([channel.apply(values, mask) for channel, values in zip(channels, data, strict=True)])


def _resized(volume: Volume, shape: tuple[int, ...], target: Sequence[float]) -> Volume:
    """Another number of voxels over the same field of view, with nnU-Net's rule for thick slices.

    The rule looks at the `target` spacing (mm) that was asked for. The one that comes out differs from it, because
    voxels are whole, by enough to decide otherwise where slices are few.
    """
    if shape == volume.grid.shape:
        return volume
    maps = [AxisMap.resize(n, m) for n, m in zip(volume.grid.shape, shape, strict=True)]
    orders = axis_orders(1 if volume.is_label else 3, volume.spacing, target)
    data = (resample_labels if volume.is_label else resample)(volume.data, maps, orders)
    return Volume(data, volume.grid.with_shape(shape), volume.kind)


@dataclass(frozen=True)
class LabelTarget:
    """An empty label map on a file's own grid, seen from the network's grid.

    Attributes:
        volume: the label map, background everywhere, laid out as NIfTI files are.
        view: the part of it inside the crop with the network's axes `(X, Y, Z)`; writing to it fills `volume`.
        maps: where the voxels of `view` lie on the prepared grid, an `AxisMap` an axis.
        thick_axis: the network's axis across thick slices by nnU-Net's rule, or None.
    """

    volume: Volume
    view: NDArray[Any]
    maps: tuple[AxisMap, ...]
    thick_axis: int | None = None


def label_target(prepared: Prepared, settings: Preprocessing, dtype: DTypeLike) -> LabelTarget:
    """Make the label map that a prediction on a prepared image is written to."""
    source, codes = prepared.source, settings.axcodes(prepared.source)
    box = source.reoriented(codes).boxed(prepared.start, prepared.shape)
    maps = separable_maps(prepared.image.grid, box)
    if maps is None:
        raise AssertionError("a prepared grid always runs along its file's axes")
    data = np.zeros(source.shape, dtype, order="F")
    inside = tuple(slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    volume = Volume(data[None], source, "label", prepared.header)
    orders = axis_orders(1, settings.target_spacing(box.spacing), box.spacing)
    thick = orders.index(0) if 0 in orders else None
    return LabelTarget(volume, turned(data, source.axcodes, codes)[inside], maps, thick)


def resolve_methods(wanted: str | Sequence[str], channel_names: Sequence[str]) -> tuple[Method, ...]:
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
    pairs: Iterable[tuple[Volume, Volume]], methods: Sequence[Method], seed: int = 0
) -> tuple[Normalization, ...]:
    """Measure what the normalisations need over the foreground of a training set.

    Args:
        pairs: image and label volumes; read only when some method is ``ct``.
        methods: one per channel.
        seed: of the voxel sample, 20,000 foreground voxels a case.

    Returns:
        ``ct`` channels with percentiles 0.5 and 99.5 as low and high, mean and standard deviation.
    """
    if "ct" not in methods:
        return tuple(Normalization(method=method) for method in methods)
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


def _measured(method: Method, values: NDArray[np.float32]) -> Normalization:
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
