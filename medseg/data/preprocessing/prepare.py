"""Preparation of images and label maps for the network, and the way back to the grid of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.config import Config
from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.lazy_labels import LabelSlices
from medseg.data.preprocessing.normalize import RGB_TOP, Normalization, Scale, mask_rows, nonzero_mask
from medseg.data.settings import Orientation, Spacing
from medseg.errors import DataError
from medseg.runtime.formatting import pluralise
from medseg.volumes.boxes import bounding_box_of_channels
from medseg.volumes.grid import Grid, separable_maps, shape_at_spacing
from medseg.volumes.orientation import reorient_array, reorientation
from medseg.volumes.plausible import check_plausible, check_resampling
from medseg.volumes.resampling import AxisMap, axis_orders, resample
from medseg.volumes.volume import Volume

Box = tuple[tuple[int, ...], tuple[int, ...]]
_UNCHANGED = Normalization(method="none")


class Preprocessing(Config):
    """Everything needed to prepare an image; stored with a model, so that prediction repeats training.

    Attributes:
        orientation: Axis codes of the network's arrays; null keeps the axes of each file.
        spacing: Voxel size in mm per array axis; null, for all axes or for one of them, keeps the spacing of each file.
        crop_to_nonzero: Whether images are cropped to the box of voxels that are non-zero in any channel.
        channels: One normalisation per channel.
        resample_raw: Spline order with which intensities are resampled before they are cropped and normalised, as in
            TotalSegmentator: the centres of the outermost voxels stay in place, results lose their fraction, and each voxel of a
            label map takes the label of the nearest voxel of the network. null resamples normalised intensities by a cubic
            spline, and logits linearly.
    """

    orientation: Orientation | None = "RAS"
    spacing: Spacing | None = None
    crop_to_nonzero: bool = True
    channels: tuple[Normalization, ...] = (Normalization(),)
    resample_raw: Literal[1, 3] | None = None

    def axcodes(self, source: Grid) -> str:
        """Return the axis codes of the network's arrays for a file with the grid `source`."""
        return self.orientation or source.axcodes

    def target_spacing(self, own: Sequence[float]) -> tuple[float, ...]:
        """Return the spacing (mm) along the network's axes for an image whose spacing along them is `own`."""
        wanted = self.spacing or (None, None, None)
        return tuple(mine if value is None else value for value, mine in zip(wanted, own, strict=True))


@dataclass(frozen=True)
class Prepared:
    """A prepared image, and the geometry that brings a result back to the grid of the file.

    Attributes:
        slices: The image on the network's grid, computed some slices at a time.
        grid: Grid of the prepared image.
        source: Grid of the file.
        header: Geometry fields of the file.
        start: First voxel of the box that was cropped from the reoriented file.
        shape: Shape of that box, in voxels.
    """

    slices: PreparedSlices
    grid: Grid
    source: Grid
    header: Any
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @cached_property
    def image(self) -> Volume:
        """The whole prepared image, `(C, X, Y, Z)` float32."""
        data = self.slices.slices(0, self.grid.shape[2])
        return Volume(np.ascontiguousarray(np.moveaxis(data, 1, -1)), self.grid)


_NATURAL_IMAGE_ADVICE = {  # by the channels found and expected
    (3, 1): "If it is a colour image, convert it to grey.",
    (4, 1): "If it is a colour image, convert it to grey, without its alpha channel.",
    (
        1,
        3,
    ): "If it is a grey image, convert it to RGB; otherwise give one file per channel, or one file that holds them all.",
    (3, 4): "If it is a colour image, it lacks the alpha channel of the other images: remove theirs.",
    (4, 3): "If it is a colour image, remove the alpha channel.",
}


def channels_advice(image: Volume, channels: int) -> str:
    """Return the remedy for an image with other than the expected number of channels."""
    advice = "Give one file per channel in the order of training, or one file that holds them all."
    if image.grid.shape[2] == 1:
        advice = _NATURAL_IMAGE_ADVICE.get((image.channels, channels), advice)
    return advice


def check_image(image: Volume, channels: int, where: str) -> None:
    """Raise unless an image has the right number of channels, only finite voxels and a plausible grid.

    Args:
        image: Image as read from its file.
        channels: Expected number of channels.
        where: File or case, for messages.

    Raises:
        DataError: It has another number of channels, NaN or infinite voxels, or a grid that no scanner produces.
    """
    if image.channels != channels:
        advice = channels_advice(image, channels)
        raise DataError(f"{where}: channels: found {image.channels}, expected {channels}. {advice}")
    check_plausible(image.grid, where)
    if image.data.dtype.kind == "f":
        count = sum(int((~np.isfinite(sheet)).sum()) for channel in image.data for sheet in channel)
        if count:
            first = next(
                (x, *np.argwhere(~np.isfinite(sheet))[0].tolist())
                for channel in image.data
                for x, sheet in enumerate(channel)
                if not np.isfinite(sheet).all()
            )
            raise DataError(
                f"{where}: found NaN or infinity in {pluralise(count, 'voxel')}, the first at {first}, expected none. Replace them, for "
                "example by the value of the background if resampling left them outside the field of view."
            )


