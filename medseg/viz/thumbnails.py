"""Small images of one slice with the outlines of the labels, for pages."""

from __future__ import annotations

import io

import numpy as np

from medseg.labels.label_table import Labels
from medseg.viz.slice_images import best_slice, extent_mm, label_slice, overlay, region_edges, slice_rgb
from medseg.volumes.volume import Volume

_EDGE_PIXELS = 160
_MOST_COLOURS = 12  # of labels; more, such as instances, have outlines of one colour
_OUTLINE = (255, 210, 60)


def thumbnail(image: Volume, labels: Volume | None) -> bytes:
    """Return an axial slice as PNG: the one with the most labelled voxels, with the outline of every label.

    Args:
        image: Image in any orientation; the first channel is shown unless it has colours.
        labels: Label map with as many voxels, or None. Its voxels are shown at the places of the array, because its
            header may be wrong.

    Returns:
        The content of a PNG file.
    """
    from PIL import Image

    pixel_mm = max(extent_mm(image, "axial")) / _EDGE_PIXELS
    if labels is None:
        pixels = slice_rgb(image, "axial", pixel_mm=pixel_mm)
    else:
        placed = Volume(np.clip(labels.data, 0, None), image.grid, "label")
        index = best_slice(placed, "axial")
        pixels = slice_rgb(image, "axial", index, pixel_mm=pixel_mm)
        values = label_slice(placed, "axial", index, pixel_mm=pixel_mm)
        if len(np.unique(values)) <= _MOST_COLOURS:
            pixels = overlay(pixels, values, Labels.from_values(values), alpha=0)
        else:
            pixels[region_edges(values)] = _OUTLINE
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
