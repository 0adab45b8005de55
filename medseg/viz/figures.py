"""Figures for reports: label maps over an image, and the curves of a training.

matplotlib is imported with the first figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.viz.slice_images import (
    EDGES,
    PLANES,
    Plane,
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
    from matplotlib.axes import Axes

    from medseg.viz.canvas import Panel, ReportFigure


def save_overlay(
    path: str | Path,
    image: Volume,
    labels_volume: Volume,
    labels: Labels,
    reference: Volume | None = None,
    title: str = "",
    window: Window = None,
) -> None:
    """Write a figure of a label map over an image in three planes, below the reference if there is one.

    Each plane shows the slice with the most foreground of the reference, or else of the label map. A volume with a
    single slice is shown in its own plane only.

    Args:
        path: File with the suffix .png, .svg, .pdf or .jpg.
        image: Image in any orientation.
        labels_volume: Label map, usually a prediction. It is resampled for display if its grid differs.
        labels: Names and colours.
        reference: Another label map.
        title: Title of the figure.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.

    Raises:
        ConfigError: The window is unknown.
        DataError: A value is not in `labels`, or the file cannot be written.
    """
    overlay_figure(image, labels_volume, reference, labels=labels, title=title, window=window).save(path)


def overlay_figure(
    image: Volume,
    labels_volume: Volume | None = None,
    reference: Volume | None = None,
    *,
    labels: Labels | None = None,
    title: str = "",
    window: Window = None,
    alpha: float = 0.45,
) -> ReportFigure:
    """Return the figure that `save_overlay` writes; without label maps, it shows the image only.

    Args:
        image: Image in any orientation.
        labels_volume: Label map, usually a prediction. It is resampled for display if its grid differs.
        reference: Another label map.
        labels: Names and colours; by default values are called ``label_1`` and so on.
        title: Title of the figure.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.
        alpha: Opacity of the labels, 0 to 1.

    Returns:
        The figure, which is not saved.

    Raises:
        ConfigError: The window is unknown.
        DataError: A label map does not hold integers, or a value is not in `labels`.
    """
    from medseg.viz.canvas import draw_panels

    given = {"reference": reference, "prediction": labels_volume}
    maps = {name: labels_on_grid_of(image, volume) for name, volume in given.items() if volume is not None}
    table = Labels.from_values(*(volume.data for volume in maps.values())) if labels is None else labels
    window = window if is_colour(image) else window_of(image, window)
    places = {plane: _place(image, list(maps.values()), plane) for plane in planes_of(image)}
    rows: list[tuple[str, list[Panel]]] = []
    seen: set[int] = set()
    for name, volume in maps.items() if maps else [("", None)]:
        panels = []
        for plane, index in places.items():
            panel, values = _panel(image, volume, plane, index, table, window, alpha)
            panels.append(panel)
            seen |= values
        rows.append((name if reference is not None else "", panels))
    return draw_panels(rows, [label for label in table.foreground if label.value in seen], title)


def planes_of(image: Volume) -> tuple[Plane, ...]:
    """Return the planes to show: all three, or only the plane of an image that is a single slice."""
    flat = tuple(plane for plane in PLANES if slice_count(image, plane) == 1)
    return flat[:1] or PLANES


def training_curves(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a figure of training loss and validation Dice by step.

    Args:
        path: File with the suffix .png, .svg, .pdf or .jpg.
        rows: Lines of metrics.jsonl with ``step``, and ``loss``, ``mean_dice`` or both; other lines are ignored.

    Raises:
        DataError: No row has a step and a loss, or the file cannot be written.
    """
    from medseg.viz.canvas import ReportFigure

    rows = list(rows)
    losses, scores = _series(rows, "loss"), _series(rows, "mean_dice")
    if not losses[0]:
        raise DataError(
            f"{path}: found no row with step and loss, expected at least one. Give the lines of metrics.jsonl."
        )
    figure = ReportFigure(figsize=(8, 5 if scores[0] else 3.2), layout="constrained")
    found: Any = figure.subplots(2 if scores[0] else 1, 1, sharex=True, squeeze=False)
    axes: list[Axes] = list(found[:, 0])
    _draw_loss(axes[0], *losses)
    if scores[0]:
        _draw_dice(axes[1], *scores)
    axes[-1].set_xlabel("step")
    figure.save(path)


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Return the moving average: the mean of each value and the ``width - 1`` values before it, fewer at the start.

    Args:
        values: Values to smooth.
        width: Number of values to average.

    Returns:
        As many values as given.

    Examples:
        >>> smoothed([1, 2, 3, 6], width=2)
        [1.0, 1.5, 2.5, 4.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - width, 0)
    return [float(value) for value in (sums[ends] - sums[starts]) / (ends - starts)]


def _place(image: Volume, maps: list[Volume], plane: Plane) -> int:
    labelled = [volume for volume in maps if volume.data.any()]
    return best_slice(labelled[0], plane) if labelled else slice_count(image, plane) // 2


def _panel(
    image: Volume,
    volume: Volume | None,
    plane: Plane,
    index: int,
    labels: Labels,
    window: Window,
    alpha: float,
) -> tuple[Panel, set[int]]:
    """Return the panel and the label values in it."""
    from medseg.viz.canvas import DPI, Panel, panel_inches

    height_mm, width_mm = extent_mm(image, plane)
    printed_mm = height_mm / panel_inches(height_mm, width_mm)[0] / DPI
    pixel_mm = min(printed_mm, pixel_size(image, plane))
    rgb = slice_rgb(image, plane, index, window, pixel_mm=pixel_mm)
    values = np.zeros(rgb.shape[:2], dtype=np.uint8)
    if volume is not None:
        values = label_slice(volume, plane, index, pixel_mm=pixel_mm)
        rgb = overlay(rgb, values, labels, alpha)
    if is_colour(image):  # a natural image: its pixels have no size in mm, and its sides no anatomical names
        panel = Panel(rgb, pixel_mm, "", "")
    else:
        panel = Panel(rgb, pixel_mm, f"{plane}, slice {index}", EDGES[plane])
    return panel, {int(value) for value in np.unique(values)}


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return the steps and finite values of `key`."""
    pairs = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float)) and "step" in row and math.isfinite(row[key])
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _draw_loss(axes: Axes, steps: list[float], values: list[float]) -> None:
    width = max(1, len(values) // 50)
    if width > 1:
        axes.plot(steps, values, color="#9db8d2", linewidth=0.8)
    axes.plot(steps, smoothed(values, width), color="#1f5f99", linewidth=1.8, marker=_marker(steps))
    axes.set_ylabel("loss" if width == 1 else f"loss (mean of {width})")
    _tidy(axes)


def _draw_dice(axes: Axes, steps: list[float], values: list[float]) -> None:
    best = int(np.argmax(values))
    axes.plot(steps, values, color="#b3541e", linewidth=1.8, marker=_marker(steps))
    axes.annotate(
        f"best {values[best]:.3f}",
        (steps[best], values[best]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        size=9,
        color="#7a3a15",
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("validation Dice")
    _tidy(axes)


def _marker(steps: list[float]) -> str:
    return "o" if len(steps) < 3 else ""


def _tidy(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