def prepare(image: Volume, settings: Preprocessing, where: str = "image", box: Box | None = None) -> Prepared:
    """Reorient, crop to non-zero, normalise and resample an image (cubic; nnU-Net's rule for thick slices).

    Statistics for the normalisation are measured immediately. Voxels are computed when slices of the result are
    requested, so that no copy of the image is created.

    Args:
        image: Image as read from its file.
        settings: Resolved preprocessing.
        where: File or case, for messages.
        box: Start and shape of the box of the reoriented image to keep, instead of the non-zero one.

    Returns:
        The prepared image, whose voxels are still to be computed.

    Raises:
        DataError: The image has another number of channels, NaN or infinite voxels, or intensities that its
            normalisation refuses.
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
    check_resampling(shape, grid.spacing, wanted, target, where)
    maps = [AxisMap.resize(n, m) for n, m in zip(shape, wanted, strict=True)]
    # nnU-Net's rule uses the requested spacing. The resulting one differs from it, because the number of voxels is whole,
    # and with few slices the difference could change the decision.
    orders = axis_orders(3, grid.spacing, target)
    slices = PreparedSlices(data, _scales(data, settings.channels, image.absent, where), maps, orders)
    return Prepared(slices, grid.with_shape(wanted), image.grid, image.header, start, shape)


def prepare_label(label: Volume, prepared: Prepared, settings: Preprocessing) -> Volume:
    """Reorient, crop and resample the label map of a prepared image in the same way.

    The result is computed some slices at a time, so little more memory is needed than for the result itself.

    Args:
        label: Label map on the grid of the file.
        prepared: The prepared image.
        settings: Preprocessing of the image.

    Returns:
        Label map on the grid of the prepared image.
    """
    slices = label_slices(label, prepared, settings)
    return Volume(slices.whole()[None], prepared.grid, "label")


def label_slices(label: Volume, prepared: Prepared, settings: Preprocessing) -> LabelSlices:
    """Return the result of `prepare_label` as slices that are computed when they are requested.

    Args:
        label: Label map on the grid of the file.
        prepared: The prepared image.
        settings: Preprocessing of the image.

    Returns:
        Lazy slices of the label map on the grid of the prepared image.
    """
    codes = settings.axcodes(label.grid)
    upright = reorient_array(label.data[0], label.grid.axcodes, codes)
    x, y, z = (slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    grid = label.grid.reoriented(codes).cropped(prepared.start, prepared.shape)
    return LabelSlices(upright[x, y, z], *_label_resampling(grid, prepared, settings))


def prepare_probabilities(
    probabilities: Volume, prepared: Prepared, settings: Preprocessing
) -> NDArray[np.float32]:
    """Reorient, crop and resample the label probabilities of a prepared image, each channel linearly.

    Where `prepare_label` takes the nearest slice by the rule for thick slices, so does this function.

    Args:
        probabilities: Probabilities `(K, X, Y, Z)` on the grid of the file.
        prepared: The prepared image.
        settings: Preprocessing of the image.

    Returns:
        Probabilities `(K, X, Y, Z)` on the grid of the prepared image.
    """
    codes = settings.axcodes(probabilities.grid)
    upright = reorient_array(probabilities.data, probabilities.grid.axcodes, codes)
    x, y, z = (slice(s, s + n) for s, n in zip(prepared.start, prepared.shape, strict=True))
    grid = probabilities.grid.reoriented(codes).cropped(prepared.start, prepared.shape)
    maps, orders = _label_resampling(grid, prepared, settings)
    return np.stack([resample(channel[x, y, z], maps, orders) for channel in upright])


def prepare_masks(prepared: Prepared, settings: Preprocessing) -> NDArray[np.uint8] | None:
    """Return the voxels that masked normalisations have changed, resampled like a label map.

    Args:
        prepared: The prepared image.
        settings: Its preprocessing.

    Returns:
        Masks `(M, X, Y, Z)` of 0 and 1 on the grid of the prepared image, in the rows of `mask_rows`; None if no channel has
        a masked normalisation.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    for row, mask in zip(mask_rows(settings.channels), prepared.slices.masks, strict=True):
        if row is not None and mask is not None:
            masks[row] = mask
    if not masks:
        return None
    codes = settings.axcodes(prepared.source)
    grid = prepared.source.reoriented(codes).cropped(prepared.start, prepared.shape)
    maps, orders = _label_resampling(grid, prepared, settings)
    return np.stack([LabelSlices(masks[row].view(np.uint8), maps, orders).whole() for row in sorted(masks)])


