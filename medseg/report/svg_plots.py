"""Plots of a report as SVG text: they stay sharp in print, and each point has the name of its case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.calibration.reliability import Bin
from medseg.evaluation.statistics.agreement import Agreement
from medseg.labels.colours import Colour, colour_to_css
from medseg.runtime.formatting import shortened

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 26, 190, 20
_INK, _GRID, _PALE = "#2d3748", "#e2e8f0", "#cbd5e0"
_NAME_LENGTH = 26
_RARE = 1e-3  # share of the voxels below which a bin says little and is not joined with the others

Array = NDArray[np.float64]


def strip_plot(
    values: Mapping[str, Mapping[str, float]], colours: Mapping[str, Colour], *, low: float, high: float
) -> str:
    """Draw one row per label: a point per case, a box from the first to the third quartile, and the median.

    Args:
        values: Values by label and then by case; those that are not finite are left out.
        colours: Colour of each label.
        low: Left end of the axis.
        high: Right end of the axis.

    Returns:
        An ``svg`` element.
    """
    height = _ROW * len(values) + 34
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (min(max(value, low), high) - low) / span

    parts = [_vertical(x(tick), height - 26, _tick(tick)) for tick in ticks(low, high)]
    for row, (name, by_case) in enumerate(values.items()):
        y = _ROW * row + _ROW / 2 + 4
        known = {case: value for case, value in by_case.items() if math.isfinite(value)}
        shown = shortened(name, _NAME_LENGTH)
        parts.append(
            f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end"><title>{escape(name)}</title>{escape(shown)}</text>'
        )
        if not known:
            continue
        first, median, third = np.percentile(list(known.values()), (25, 50, 75))
        colour = colour_to_css(colours.get(name, (43, 108, 176)))
        parts.append(
            f'<rect x="{x(first):.1f}" y="{y - 8:.1f}" width="{max(x(third) - x(first), 1):.1f}" height="16" rx="3" '
            f'fill="{colour}" opacity="0.2"/>'
        )
        for place, (case, value) in enumerate(sorted(known.items())):
            jitter = ((place * 0.618034) % 1 - 0.5) * 12
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y + jitter:.1f}" r="3" fill="{colour}" opacity="0.75">'
                f"<title>{escape(case)}: {value:.4g}</title></circle>"
            )
        parts.append(
            f'<line x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" stroke="{_INK}" stroke-width="2"/>'
        )
    return _svg(_WIDTH, height, parts)


def bland_altman(
    cases: Sequence[str], predicted: Array, reference: Array, agreement: Agreement, colour: Colour
) -> str:
    """Draw the differences of two measurements over their means, with the mean difference and the limits of agreement.

    Args:
        cases: Case ids.
        predicted: Measured values, such as volumes in ml.
        reference: Reference values.
        agreement: Their mean difference and limits of agreement, which are drawn as lines, and their intervals as bands.
        colour: Colour of the points.

    Returns:
        An ``svg`` element; see Bland and Altman 1986.
    """
    width, height, left, bottom, top = 340, 220, 56, 34, 12
    mean, difference = (predicted + reference) / 2, predicted - reference
    lines = {
        "mean": (agreement.bias, agreement.bias_interval),
        "+1.96 sd": (agreement.high, agreement.high_interval),
        "−1.96 sd": (agreement.low, agreement.low_interval),
    }
    low, high = _padded([*difference, *(value for value, _ in lines.values()), 0.0])
    start, end = _padded(mean)

    def x(value: float) -> float:
        return left + (width - left - 10) * (value - start) / (end - start)

    def y(value: float) -> float:
        return top + (height - bottom - top) * (high - value) / (high - low)

    parts = [_horizontal(left, width - 10, y(tick), _tick(tick)) for tick in ticks(low, high, 5)]
    parts += [
        f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_tick(tick)}</text>'
        for tick in ticks(start, end, 4)
    ]
    for name, (value, interval) in lines.items():
        if math.isfinite(interval.low):
            upper, lower = (y(min(max(end, low), high)) for end in (interval.high, interval.low))
            parts.append(
                f'<rect x="{left}" width="{width - 10 - left}" y="{upper:.1f}" height="{lower - upper:.1f}" fill="{_PALE}" '
                'opacity="0.35"/>'
            )
        dash = "" if name == "mean" else ' stroke-dasharray="5 4"'
        parts.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{_INK}"{dash}>'
            f"<title>{name}: {value:.4g}</title></line>"
        )
    for case, one, two in zip(cases, mean, difference, strict=True):
        parts.append(
            f'<circle cx="{x(float(one)):.1f}" cy="{y(float(two)):.1f}" r="3" fill="{colour_to_css(colour)}" opacity="0.75">'
            f"<title>{escape(case)}: {float(two):+.4g}</title></circle>"
        )
    parts.append(
        f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">mean of both, ml</text>'
    )
    return _svg(width, height, parts)


def reliability_plot(bins: Sequence[Bin]) -> str:
    """Draw a reliability diagram: the share of right voxels over the mean probability of each bin, and the diagonal.

    Args:
        bins: The bins; the area of a point is the share of the voxels in it.

    Returns:
        An ``svg`` element.
    """
    width, height, left, bottom, top = 340, 300, 50, 40, 12

    def x(value: float) -> float:
        return left + (width - left - 14) * value

    def y(value: float) -> float:
        return top + (height - bottom - top) * (1 - value)

    parts = [_horizontal(left, width - 14, y(tick), _tick(tick)) for tick in ticks(0, 1)]
    parts += [
        f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_tick(tick)}</text>'
        for tick in ticks(0, 1)
    ]
    parts.append(
        f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}" stroke="{_PALE}" stroke-dasharray="5 4"/>'
    )
    common = [one for one in bins if one.share >= _RARE]
    points = " ".join(f"{x(one.confidence):.1f},{y(one.frequency):.1f}" for one in common)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#2b6cb0" stroke-width="1.6"/>')
    for one in bins:
        text = f"probability {one.confidence:.3f}, right {one.frequency:.3f}, {one.share:.1%} of the voxels"
        parts.append(
            f'<circle cx="{x(one.confidence):.1f}" cy="{y(one.frequency):.1f}" r="{2.5 + 12 * math.sqrt(one.share):.1f}" '
            f'fill="#2b6cb0" opacity="0.6"><title>{text}</title></circle>'
        )
    middle = (left + width) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 6}" text-anchor="middle">mean probability</text>')
    parts.append(
        f'<text transform="translate(14 {(height - bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">share of right voxels</text>'
    )
    return _svg(width, height, parts)


def line_plot(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, across: str) -> str:
    """Draw lines over a common horizontal axis, such as loss and validation Dice over steps, one panel per series.

    Args:
        series: Horizontal and vertical values by name.
        across: Name of the horizontal axis.

    Returns:
        An ``svg`` element.
    """
    panel, left, right, gap = 150, 70, 20, 34
    height = (panel + gap) * len(series)
    start = min(min(xs) for xs, _ in series.values())
    end = max(max(xs) for xs, _ in series.values())
    parts = []
    for row, (name, (xs, ys)) in enumerate(series.items()):
        top = row * (panel + gap) + 10
        low, high = _padded(np.asarray(ys, np.float64))

        def y(value: float, top: float = top, low: float = low, high: float = high) -> float:
            return top + (panel - 10) * (high - value) / (high - low)

        def x(value: float) -> float:
            return left + (_WIDTH - left - right) * (value - start) / ((end - start) or 1.0)

        parts += [_horizontal(left, _WIDTH - right, y(tick), _tick(tick)) for tick in ticks(low, high, 5)]
        points = " ".join(f"{x(one):.1f},{y(two):.1f}" for one, two in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="#2b6cb0" stroke-width="1.6"/>')
        if len(xs) == 1:
            parts.append(f'<circle cx="{x(xs[0]):.1f}" cy="{y(ys[0]):.1f}" r="3" fill="#2b6cb0"/>')
        parts.append(f'<text x="{left + 4}" y="{top + 4}" font-weight="600">{escape(name)}</text>')
        parts += [
            f'<text x="{x(tick):.1f}" y="{top + panel + 8}" text-anchor="middle">{_tick(tick)}</text>'
            for tick in ticks(start, end, 6)
        ]
    parts.append(f'<text x="{_WIDTH - right}" y="{height - 2}" text-anchor="end">{escape(across)}</text>')
    return _svg(_WIDTH, height, parts)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round numbers inside a range.

    Args:
        low: Lower end.
        high: Upper end.
        about: Approximate number of ticks.

    Returns:
        Ascending numbers whose distance is 1, 2 or 5 times a power of ten.

    Examples:
        >>> ticks(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / max(about - 1, 1)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _padded(values: Array | Sequence[float]) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _vertical(x: float, bottom: float, text: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom:.0f}" stroke="{_GRID}"/>'
        f'<text x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{text}</text>'
    )


def _horizontal(left: float, right: float, y: float, text: str) -> str:
    return (
        f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _svg(width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" font-size="12" fill="{_INK}">'
        + "".join(parts)
        + "</svg>"
    )
