"""Instances over an image, as one coloured contour per instance.

matplotlib is imported with the first figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medseg.labels.colours import distinct_colour
from medseg.viz.figures import planes_of
from medseg.viz.slice_images import (
    Array,
    Plane,
    Rgb,
    Window,
    best_slice,
    extent_mm,
    is_colour,
    label_slice,
    labels_on_grid_of,
    pixel_size,
    region_edges,
    slice_rgb,
    window_of,
)
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.viz.canvas import Panel, ReportFigure


def contours(rgb: Rgb, ids: Array, alpha: float = 0.15) -> Rgb:
    """Return an image with the border of every instance in its own colour.

    Args:
        rgb: Image `(H, W, 3)`.
        ids: Instance map `(H, W)`; 0 is background. An id has the same colour in every image.
        alpha: Opacity of the colour inside the border, 0 to 1.

    Returns:
        Image `(H, W, 3)` of the same type.
    """
    known, index = np.unique(ids, return_inverse=True)
    colours = np.array([distinct_colour(int(value)) for value in known], dtype=np.float32)
    share = np.where(ids != 0, np.float32(alpha), np.float32(0))
    share[region_edges(ids)] = 1
    result: Rgb = np.rint(rgb + share[..., None] * (colours[index.reshape(ids.shape)] - rgb)).astype(np.uint8)
    return result


def instance_figure(
    image: Volume,
    found: Volume,
    reference: Volume | None = None,
    *,
    plane: Plane | None = None,
    index: int | None = None,
    title: str = "",
    window: Window = None,
    names: tuple[str, str] = ("reference", "prediction"),
) -> ReportFigure:
    """Draw one slice up to three times: the image, with the reference instances, and with the predicted instances.

    Args:
        image: Image in any orientation; a natural image has one slice.
        found: Instance map `(1, X, Y, Z)`. It is resampled for display if its grid differs.
        reference: Another instance map, whose ids need not match those of `found`.
        plane: Plane of the slice; by default axial, or the plane of a natural image.
        index: Index of the slice; by default the one with most voxels of the reference, or else of `found`.
        title: Title of the figure.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.
        names: Captions of the reference and of the prediction.

    Returns:
        The figure, which is not saved.
    """
    from medseg.viz.canvas import draw_panels

    maps = {
        name: labels_on_grid_of(image, ids)
        for name, ids in zip(names, (reference, found), strict=True)
        if ids is not None
    }
    shown = planes_of(image)
    cut: Plane = plane or ("axial" if "axial" in shown else shown[0])
    place = best_slice(next(iter(maps.values())), cut) if index is None else index
    chosen = window if is_colour(image) else window_of(image, window)
    panels = [_panel(image, ids, cut, place, chosen, name) for name, ids in [("image", None), *maps.items()]]
    return draw_panels([("", panels)], [], title)


def _panel(image: Volume, ids: Volume | None, plane: Plane, index: int, window: Window, name: str) -> Panel:
    from medseg.viz.canvas import DPI, Panel, panel_inches

    height_mm, width_mm = extent_mm(image, plane)
    printed_mm = height_mm / panel_inches(height_mm, width_mm)[0] / DPI
    pixel_mm = min(printed_mm, pixel_size(image, plane))
    rgb = slice_rgb(image, plane, index, window, pixel_mm=pixel_mm)
    if ids is not None:
        rgb = contours(rgb, label_slice(ids, plane, index, pixel_mm=pixel_mm))
    return Panel(rgb, pixel_mm, name, "")
