"""The metrics of label maps: how each is shown, and its values where masks are empty.

The metrics that every evaluation computes are the fields of `LabelMetrics`; those in `EXTRA` take longer and are computed on
request. Sources are listed in the guide "Reading the figures"; the choice among them follows Metrics Reloaded (Maier-Hein et
al. 2024, arXiv:2206.01653).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from medseg.errors import ConfigError, did_you_mean

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class MetricInfo:
    """The display of a metric, and its values for empty masks.

    Attributes:
        title: Heading of its column.
        pattern: Format of its values.
        perfect: Value of equal masks; NaN for volumes, which do not measure agreement.
        missed: Value where only the prediction is empty. Infinite values and NaN are left out of means.
        invented: Value where only the reference is empty.
        higher_is_better: Whether larger values are better, for metrics whose best value is at an end of their range.
    """

    title: str
    pattern: str
    perfect: float
    missed: float
    invented: float
    higher_is_better: bool | None = None

    def format_value(self, value: float) -> str:
        """Return a value as text; a dash for one that is not finite."""
        return self.pattern.format(value) if math.isfinite(value) else "-"


def _overlap(title: str, missed: float = 0.0, invented: float = 0.0) -> MetricInfo:
    return MetricInfo(title, "{:.3f}", 1.0, missed, invented, higher_is_better=True)


def _distance(title: str, missed: float = INF) -> MetricInfo:
    return MetricInfo(title, "{:.2f}", 0.0, missed, missed, higher_is_better=False)


CATALOG: dict[str, MetricInfo] = {
    "dice": _overlap("Dice"),
    "iou": _overlap("IoU"),
    "hd95_mm": _distance("HD95 mm"),
    "assd_mm": _distance("ASSD mm"),
    "masd_mm": _distance("MASD mm"),
    "surface_dice": _overlap("surface Dice"),
    "sensitivity": _overlap("sensitivity", 0.0, NAN),
    "precision": _overlap("precision", NAN, 0.0),
    # Both masks empty: every voxel is outside of both.
    "specificity": MetricInfo("specificity", "{:.3f}", 1.0, 1.0, NAN, higher_is_better=True),
    "volume_ml": MetricInfo("volume ml", "{:.2f}", NAN, 0.0, NAN),
    "reference_ml": MetricInfo("reference ml", "{:.2f}", NAN, NAN, 0.0),
    "volume_error_ml": MetricInfo("volume error ml", "{:+.2f}", 0.0, NAN, NAN),
    "volume_error_percent": MetricInfo("volume error %", "{:+.1f}", 0.0, -100.0, NAN),
    "surface_dice_area": _overlap("surface Dice by area"),
    "cldice": _overlap("clDice"),
    "boundary_iou": _overlap("boundary IoU"),
    "lesion_dice": _overlap("lesion-wise Dice"),
    "lesion_hd95_mm": _distance("lesion-wise HD95 mm", 374.0),
}
"""Every metric by the name of its column."""

EXTRA: dict[str, tuple[str, ...]] = {
    "surface_dice_area": ("surface_dice_area",),
    "cldice": ("cldice",),
    "boundary_iou": ("boundary_iou",),
    "lesion_wise": ("lesion_dice", "lesion_hd95_mm"),
}
"""The columns of each metric that is computed on request, by the name with which it is requested."""

ALL = "all"


def checked_extra(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of metrics on request without repetition, in the order of `EXTRA`.

    Args:
        names: Names of `EXTRA`, or ``all``.

    Returns:
        The names.

    Raises:
        ConfigError: A name is unknown.

    >>> checked_extra(["cldice", "surface_dice_area", "cldice"])
    ('surface_dice_area', 'cldice')
    """
    wanted = set(names)
    if ALL in wanted:
        wanted = (wanted - {ALL}) | EXTRA.keys()
    for name in sorted(wanted - EXTRA.keys()):
        if name in CATALOG:
            raise ConfigError(f"metrics: found {name!r}, which is always computed. Remove it.")
        raise ConfigError(
            f"metrics: found {name!r}, expected {', '.join(EXTRA)} or {ALL}.{did_you_mean(name, EXTRA)} Correct the name."
        )
    return tuple(name for name in EXTRA if name in wanted)


def extra_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of metrics on request.

    Args:
        names: Names of `EXTRA`.

    Returns:
        The columns, in the order of the names.
    """
    return tuple(column for name in names for column in EXTRA[name])
