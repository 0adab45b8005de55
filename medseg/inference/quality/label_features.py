"""Properties of the labels of a prediction that distinguish a usual segmentation from an unusual one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.inference.quality.image_features import Features, IntensitySample
from medseg.labels.components import connected_components
from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import label_volumes
from medseg.volumes.boxes import Box, boxes_of_values, union_of_boxes
from medseg.volumes.volume import Volume

_MASK_VOXELS = 8_000_000  # of the box of a label; larger ones are sampled for components and extent
_LARGEST_LIST = (
    1 << 16
)  # values up to here are found by a list of boxes, which takes no copy of the label map
_LEAST_SAMPLED = 20  # voxels of a label for the mean of their intensities
_DIGITS = 6


def label_features(
    label_map: Volume, labels: Labels, sample: IntensitySample | None, names: Sequence[str]
) -> Features:
    """Measure the labels of a prediction.

    Args:
        label_map: Label map `(1, X, Y, Z)` with the labels' values.
        labels: Labels of the model.
        sample: Intensities of the image on the same grid; None without.
        names: Names of the channels.

    Returns:
        By kind and then by label or region:

        - ``empty``: 1 if it is absent, else 0; an absent label has no other values.
        - ``volume``: volume in ml; in 1,000 pixels for an image without physical voxel size.
        - ``components``: number of connected components.
        - ``border``: fraction of its voxels at the border of the scan.
        - ``extent``: standard deviation of its voxels' distance from their centre, relative to the cube root of its volume.
        - ``intensity``, by label and channel: mean rank of its voxels among all voxels of the image, 0 to 1.
    """
    data = label_map.data[0]
    volumes = {one.name: one.ml for one in label_volumes(label_map, labels)}
    boxes, at_border = _boxes(data), _border_counts(data)
    voxel_mm3 = label_map.grid.voxel_volume
    found: Features = {}

    def add(kind: str, subject: str, value: float) -> None:
        found.setdefault(kind, {})[subject] = float(f"{value:.{_DIGITS}g}")

    for one in labels.evaluated:
        parts = [boxes[value] for value in one.values if value in boxes]
        add("empty", one.name, float(not parts))
        if parts:
            voxels = round(volumes[one.name] * 1000 / voxel_mm3)
            box = union_of_boxes(parts, data.shape)
            step = math.ceil((math.prod(part.stop - part.start for part in box) / _MASK_VOXELS) ** (1 / 3))
            mask = np.isin(data[box][::step, ::step, ::step], one.values)
            spacing = [size * step for size in label_map.grid.spacing]
            add("volume", one.name, volumes[one.name])
            add("components", one.name, connected_components(mask)[1])
            add("border", one.name, sum(at_border.get(value, 0) for value in one.values) / voxels)
            add("extent", one.name, _extent(mask, spacing) / (voxels * voxel_mm3) ** (1 / 3))
            inside = None if sample is None else np.isin(data[sample.steps], one.values)
            if sample is not None and inside is not None and inside.sum() >= _LEAST_SAMPLED:
                for name, ranks in zip(names, sample.ranks, strict=True):
                    add("intensity", f"{one.name} in {name}", float(ranks[inside].mean()))
    return found


def _boxes(data: NDArray[Any]) -> dict[int, Box]:
    """Return the bounding box of each foreground value."""
    if data.max() >= _LARGEST_LIST:
        return boxes_of_values(data)
    boxes = ndimage.find_objects(data)
    return {value: box for value, box in enumerate(boxes, start=1) if box is not None}


def _border_counts(data: NDArray[Any]) -> dict[int, int]:
    """Return the number of voxels of each value in the outermost layer of the scan; axes of one voxel have no border."""
    counts: dict[int, int] = {}
    for axis, size in enumerate(data.shape):
        if size > 1:
            for face in (data.take(0, axis), data.take(-1, axis)):
                values, found = np.unique(face, return_counts=True)
                for value, count in zip(values.tolist(), found.tolist(), strict=True):
                    counts[value] = counts.get(value, 0) + count
            # what the next faces have in common with these is not counted twice
            data = data[(slice(None),) * axis + (slice(1, -1),)]
    return counts


def _extent(mask: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Return the standard deviation in mm of the distance of voxels from their centre."""
    variance = 0.0
    for axis, size in enumerate(spacing):
        counts = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis), dtype=np.float64)
        if not counts.any():  # a few voxels between those of the sample
            return 0.0
        places = np.arange(counts.size) * size
        mean = np.average(places, weights=counts)
        variance += float(np.average((places - mean) ** 2, weights=counts))
    return math.sqrt(variance)
