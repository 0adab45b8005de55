"""Properties of the labels of a prediction that tell a usual segmentation from an unusual one."""

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
from medseg.volumes.boxes import union_of_boxes
from medseg.volumes.volume import Volume

_COMPONENT_VOXELS = 8_000_000  # of the box of a label; larger ones are sampled
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
    data, boxes = label_map.data[0], _boxes(label_map.data[0])
    found: Features = {}
    for one in labels.evaluated:
        parts = [boxes[value] for value in one.values if value in boxes]
        found.setdefault("empty", {})[one.name] = float(not parts)
        if parts:
            box = union_of_boxes(parts, data.shape)
            mask = np.isin(data[box], one.values)
            for kind, value in _mask_features(mask, box, label_map).items():
                found.setdefault(kind, {})[one.name] = float(f"{value:.{_DIGITS}g}")
            if sample is not None:
                inside = np.isin(data[sample.steps], one.values)
                if inside.sum() >= _LEAST_SAMPLED:
                    for name, ranks in zip(names, sample.ranks, strict=True):
                        mean = float(ranks[inside].mean())
                        found.setdefault("intensity", {})[f"{one.name} in {name}"] = float(
                            f"{mean:.{_DIGITS}g}"
                        )
    return found


def _boxes(data: NDArray[Any]) -> dict[int, tuple[slice, ...]]:
    """Return the bounding box of each value except 0."""
    found = ndimage.find_objects(data)
    return {value: box for value, box in enumerate(found, start=1) if box is not None}


def _mask_features(mask: NDArray[np.bool_], box: tuple[slice, ...], label_map: Volume) -> dict[str, float]:
    voxels = int(mask.sum())
    voxel_ml = label_map.grid.voxel_volume / 1000
    return {
        "volume": voxels * voxel_ml,
        "components": float(_components(mask)),
        "border": _at_border(mask, box, label_map.grid.shape) / voxels,
        "extent": _extent(mask, label_map.grid.spacing) / (voxels * label_map.grid.voxel_volume) ** (1 / 3),
    }


def _components(mask: NDArray[np.bool_]) -> int:
    """Return the number of components; of a regular sample if the mask is large."""
    step = math.ceil((mask.size / _COMPONENT_VOXELS) ** (1 / 3))
    return connected_components(mask[(slice(None, None, step),) * mask.ndim])[1]


def _at_border(mask: NDArray[np.bool_], box: tuple[slice, ...], shape: Sequence[int]) -> int:
    """Return the number of voxels in the outermost layer of the scan; axes of one voxel have no border."""
    inner = []
    for part, size in zip(box, shape, strict=True):
        first = 1 if size > 1 and part.start == 0 else 0
        last = part.stop - part.start - (1 if size > 1 and part.stop == size else 0)
        inner.append(slice(first, max(first, last)))
    return int(mask.sum() - mask[tuple(inner)].sum())


def _extent(mask: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Return the standard deviation in mm of the distance of voxels from their centre."""
    variance = 0.0
    for axis, size in enumerate(spacing):
        counts = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis), dtype=np.float64)
        places = np.arange(counts.size) * size
        mean = np.average(places, weights=counts)
        variance += float(np.average((places - mean) ** 2, weights=counts))
    return math.sqrt(variance)
