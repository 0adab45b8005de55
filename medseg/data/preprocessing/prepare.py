"""From a volume as it lies on disk to the volume a network sees, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.config import Config
from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.lazy_labels import LabelSlices
from medseg.data.preprocessing.normalize import RGB_TOP, Normalization, Scale, nonzero_mask
from medseg.data.settings import Orientation, Spacing
from medseg.errors import DataError
from medseg.runtime.formatting import pluralise
from medseg.volumes.boxes import bounding_box_of_channels
from medseg.volumes.grid import Grid, separable_maps, shape_at_spacing
from medseg.volumes.orientation import reorient_array, reorientation
from medseg.volumes.resampling import AxisMap, axis_orders, resample_labels
from medseg.volumes.volume import Volume

Box = tuple[tuple[int, ...], tuple[int, ...]]


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
        slices: the image on the network's grid, made some slices at a time.
        grid: the network's.
        source: grid of the file. header: its geometry fields.
        start, shape: the box that was cut from the reoriented file, in voxels.
    """

    slices: PreparedSlices
    grid: Grid
    source: Grid
    header: Any
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @cached_property
    def image(self) -> Volume:
        """All of it, `(C, X, Y, Z)` float32."""
        data = self.slices.slices(0, self.grid.shape[2])
        return Volume(np.ascontiguousarray(np.moveaxis(data, 1, -1)), self.grid)


_PICTURE_ADVICE = {  # by the channels found and expected
    (3, 1): "If it is a picture in colour, convert it to grey.",
    (4, 1): "If it is a picture in colour, convert it to grey, without its alpha channel.",
    (
        1,
        3,
    ): "If it is a picture in grey, convert it to RGB; else give one file per channel, or one that holds them all.",
    (3, 4): "If it is a picture in colour, it lacks the alpha channel that others have: drop theirs.",
    (4, 3): "If it is a picture in colour, drop the alpha channel.",
}


def check_image(image: Volume, channels: int, where: str) -> None:
    """Raise a `DataError` unless `image` has this many channels and only finite voxels."""
    if image.channels != channels:
        advice = "Give one file per channel in the order of training, or one file that holds them all."
        if image.grid.shape[2] == 1:
            advice = _PICTURE_ADVICE.get((image.channels, channels), advice)
        raise DataError(f"{where}: channels: found {image.channels}, expected {channels}. {advice}")
    if image.data.dtype.kind == "f":
        count = sum(int((~np.isfinite(sheet)).sum()) for channel in image.data for sheet in channel)
        if count:
            raise DataError(
                f"{where}: found NaN or infinity in {pluralise(count, 'voxel')}, expected none. Replace them, such as by the value of "
                "the background, if resampling has left them outside the field of view."
            )


def prepare(image: Volume, settings: Preprocessing, where: str = "image", box: Box | None = None) -> Prepared:
    """Reorient, crop to non-zero, normalise, resample (cubic; nnU-Net's rule for thick slices).

    Nothing the size of the image is made but what is asked of the result: it measures now, and computes slices when
    they are asked for.

    Args:
        image: as read from its file.
        settings: resolved preprocessing.
        where: file or case, for messages.
        box: start and shape of the box of the reoriented image to keep, instead of the non-zero one.

    Raises:
        DataError: wrong channel count, NaN or infinite voxels.
    """
    check_image(image, len(settings.channels), where)
    codes = settings.axcodes(image.grid)
    upright = reorient_array(image.data, image.grid.axcodes, codes)
    if box is None and settings.crop_to_nonzero:
        box = _nonzero_box(upright)
    start, shape = box or ((0, 0, 0), upright.shape[1:])
    data = upright[(slice(None), *(slice(s, s + n) for s, n in zip(start, shape, strict=True)))]
    grid = image.grid.reoriented(codes).cropped(start, shape)
    target = settings.target_spacing(grid.spacing)
    wanted = shape_at_spacing(shape, grid.spacing, target) if settings.spacing is not None else shape
    maps = [AxisMap.resize(n, m) for n, m in zip(shape, wanted, strict=True)]
    # nnU-Net's rule looks at the spacing that was asked for. The one that comes out differs from it, because voxels
    # are whole, by enough to decide otherwise where slices are few.
    orders = axis_orders(3, grid.spacing, target)
    slices = PreparedSlices(data, _scales(data, settings.channels, where), maps, orders)
    return Prepared(slices, grid.with_shape(wanted), image.grid, image.header, start, shape)


