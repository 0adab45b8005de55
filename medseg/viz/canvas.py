"""Drawing panels on a matplotlib figure.

This is the only module of viz that imports matplotlib on import. It does not use pyplot, so there is no global state and
no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medseg.errors import DataError
from medseg.labels.label_table import Label
from medseg.storage.atomic import replacing
from medseg.viz.slice_images import Rgb

DPI = 150  # of saved figures
SCREEN_DPI = 90  # of figures in a notebook, where 11 inches fill the column
BACKGROUND = "#101316"
INK = "#e6e8ea"
FAINT = "#9aa3ab"
PANEL_HEIGHT = 3.2  # inches
_WIDEST = 1.6  # of a panel's height
_GAP = 0.12
_MOST_IN_LEGEND = 60
_EDGE_PLACES = ((0.5, 0.965), (0.97, 0.5), (0.5, 0.035), (0.03, 0.5))  # top, right, bottom, left
_FORMATS = (".png", ".svg", ".pdf", ".jpg")


class ReportFigure(Figure):
    """A matplotlib figure, independent of pyplot, that Jupyter displays and that is saved atomically."""

    def png(self, dpi: float = SCREEN_DPI) -> bytes:
        """Return the figure as PNG bytes, cropped to its content.

        Args:
            dpi: Pixels per inch.

        Returns:
            The content of a PNG file.
        """
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.15)
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the figure atomically.

        Args:
            path: File with the suffix .png, .svg, .pdf or .jpg.

        Raises:
            DataError: The suffix is different, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in _FORMATS:
            raise DataError(
                f"{path}: cannot write a figure in this format: expected {', '.join(_FORMATS)}. Rename it."
            )
        with replacing(path) as temporary:
            self.savefig(
                temporary, format=path.suffix[1:].lower(), dpi=DPI, bbox_inches="tight", pad_inches=0.15
            )

    def _repr_png_(self) -> bytes:
        return self.png()


@dataclass(frozen=True, eq=False)
class Panel:
    """A slice to draw.

    Attributes:
        rgb: Pixels `(H, W, 3)`.
        pixel_mm: Size of a pixel, mm.
        caption: Text above the panel.
        edges: Letters of the patient's sides at the top, right, bottom and left, such as ``ALPR``. If empty, the
            panel has neither letters nor a scale bar, as for a natural image, whose sides and size in mm are unknown.
    """

    rgb: Rgb
    pixel_mm: float
    caption: str
    edges: str


def panel_inches(height_mm: float, width_mm: float) -> tuple[float, float]:
    """Return the height and width of a panel, inches.

    Args:
        height_mm: Height of the slice, mm.
        width_mm: Width of the slice, mm.

    Returns:
        Height and width, inches.
    """
    scale = min(PANEL_HEIGHT / height_mm, _WIDEST * PANEL_HEIGHT / width_mm)
    return height_mm * scale, width_mm * scale


def draw_panels(
    rows: Sequence[tuple[str, Sequence[Panel]]], legend: Sequence[Label], title: str
) -> ReportFigure:
    """Draw rows of panels with a name to the left of each row, a title and a legend.

    Args:
        rows: Name and panels of each row; the panels of a column must have the same size.
        legend: Labels to list below the panels.
        title: Title of the figure; may be empty.

    Returns:
        The figure, which is not saved.
    """
    sizes = [
        panel_inches(panel.rgb.shape[0] * panel.pixel_mm, panel.rgb.shape[1] * panel.pixel_mm)
        for panel in rows[0][1]
    ]
    row_height = max(height for height, _ in sizes)
    width = sum(w for _, w in sizes) + _GAP * (len(sizes) - 1)
    height = len(rows) * row_height + (len(rows) - 1) * _GAP
    figure = ReportFigure(figsize=(width, height), facecolor=BACKGROUND)
    for number, (name, panels) in enumerate(rows):
        bottom = height - (number + 1) * row_height - number * _GAP
        left = 0.0
        for panel, (panel_height, panel_width) in zip(panels, sizes, strict=True):
            low = bottom + (row_height - panel_height) / 2
            axes = figure.add_axes((left / width, low / height, panel_width / width, panel_height / height))
            _draw(axes, panel, with_caption=number == 0)
            left += panel_width + _GAP
        _text(figure, -0.15 / width, (bottom + row_height / 2) / height, name, rotation=90)
    if title:
        _text(figure, 0.5, 1 + 0.5 / height, title, size=13, color=INK)
    _draw_legend(figure, legend, width, height)
    return figure


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 10,
    rotation: float = 0,
    color: str = FAINT,
) -> None:
    # Names and titles come from users, so a dollar sign does not start mathematical notation.
    figure.text(
        x, y, text, size=size, rotation=rotation, color=color, ha="center", va="center", parse_math=False
    )


def _draw(axes: Axes, panel: Panel, *, with_caption: bool) -> None:
    axes.imshow(panel.rgb, aspect="auto")
    axes.set_axis_off()
    if with_caption:
        axes.set_title(panel.caption, color=FAINT, size=9, pad=5)
    halo: list[matplotlib.patheffects.AbstractPathEffect] = [
        matplotlib.patheffects.withStroke(linewidth=2, foreground="black")
    ]
    for letter, (x, y) in zip(panel.edges, _EDGE_PLACES, strict=False):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color=INK,
            size=8,
            ha="center",
            va="center",
            path_effects=halo,
            alpha=0.85,
        )
    if panel.edges:
        _draw_scale(axes, panel, halo)


def _draw_scale(axes: Axes, panel: Panel, halo: Sequence[matplotlib.patheffects.AbstractPathEffect]) -> None:
    height, width = panel.rgb.shape[:2]
    length_mm = round_length(0.3 * width * panel.pixel_mm)
    right, y = width * 0.96, height * 0.95
    axes.plot(
        [right - length_mm / panel.pixel_mm, right],
        [y, y],
        color=INK,
        linewidth=1.8,
        solid_capstyle="butt",
        path_effects=halo,
    )
    axes.annotate(
        f"{length_mm:g} mm",
        (right, y),
        xytext=(0, 3),
        textcoords="offset points",
        color=INK,
        size=7.5,
        ha="right",
        va="bottom",
        path_effects=halo,
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def round_length(most_mm: float) -> float:
    """Return the largest round length, such as 1, 2, 5, 10 or 20 mm, that does not exceed a limit.

    Args:
        most_mm: Limit, mm.

    Returns:
        The length, mm.

    Examples:
        >>> round_length(37.5)
        20.0
    """
    lengths = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]
    return max(length for length in lengths if length <= max(most_mm, lengths[0]))


def _draw_legend(figure: Figure, legend: Sequence[Label], width: float, height: float) -> None:
    if not legend:
        return
    shown = legend[:_MOST_IN_LEGEND]
    names = [label.name for label in shown]
    handles = [Patch(facecolor="#{:02x}{:02x}{:02x}".format(*label.colour)) for label in shown]
    if len(legend) > len(shown):
        names.append(f"and {len(legend) - len(shown)} more")
        handles.append(Patch(facecolor="none"))
    entry = 0.07 * max(len(name) for name in names) + 0.45  # inches, ample for 8.5 pt text
    box = figure.legend(
        handles,
        ["."] * len(names),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1 / height),
        frameon=False,
        ncol=max(1, min(len(names), int(width / entry))),
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=1.0,
        columnspacing=1.4,
        borderaxespad=0,
    )
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)  # set afterwards, because a legend ignores names that begin with an underscore
