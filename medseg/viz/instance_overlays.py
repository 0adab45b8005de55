"""Instances over an image: a coloured contour an object.

matplotlib is imported when a picture is made.
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
    """A picture with the border pixels of every object in a colour of its own.

    Args:
        rgb: `(H, W, 3)`.
        ids: `(H, W)`, 0 where there is no object; equal ids have equal colours in every picture.
        alpha: opacity of the tint inside of the border, 0 to 1.
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
    """One slice three times: as it is, with the reference's objects where given, and with those that were found.

    Args:
        image: any orientation; a photograph is one slice.
        found: map of ids `(1, X, Y, Z)`; on another grid it is resampled.
        reference: another one, whose ids need not agree with those of `found`.
        plane: the one of a photograph, otherwise axial unless given.
        index: the slice; that with most of the reference (or of what was found) unless given.
        title: above the picture.
        window: see `window_of`.
        names: above the two panels.
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