def prepare_label(label: Volume, prepared: Prepared, settings: Preprocessing) -> Volume:
    """The label map of a prepared image, through the same turn, crop and resampling."""
    cropped = label.reoriented(settings.axcodes(label.grid)).cropped(prepared.start, prepared.shape)
    if prepared.grid.shape == cropped.grid.shape:
        return cropped
    data = resample_labels(cropped.data, *_label_maps(cropped.grid, prepared, settings))
    return Volume(data, cropped.grid.with_shape(prepared.grid.shape), "label")


def label_slices(label: Volume, prepared: Prepared, settings: Preprocessing) -> LabelSlices:
    """The same as `prepare_label`, made some slices at a time; nothing is computed before they are asked for."""
    codes = settings.axcodes(label.grid)
    upright = reorient_array(label.data[0], label.grid.axcodes, codes)
    x, y, z = (slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    grid = label.grid.reoriented(codes).cropped(prepared.start, prepared.shape)
    return LabelSlices(upright[x, y, z], *_label_maps(grid, prepared, settings))


def _label_maps(
    grid: Grid, prepared: Prepared, settings: Preprocessing
) -> tuple[list[AxisMap], tuple[int, ...]]:
    """How a label map on the cropped `grid` is resampled onto the network's: an `AxisMap` and an order an axis."""
    maps = [AxisMap.resize(n, m) for n, m in zip(grid.shape, prepared.grid.shape, strict=True)]
    return maps, axis_orders(1, grid.spacing, settings.target_spacing(grid.spacing))


def _scales(
    data: NDArray[Any], channels: Sequence[Normalization], where: str
) -> list[tuple[Scale, NDArray[np.bool_] | None]]:
    """Every channel of `(C, X, Y, Z)` measured for its own normalisation, with the mask that it needs."""
    mask = nonzero_mask(data) if any(channel.method == "zscore_mask" for channel in channels) else None
    for channel, values in zip(channels, data, strict=True):
        if channel.method == "rgb" and (values.min() < 0 or values.max() > RGB_TOP):
            raise DataError(
                f"{where}: intensities: found {values.min():g} to {values.max():g}, expected 0 to {RGB_TOP} of a "
                "colour picture. Convert it to 8 bits."
            )
    return [(channel.scale(values, mask), mask) for channel, values in zip(channels, data, strict=True)]


@dataclass(frozen=True)
class LabelTarget:
    """An empty label map on a file's own grid, seen from the network's grid.

    Attributes:
        volume: the label map, background everywhere, laid out as NIfTI files are.
        maps: where the voxels of `view` lie on the prepared grid, an `AxisMap` an axis.
        thick_axis: the network's axis across thick slices by nnU-Net's rule, or None.
        codes: axis codes of the network's arrays. box: the crop, in their voxels.
    """

    volume: Volume
    maps: tuple[AxisMap, ...]
    thick_axis: int | None
    codes: str
    box: tuple[slice, slice, slice]

    @property
    def view(self) -> NDArray[Any]:
        """The part of the label map inside the crop with the network's axes; writing to it fills `volume`."""
        return self.view_of(self.volume.data[0])

    def file_axis(self, axis: int) -> int:
        """The file's own axis that the network's `axis` runs along."""
        return int(reorientation(self.volume.grid.axcodes, self.codes)[0][axis])

    def view_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """That part of any array `(*leading, X, Y, Z)` on the file's grid; a view."""
        x, y, z = self.box
        return reorient_array(array, self.volume.grid.axcodes, self.codes)[..., x, y, z]


def label_target(prepared: Prepared, settings: Preprocessing, dtype: DTypeLike) -> LabelTarget:
    """Make the label map that a prediction on a prepared image is written to."""
    source, codes = prepared.source, settings.axcodes(prepared.source)
    box = source.reoriented(codes).cropped(prepared.start, prepared.shape)
    maps = separable_maps(prepared.grid, box)
    if maps is None:
        raise AssertionError("a prepared grid always runs along its file's axes")
    data = np.zeros(source.shape, dtype, order="F")
    x, y, z = (slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    volume = Volume(data[None], source, "label", prepared.header)
    orders = axis_orders(1, settings.target_spacing(box.spacing), box.spacing)
    thick = orders.index(0) if 0 in orders else None
    return LabelTarget(volume, maps, thick, codes, (x, y, z))


def _nonzero_box(data: NDArray[Any]) -> Box:
    """Return start and shape of the box of voxels of `(C, X, Y, Z)` that are not 0 in some channel."""
    sides = bounding_box_of_channels(data)
    return tuple(side.start for side in sides), tuple(side.stop - side.start for side in sides)
