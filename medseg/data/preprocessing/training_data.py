"""The record of the images that a model was trained on: voxel sizes, fields of view, intensities and volumes of labels.

It is measured when cases are prepared, stored in the model folder, and compared with new images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg.config import Config
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import voxel_counts
from medseg.volumes.volume import Volume

Range = tuple[float, float]
_SAMPLED_VOXELS = 100_000
_LOW_PERCENTILE, _HIGH_PERCENTILE = 0.5, 99.5
_DIGITS = 6


class ImageMeasures(Config):
    """The measurements of one image; axes are those of the arrays that the model sees.

    Attributes:
        spacing: Voxel size in mm per axis; null for an image without physical voxel size.
        extent: Field of view in mm per axis; null without physical voxel size.
        low: The 0.5th percentile of the intensities of each channel; 0 for absent ones.
        high: The 99.5th percentile of the intensities of each channel; 0 for absent ones.
        volumes_ml: Volume of each label or region in ml by name, without labels that were not annotated in this case.
        absent: Indices of channels that the image lacks.
    """

    spacing: tuple[float, float, float] | None = None
    extent: tuple[float, float, float] | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    volumes_ml: dict[str, float] = Field(default_factory=dict)
    absent: tuple[int, ...] = ()


class ChannelRanges(Config):
    """The intensities of one channel over all training images.

    Attributes:
        low: Smallest and largest 0.5th percentile of an image.
        high: Smallest and largest 99.5th percentile of an image.
    """

    low: Range
    high: Range


class TrainingData(Config):
    """The ranges of the training images of a model; each is the smallest and the largest value of a case.

    Attributes:
        cases: Number of training cases.
        spacing: Voxel size in mm per axis of the model's arrays; null if unknown.
        extent: Field of view in mm per axis; null if unknown.
        channels: Intensities of each channel, after reading; empty if unknown.
        foreground: The 0.5th and the 99.5th percentile of the labelled voxels of each channel, if that is all that is known
            of the intensities, as of models imported from nnU-Net.
        volumes_ml: Volume of each label or region in ml, by name, where it was annotated.
    """

    cases: int
    spacing: tuple[Range, Range, Range] | None = None
    extent: tuple[Range, Range, Range] | None = None
    channels: tuple[ChannelRanges, ...] = ()
    foreground: tuple[Range, ...] = ()
    volumes_ml: dict[str, Range] = Field(default_factory=dict)

    @classmethod
    def from_images(cls, images: Sequence[ImageMeasures]) -> Self:
        """Return the ranges over images.

        Args:
            images: Measurements of the training images, at least one.

        Returns:
            The record.

        Examples:
            >>> one = ImageMeasures(spacing=(1, 1, 2), extent=(100, 100, 80), low=(-1000,), high=(900,), volumes_ml={"liver": 5})
            >>> other = one.replace(spacing=(1, 1, 3), volumes_ml={"liver": 8})
            >>> found = TrainingData.from_images([one, other])
            >>> found.spacing[2], found.volumes_ml
            ((2.0, 3.0), {'liver': (5.0, 8.0)})
        """
        names = dict.fromkeys(name for image in images for name in image.volumes_ml)
        return cls(
            cases=len(images),
            spacing=_axis_ranges([image.spacing for image in images]),
            extent=_axis_ranges([image.extent for image in images]),
            channels=_channel_ranges(images),
            volumes_ml={
                name: _range(image.volumes_ml[name] for image in images if name in image.volumes_ml)
                for name in names
            },
        )

    @classmethod
    def union(cls, records: Sequence[TrainingData]) -> Self:
        """Return the ranges over several records of one dataset, such as those of the folds of a cross-validation.

        Args:
            records: Records with the same channels, at least one.

        Returns:
            The record; the number of cases is the largest, because folds share cases.
        """
        plain = [record.to_plain() for record in records]
        first, *others = plain
        for other in others:
            first = {key: _joined(value, other[key]) for key, value in first.items()}
        return cls.parse({**first, "cases": max(record.cases for record in records)})


def _joined(one: Any, other: Any) -> Any:
    """Return nested ranges that cover both; what is unknown in one of them is unknown."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: _joined(one[key], other[key])
            if key in one and key in other
            else one.get(key, other.get(key))
            for key in {**one, **other}
        }
    if not isinstance(one, list) or not isinstance(other, list):
        return None if one is None or other is None else one
    if len(one) == 2 and not isinstance(one[0], list | dict):
        return [min(one[0], other[0]), max(one[1], other[1])]
    return [_joined(mine, its) for mine, its in zip(one, other, strict=True)]