def _label_resampling(
    grid: Grid, prepared: Prepared, settings: Preprocessing
) -> tuple[list[AxisMap], tuple[int, ...]]:
    """Return an `AxisMap` and a spline order per axis, to resample a label map from its cropped `grid` to the prepared one."""
    maps = [AxisMap.resize(n, m) for n, m in zip(grid.shape, prepared.grid.shape, strict=True)]
    return maps, axis_orders(1, grid.spacing, settings.target_spacing(grid.spacing))


def _scales(
    data: NDArray[Any], channels: Sequence[Normalization], absent: Sequence[int], where: str
) -> list[tuple[Scale, NDArray[np.bool_] | None]]:
    """Measure every channel of `(C, X, Y, Z)` for its normalisation, and return it with the mask that it needs.

    An absent channel is 0; methods that measure the image leave it there, and others are replaced by no change.
    """
    mask = nonzero_mask(data) if any(channel.method == "zscore_mask" for channel in channels) else None
    for channel, values in zip(channels, data, strict=True):
        if channel.method == "rgb" and (values.min() < 0 or values.max() > RGB_TOP):
            raise DataError(
                f"{where}: intensities: found {values.min():g} to {values.max():g}, expected 0 to {RGB_TOP} of a "
                "colour image. Convert it to 8 bits."
            )
    used = [
        _UNCHANGED if index in absent and one.method == "ct" else one for index, one in enumerate(channels)
    ]
    return [(channel.scale(values, mask), mask) for channel, values in zip(used, data, strict=True)]


@dataclass(frozen=True)
class LabelTarget:
    """An empty label map on the grid of a file, with a view of it along the axes of the network.

    Attributes:
        volume: The label map, background everywhere, in the memory order of NIfTI files.
        maps: Positions of the voxels of `view` on the prepared grid, one `AxisMap` per axis.
        thick_axis: The network's axis perpendicular to thick slices by nnU-Net's rule; None without thick slices.
        codes: Axis codes of the network's arrays.
        box: The crop, in voxels along the network's axes.
    """

    volume: Volume
    maps: tuple[AxisMap, ...]
    thick_axis: int | None
    codes: str
    box: tuple[slice, slice, slice]

    @property
    def view(self) -> NDArray[Any]:
        """The part of the label map inside the crop, with the network's axes; writing to it fills `volume`."""
        return self.view_of(self.volume.data[0])

    def placed_in(self, volume: Volume, start: Sequence[int]) -> LabelTarget:
        """Return the target of the same prediction in a larger label map.

        Args:
            volume: Label map; a box of it has the grid of this target's.
            start: First voxel of that box, along the axes of the file.

        Returns:
            A target whose view is a part of `volume`.
        """
        axes, flips = reorientation(volume.grid.axcodes, self.codes)
        own, whole = self.volume.grid.shape, volume.grid.shape
        shifts = [
            whole[axis] - start[axis] - own[axis] if flip else start[axis]
            for axis, flip in zip(axes, flips, strict=True)
        ]
        x, y, z = (slice(b.start + by, b.stop + by) for b, by in zip(self.box, shifts, strict=True))
        return LabelTarget(volume, self.maps, self.thick_axis, self.codes, (x, y, z))

    def file_axis(self, axis: int) -> int:
        """Return the axis of the file along which the network's `axis` runs."""
        return int(reorientation(self.volume.grid.axcodes, self.codes)[0][axis])

    def view_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the part of an array `(*leading, X, Y, Z)` on the grid of the file that corresponds to `view`, as a view."""
        x, y, z = self.box
        return reorient_array(array, self.volume.grid.axcodes, self.codes)[..., x, y, z]


def label_target(prepared: Prepared, settings: Preprocessing, dtype: DTypeLike) -> LabelTarget:
    """Return an empty label map for the prediction of a prepared image.

    Args:
        prepared: The prepared image.
        settings: Its preprocessing.
        dtype: Integer type of the labels.

    Returns:
        Label map of background on the grid of the file.
    """
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
    """Return start and shape of the box of voxels of `(C, X, Y, Z)` that are non-zero in any channel; the whole image if there are none."""
    sides = bounding_box_of_channels(data)
    return tuple(side.start for side in sides), tuple(side.stop - side.start for side in sides)
