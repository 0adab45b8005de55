"""Figures of a fingerprint. matplotlib is imported with the first figure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.labels.colours import distinct_colour
from medseg.planning.propose import Proposal
from medseg.runtime.formatting import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from medseg.viz.canvas import ReportFigure

BLUE, PALE, ACCENT, INK, GRID = "#2b6cb0", "#bcd3ea", "#c2571a", "#2d3748", "#e2e8f0"
_WIDTH = 10.0  # inches
_DPI = 150
_MOST_BINS = 30
_MOST_CHANNELS = 8
_MOST_LABELS = 150
_NAME_LENGTH = 26
_NOISE = 1e-4  # relative; headers in single precision differ by less
_WIDE_RANGE = 50.0  # ratio of largest to smallest value from which an axis is logarithmic


def as_png(figure: ReportFigure) -> bytes:
    """Return the figure as PNG; a character that the font lacks becomes a box, and the page has the full name.

    Args:
        figure: The figure.

    Returns:
        Contents of the PNG file.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return figure.png(_DPI)


def geometry_figure(f: Fingerprint, proposal: Proposal | None = None) -> ReportFigure:
    """Draw histograms of shape and spacing over the cases for each axis, with planned values as lines.

    Args:
        f: Measurements of the dataset.
        proposal: The planned network, whose spacing is marked.

    Returns:
        A figure with six plots: shapes in the first row, spacings in the second.
    """
    figure, axes = _subplots(2, 3, height=4.6)
    for axis, name in enumerate("XYZ"):
        _histogram(axes[axis], [case.shape[axis] for case in f.cases], f"{name}: voxels")
        _histogram(axes[3 + axis], [case.spacing[axis] for case in f.cases], f"{name}: spacing, mm")
        if proposal is not None:
            place = proposal.spacing[axis]
            axes[3 + axis].axvline(place, color=ACCENT, linewidth=1.6)
            axes[3 + axis].annotate(
                f"plan {place:.4g}",
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=ACCENT,
                size=8,
            )
    axes[0].set_ylabel("cases")
    axes[3].set_ylabel("cases")
    return figure


def intensity_figure(f: Fingerprint) -> ReportFigure:
    """Draw the foreground intensities of every case.

    A line goes from percentile 0.5 to 99.5, and a dot marks the median. Cases are sorted by their median.

    Args:
        f: Measurements of the dataset.

    Returns:
        A figure with one plot for each of the first eight channels, one below the other.
    """
    from matplotlib.ticker import MaxNLocator

    shown = f.channel_names[:_MOST_CHANNELS]
    measured = [case for case in f.cases if case.foreground]
    figure, axes = _subplots(len(shown), 1, height=2.3 * len(shown) + 0.3)
    for channel, name in enumerate(shown):
        found = sorted(
            (case.foreground[channel] for case in measured if case.has(channel)),
            key=lambda values: values.median,
        )
        places = np.arange(1, len(found) + 1)
        lows, highs = [v.percentile_00_5 for v in found], [v.percentile_99_5 for v in found]
        wide = max(2.0, min(8.0, 400 / len(found)))
        axes[channel].vlines(places, lows, highs, color=PALE, linewidth=wide)
        axes[channel].plot(places, [v.median for v in found], "o", color=BLUE, markersize=min(4.0, wide))
        overall = f.intensities[channel].median
        axes[channel].axhline(overall, color=ACCENT, linewidth=1.2)
        if _spans([v.median for v in found]):
            axes[channel].set_yscale("symlog", linthresh=max(1.0, abs(overall) / 100))
            axes[channel].set_ylim(min(0.0, *lows), 1.5 * max(highs))
        axes[channel].set_ylabel(shortened(name, _NAME_LENGTH), parse_math=False)
        axes[channel].set_xlim(0.3, len(found) + 0.7)
        axes[channel].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[-1].set_xlabel("cases, sorted by their median")
    return figure


def volume_figure(f: Fingerprint) -> ReportFigure:
    """Draw the volume of each label in ml: range, quartiles and median over the cases that have it.

    Args:
        f: Measurements of the dataset.

    Returns:
        A figure with one plot, in which each of the first 150 labels is a row.
    """
    labels = list(f.foreground_labels.items())[:_MOST_LABELS]
    figure, (axes,) = _subplots(1, 1, height=max(1.4, 0.26 * len(labels) + 0.9))
    volumes = []
    for row, (_, value) in enumerate(labels):
        found = [case.label_ml(value) for case in f.cases if value in case.label_voxels]
        volumes += found
        if found:
            low, first, middle, third, high = np.percentile(found, [0, 25, 50, 75, 100])
            colour = tuple(part / 255 for part in distinct_colour(row + 1))
            axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
            axes.plot([first, third], [row, row], color=colour, linewidth=7, solid_capstyle="butt")
            axes.plot(middle, row, "o", color="white", markersize=5, markeredgecolor=INK)
    if _spans(volumes):
        axes.set_xscale("log")
    axes.set_yticks(
        range(len(labels)), [shortened(name, _NAME_LENGTH) for name, _ in labels], parse_math=False
    )
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("millilitres")
    return figure


def share_figure(f: Fingerprint) -> ReportFigure:
    """Draw histograms over the cases of the foreground and of the fraction that the crop to non-zero keeps.

    Args:
        f: Measurements of the dataset.

    Returns:
        A figure with two plots side by side.
    """
    figure, axes = _subplots(1, 2, height=2.5)
    _histogram(
        axes[0], [100 * case.foreground_fraction for case in f.cases], "foreground, % of the image's voxels"
    )
    _histogram(
        axes[1],
        [100 * case.relative_size for case in f.cases],
        "left by the crop to non-zero, % of the image",
    )
    axes[0].set_ylabel("cases")
    return figure


def _subplots(rows: int, columns: int, height: float) -> tuple[ReportFigure, list[Axes]]:
    from medseg.viz.canvas import ReportFigure

    figure = ReportFigure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    axes: list[Axes] = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for part in axes:
        part.grid(color=GRID, linewidth=0.7)
        part.set_axisbelow(True)
        part.spines[["top", "right"]].set_visible(False)
        part.spines[["left", "bottom"]].set_color("#a0aec0")
        part.tick_params(colors=INK, labelsize=8)
        part.xaxis.label.set_color(INK)
        part.yaxis.label.set_color(INK)
    return figure, axes


def _histogram(axes: Axes, values: Sequence[float], label: str) -> None:
    """Draw a histogram; if all cases have the same value, draw one bar of visible width."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if high - low <= _NOISE * max(abs(high), 1e-12):
        half = max(abs(low), 1.0) * 0.5
        axes.bar([low], [len(values)], width=half / 8, color=BLUE)
        axes.set_xlim(low - half, low + half)
    else:
        axes.hist(values, bins=_edges(values), color=BLUE, edgecolor="white", linewidth=0.5)
    axes.set_xlabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _edges(values: Sequence[float]) -> list[float]:
    """Return the borders of the bars; integers are grouped so that all bars span equally many of them."""
    low, high = min(values), max(values)
    wanted = min(_MOST_BINS, max(8, int(2 * np.sqrt(len(values)))))
    if all(float(value).is_integer() for value in values):
        step = float(np.ceil((high - low + 1) / wanted))
        return [float(edge) for edge in np.arange(low - 0.5, high + step, step)]
    return [float(edge) for edge in np.linspace(low, high, wanted + 1)]


def _spans(values: Sequence[float]) -> bool:
    """Return whether positive values span so many magnitudes that a linear axis would hide the small ones."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > _WIDE_RANGE
