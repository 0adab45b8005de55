"""Viewer of volumes for notebooks: three planes with sliders, or a static figure elsewhere."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.labels.label_table import Label, Labels
from medseg.viz.figures import overlay_figure, planes_of
from medseg.viz.slice_images import (
    WINDOWS,
    Plane,
    Rgb,
    Window,
    best_slice,
    extent_mm,
    is_colour,
    label_slice,
    labels_on_grid_of,
    overlay,
    pixel_size,
    slice_count,
    slice_rgb,
    window_of,
)
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from medseg.viz.canvas import ReportFigure

_HEIGHT = "320px"
_PIXELS = 480
_MOST_IN_LEGEND = 60
_AUTO = "automatic"


class Viewer:
    """Three planes with sliders, displayed in Jupyter.

    Where widgets do not run, for example on a web page of an executed notebook, the static figure is displayed instead.

    Args:
        widget: The ipywidgets box.
        still: A static figure of the same planes.

    Attributes:
        widget: The ipywidgets box.
        still: A static figure of the same planes.
    """

    def __init__(self, widget: Any, still: ReportFigure) -> None:
        self.widget = widget
        self.still = still

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Mapping[str, Any]:
        bundle: dict[str, Any] = dict(self.widget._repr_mimebundle_())
        bundle["image/png"] = base64.b64encode(self.still.png()).decode()
        return bundle


def show(
    image: Volume,
    labels: Volume | None = None,
    reference: Volume | None = None,
    *,
    names: Labels | None = None,
    window: Window = None,
) -> Viewer | ReportFigure:
    """Show an image in three planes, optionally with label maps over it.

    In Jupyter with ipywidgets, there are sliders for the slices, a menu of intensity windows, the opacity of the labels
    and, with a reference, a switch between both label maps. Elsewhere the result is a matplotlib figure, which can be
    saved with its method `save`.

    Args:
        image: Image in any orientation.
        labels: Label map. It is resampled for display if its grid differs.
        reference: Another label map.
        names: Names and colours of the values; by default values are called ``label_1`` and so on.
        window: Intensity window: level and width, a name such as ``"lung"``, or None; see
            `medseg.viz.slice_images.window_of`.

    Returns:
        A viewer in Jupyter, otherwise a figure.

    Raises:
        ConfigError: The window is unknown.
        DataError: A label map does not hold integers, or a value is not in `names`.

    Examples:
        >>> import numpy as np
        >>> from medseg import Grid, Volume
        >>> grid = Grid.from_spacing((16, 16, 8), spacing=(1, 1, 2))
        >>> image = Volume(np.random.default_rng(0).normal(size=(1, 16, 16, 8)), grid)
        >>> labels = Volume((image.data > 1).astype(np.uint8), grid, kind="label")
        >>> figure = show(image, labels)
        >>> len(figure.axes)  # axial, coronal and sagittal
        3
    """
    still = overlay_figure(image, labels, reference, labels=names, window=window)
    if not widgets_run():
        return still
    given = {"prediction": labels, "reference": reference}
    maps = {name: labels_on_grid_of(image, volume) for name, volume in given.items() if volume is not None}
    table = Labels.from_values(*(volume.data for volume in maps.values())) if names is None else names
    return Viewer(controls(image, maps, table, window), still)


def widgets_run() -> bool:
    """Return whether the caller is in a Jupyter kernel and ipywidgets is installed."""
    ipython = sys.modules.get("IPython")  # if it is not imported, this is no kernel
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel") and importlib.util.find_spec("ipywidgets") is not None


def render_slice(
    image: Volume,
    labels_volume: Volume | None,
    table: Labels,
    plane: Plane,
    index: int,
    window: Window,
    alpha: float,
) -> Rgb:
    """Return one slice `(H, W, 3)` with its labels in colour.

    The longer side has at least 480 pixels, so that outlines are thin even if voxels are large.

    Args:
        image: Image in any orientation.
        labels_volume: Label map on the grid of the image, or None.
        table: Names and colours.
        plane: Plane of the slice.
        index: Index of the slice.
        window: Intensity window.
        alpha: Opacity of the labels, 0 to 1.

    Returns:
        Pixels `(H, W, 3)`.
    """
    pixel_mm = min(pixel_size(image, plane), max(extent_mm(image, plane)) / _PIXELS)
    rgb = slice_rgb(image, plane, index, window, pixel_mm=pixel_mm)
    if labels_volume is None or alpha == 0:
        return rgb
    return overlay(rgb, label_slice(labels_volume, plane, index, pixel_mm=pixel_mm), table, alpha)


def controls(image: Volume, maps: Mapping[str, Volume], table: Labels, window: Window) -> Any:
    """Return the box of images and sliders.

    Args:
        image: Image in any orientation.
        maps: Label maps on the grid of the image, by name; the first is shown first.
        table: Names and colours.
        window: Intensity window of the menu item "automatic"; see `medseg.viz.slice_images.window_of`.

    Returns:
        An ipywidgets box.
    """
    import ipywidgets as widgets

    automatic = window if is_colour(image) else window_of(image, window)
    windows: dict[str, Window] = {_AUTO: automatic, **WINDOWS}
    menu = widgets.Dropdown(options=list(windows), value=_AUTO, description="window")
    opacity = widgets.FloatSlider(value=0.45, min=0, max=1, step=0.05, description="labels")
    switch = widgets.ToggleButtons(options=list(maps) or ["image"])
    columns = []
    for plane in planes_of(image):
        view = widgets.Image(format="png", layout=widgets.Layout(height=_HEIGHT, object_fit="contain"))
        first = best_slice(next(iter(maps.values())), plane) if maps else slice_count(image, plane) // 2
        slider = widgets.IntSlider(
            value=first, min=0, max=slice_count(image, plane) - 1, description=plane, continuous_update=True
        )

        def redraw(
            change: object = None, plane: Plane = plane, slider: Any = slider, view: Any = view
        ) -> None:
            volume = maps.get(switch.value)
            rgb = render_slice(image, volume, table, plane, slider.value, windows[menu.value], opacity.value)
            view.value = png_of(rgb)

        for control in (slider, menu, opacity, switch):
            control.observe(redraw, names="value")
        redraw()
        columns.append(widgets.VBox([view, slider]))
    tools = [menu, *([opacity] if maps else []), *([switch] if len(maps) > 1 else [])]
    present = {int(value) for volume in maps.values() for value in np.unique(volume.data)}
    shown = [label for label in table.foreground if label.value in present]
    return widgets.VBox([widgets.HBox(tools), widgets.HBox(columns), widgets.HTML(legend_html(shown))])


def legend_html(labels: Sequence[Label]) -> str:
    """Return a line of coloured squares and names as HTML.

    Args:
        labels: Labels to list.

    Returns:
        HTML text.
    """
    entries = [
        f'<span style="color:rgb{label.colour}">&#9632;</span> {html.escape(label.name)}'
        for label in labels[:_MOST_IN_LEGEND]
    ]
    if len(labels) > _MOST_IN_LEGEND:
        entries.append(f"and {len(labels) - _MOST_IN_LEGEND} more")
    return " &ensp; ".join(entries)


def png_of(rgb: Rgb) -> bytes:
    """Return an image `(H, W, 3)` as PNG bytes.

    Args:
        rgb: Pixels.

    Returns:
        The content of a PNG file.
    """
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, rgb, format="png")
    return buffer.getvalue()
