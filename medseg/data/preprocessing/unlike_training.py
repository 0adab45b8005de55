"""Images unlike those that a model was trained on: another number of channels, constant, a single slice, other ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.preprocessing.prepare import Preprocessing, channels_advice
from medseg.data.preprocessing.training_data import (
    ChannelRanges,
    ImageMeasures,
    Range,
    TrainingData,
    measure_image,
)
from medseg.errors import DataError, warn_once
from medseg.volumes.plausible import format_dimensions
from medseg.volumes.volume import Volume

_STRIDE = 8  # voxels; almost every image differs within its first sample
SIZE_FACTOR = 2.0
"""Factor beyond the range of the training images from which a voxel size or a field of view is reported."""
SCALE_FACTOR = 10.0
"""The same for the contrast of a channel that is normalised by the statistics of each image."""
INTENSITY_MARGIN = 0.25
"""Part of the width of the training intensities by which those of an image may be outside of them."""
VOLUME_FACTOR = 3.0
"""Factor beyond the range of the training cases from which the volume of a predicted label is reported."""


def check_against_model(
    image: Volume, names: Sequence[str], window: Sequence[int], files: Sequence[str], where: str
) -> None:
    """Raise if an image has another number of channels than a model, and warn if the model will find nothing in it.

    Args:
        image: Image as read from its files.
        names: Names of the channels of the model.
        window: Voxels of the model's window per axis; 1 along the slice axis of a 2D model.
        files: Names of the image's files.
        where: First file, for messages.

    Raises:
        DataError: The number of channels differs.
    """
    if image.channels != len(names):
        raise DataError(
            f"{where}: channels: found {image.channels} ({', '.join(files)}), expected {len(names)} ({', '.join(names)}). "
            f"{channels_advice(image, len(names))}"
        )
    for index, (name, channel) in enumerate(zip(names, image.data, strict=True)):
        if index not in image.absent and is_constant(channel):
            warn_once(
                f"{where}: channel {name}: found the value {channel.flat[0]:g} in all voxels, expected different values. Check the "
                "file; models label most images without contrast as background."
            )
    if min(window) > 1 and min(image.grid.shape) == 1:
        shape = "x".join(map(str, image.grid.shape))
        warn_once(
            f"{where}: found a single slice ({shape} voxels), expected a volume, because the model is 3D and the windows are mostly "
            "padding. Give the volume, or use a 2D model."
        )


def is_constant(values: NDArray[Any]) -> bool:
    """Return whether all values are equal; most arrays are decided by a sample."""
    first = values.flat[0]
    sample = values[tuple(slice(None, None, _STRIDE) for _ in values.shape)]
    return bool((sample == first).all()) and bool(np.all(values == first))


@dataclass(frozen=True)
class Deviation:
    """A property of an image, or of a prediction, that is outside of the range of the training data.

    Attributes:
        field: The property, such as ``voxel size``.
        found: Its value.
        expected: The range of the training data.
    """

    field: str
    found: str
    expected: str

    def sentence(self, where: str) -> str:
        """Return a message.

        Args:
            where: The file.

        Returns:
            One line with file, property, value, range and remedy.
        """
        return unlike_sentence(where, self.field, self.found, self.expected)


def unlike_sentence(where: str, field: str, found: str, expected: str) -> str:
    """Return a message about a property that is outside of its range.

    Args:
        where: The file.
        field: The property.
        found: Its value.
        expected: The range.

    Returns:
        One line with file, property, value, range and remedy.
    """
    return (
        f"{where}: {field}: found {found}, expected {expected}, which the model was trained on. Check the labels: "
        "models may fail on images unlike those of their training."
    )


def image_notes(
    image: Volume, data: TrainingData | None, settings: Preprocessing, names: Sequence[str], where: str
) -> tuple[str, ...]:
    """Return sentences about how an image differs from the training images of a model.

    Args:
        image: Image as read from its file.
        data: Record of the training images; None if there is none.
        settings: Preprocessing of the model.
        names: Names of the channels.
        where: Name of the image, for the sentences.

    Returns:
        One sentence for each absent channel, and for each property that is outside of the range of the training images.
    """
    absent = tuple(
        f"{where}: channel {names[index]}: found no file; zeros were used, as for training cases without it."
        for index in image.absent
    )
    if data is None:
        return absent
    found = image_deviations(measure_image(image, settings), data, settings, names)
    return (*absent, *(one.sentence(where) for one in found))


def image_deviations(
    image: ImageMeasures, data: TrainingData, settings: Preprocessing, names: Sequence[str]
) -> Iterator[Deviation]:
    """Yield how an image differs from the training images of a model.

    Args:
        image: Measurements of the image.
        data: Record of the training images.
        settings: Preprocessing of the model.
        names: Names of the channels.

    Yields:
        One deviation for the voxel size, one for the field of view, and one for each channel.
    """
    for field, values, ranges in (
        ("voxel size", image.spacing, data.spacing),
        ("field of view", image.extent, data.extent),
    ):
        if values is not None and ranges is not None and any(map(_far, values, ranges)):
            yield Deviation(field, f"{format_dimensions(values)} mm", f"{' x '.join(map(_text, ranges))} mm")
    for index, name in enumerate(names):
        if index in image.absent:
            continue
        low, high = image.low[index], image.high[index]
        expected = None
        if index < len(data.channels):
            ranges_of = data.channels[index]
            scaled = settings.channels[index].method.startswith("zscore")
            if (_other_scale if scaled else _other_intensities)(low, high, ranges_of):
                expected = f"{_text(ranges_of.low)} to {_text(ranges_of.high)}"
        elif index < len(data.foreground) and not _overlap((low, high), data.foreground[index]):
            expected = f"values among {_text(data.foreground[index])}, those of the labelled voxels"
        if expected is not None:
            yield Deviation(f"channel {name}", f"intensities from {low:g} to {high:g}", expected)


def volume_deviations(volumes_ml: Mapping[str, float], data: TrainingData) -> Iterator[Deviation]:
    """Yield which labels of a prediction have volumes far from those of the training cases.

    Args:
        volumes_ml: Volumes of the predicted labels or regions in ml, by name.
        data: Record of the training cases.

    Yields:
        One deviation for each such label.
    """
    for name, found in volumes_ml.items():
        if name in data.volumes_ml:
            low, high = data.volumes_ml[name]
            if found * VOLUME_FACTOR < low or found > high * VOLUME_FACTOR:
                yield Deviation(f"volume of {name}", f"{found:.3g} ml", f"{_text((low, high))} ml")


def _far(value: float, among: Range) -> bool:
    return not among[0] / SIZE_FACTOR <= value <= among[1] * SIZE_FACTOR


def _other_scale(low: float, high: float, among: ChannelRanges) -> bool:
    """Return whether the contrast is far from that of the training images; zero contrast is reported elsewhere."""
    width = high - low
    widest = among.high[1] - among.low[0]
    narrowest = max(0.0, among.high[0] - among.low[1])
    return width > 0 and not narrowest / SCALE_FACTOR <= width <= widest * SCALE_FACTOR


def _other_intensities(low: float, high: float, among: ChannelRanges) -> bool:
    margin = INTENSITY_MARGIN * (among.high[1] - among.low[0])
    return not all(
        first - margin <= value <= last + margin
        for value, (first, last) in ((low, among.low), (high, among.high))
    )


def _overlap(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _text(among: Range) -> str:
    low, high = (f"{value:.4g}" for value in among)
    return low if low == high else f"{low}..{high}"