def measure_image(
    image: Volume, settings: Preprocessing, volumes_ml: Mapping[str, float] | None = None
) -> ImageMeasures:
    """Measure an image; intensities are those of a regular sample of at most about 100,000 voxels.

    Args:
        image: Image `(C, X, Y, Z)` as read from its file.
        settings: Preprocessing of the model, for the order of axes.
        volumes_ml: Volumes of its labels in ml, from `label_volumes`.

    Returns:
        The measurements.
    """
    grid = image.grid.reoriented(settings.axcodes(image.grid))
    physical = not grid.in_pixels
    samples = [_sample(channel) for channel in image.data]
    extent = [size * count for size, count in zip(grid.spacing, grid.shape, strict=True)]
    return ImageMeasures(
        spacing=_rounded(grid.spacing) if physical else None,
        extent=_rounded(extent) if physical else None,
        low=_rounded(np.percentile(sample, _LOW_PERCENTILE) for sample in samples),
        high=_rounded(np.percentile(sample, _HIGH_PERCENTILE) for sample in samples),
        volumes_ml={name: float(f"{ml:.{_DIGITS}g}") for name, ml in (volumes_ml or {}).items()},
        absent=image.absent,
    )


def annotated_volumes(
    values: NDArray[Any], voxel_mm3: float, labels: Labels, annotated: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the volume of each label or region that was annotated in a label map.

    Args:
        values: Label values, of any shape.
        voxel_mm3: Volume of a voxel in mm³.
        labels: Labels that the map may contain.
        annotated: Names of the labels that are annotated; None for all. Others are left out.

    Returns:
        Volume in ml by name.
    """
    voxels = voxel_counts(values)
    known = {label.value for label in labels.foreground if annotated is None or label.name in annotated}
    return {
        region.name: sum(voxels.get(value, 0) for value in region.values) * voxel_mm3 / 1000
        for region in labels.evaluated
        if known.issuperset(region.values)
    }


def _sample(channel: NDArray[Any]) -> NDArray[np.float64]:
    """Return the finite values of a regular sample of a channel `(X, Y, Z)`; a single 0 if there is none."""
    step = max(1, math.ceil((channel.size / _SAMPLED_VOXELS) ** (1 / 3)))
    steps = tuple(slice(None, None, min(step, max(1, size // 8))) for size in channel.shape)
    values = np.asarray(channel[steps], dtype=np.float64)
    finite = values[np.isfinite(values)]
    return finite if finite.size else np.zeros(1)


def _channel_ranges(images: Sequence[ImageMeasures]) -> tuple[ChannelRanges, ...]:
    """Return the intensities of each channel over the images that have it."""
    found = []
    for index in range(len(images[0].low)):
        having = [image for image in images if index not in image.absent] or images
        low, high = (_range(getattr(image, side)[index] for image in having) for side in ("low", "high"))
        found.append(ChannelRanges(low=low, high=high))
    return tuple(found)


def _axis_ranges(values: Sequence[tuple[float, float, float] | None]) -> tuple[Range, Range, Range] | None:
    known = [one for one in values if one is not None]
    if not known or len(known) < len(values):
        return None
    x, y, z = (_range(axis) for axis in zip(*known, strict=True))
    return x, y, z


def _range(values: Any) -> Range:
    listed = list(values)
    return float(min(listed)), float(max(listed))


def _rounded(values: Any) -> Any:
    return tuple(float(f"{float(value):.{_DIGITS}g}") for value in values)
