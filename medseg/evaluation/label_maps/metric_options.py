"""What an evaluation of label maps computes, and by which conventions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medseg.errors import ConfigError
from medseg.evaluation.label_maps.metric_catalog import CATALOG, checked_extra, extra_columns
from medseg.evaluation.label_maps.surface import checked_tolerance
from medseg.evaluation.summary_json import finite_or_none

BothEmpty = Literal["leave_out", "perfect"]


@dataclass(frozen=True)
class MetricOptions:
    """What an evaluation computes, and by which conventions.

    Attributes:
        tolerance_mm: Tolerance of both surface Dice in mm.
        metrics: Metrics to compute besides those of every evaluation: ``surface_dice_area``, ``cldice``, ``boundary_iou``,
            ``lesion_wise``, or ``all``.
        both_empty: What a case counts whose masks are both empty: ``leave_out`` of the means, or ``perfect``: 1 for overlaps
            and 0 for distances and errors.
        boundary_mm: Width in mm of the boundary of ``boundary_iou``; None for 2 % of the image's diagonal (Cheng et al. 2021).
        lesion_dilation: Voxels by which reference lesions are dilated for ``lesion_wise``; those that then touch are one.
        lesion_min_mm3: Volume in mm³ up to which a reference lesion is not counted by ``lesion_wise``.

    >>> MetricOptions(metrics=("cldice",)).columns
    ('cldice',)
    """

    tolerance_mm: float = 1.0
    metrics: tuple[str, ...] = ()
    both_empty: BothEmpty = "leave_out"
    boundary_mm: float | None = None
    lesion_dilation: int = 3
    lesion_min_mm3: float = 50.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance_mm", checked_tolerance(self.tolerance_mm))
        object.__setattr__(self, "metrics", checked_extra(self.metrics))
        if self.both_empty not in get_args(BothEmpty):
            raise ConfigError(
                f"both_empty: found {self.both_empty!r}, expected leave_out or perfect. Use one of them."
            )
        if self.boundary_mm is not None and not (math.isfinite(self.boundary_mm) and self.boundary_mm > 0):
            raise ConfigError(
                f"boundary_mm: found {self.boundary_mm}, expected more than 0 mm. Use 1, for example."
            )
        if self.lesion_dilation < 0:
            raise ConfigError(
                f"lesion_dilation: found {self.lesion_dilation}, expected 0 or more voxels. Use 3."
            )
        if not (math.isfinite(self.lesion_min_mm3) and self.lesion_min_mm3 >= 0):
            raise ConfigError(f"lesion_min_mm3: found {self.lesion_min_mm3}, expected 0 mm³ or more. Use 50.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the metrics on request."""
        return extra_columns(self.metrics)

    def when_both_empty(self, column: str, otherwise: float) -> float:
        """Return the value of a metric where both masks are empty.

        Args:
            column: Name of the metric.
            otherwise: Its value by definition.

        Returns:
            The value that counts.
        """
        perfect = CATALOG[column].perfect
        return otherwise if self.both_empty == "leave_out" or math.isnan(perfect) else perfect

    def rule_in_words(self) -> str:
        """Return how empty masks count, for notes below tables."""
        both = (
            "not counted"
            if self.both_empty == "leave_out"
            else "counted as perfect (overlaps 1, distances 0)"
        )
        return f"empty masks: both, {both}; one, overlaps 0, infinite distances left out"

    def empty_rules(self, columns: tuple[str, ...]) -> dict[str, dict[str, float | str | None]]:
        """Return the values of metrics where masks are empty as plain values; None is left out of means.

        Args:
            columns: Names of the metrics.

        Returns:
            By metric, the value where ``both`` masks, only the ``prediction``, and only the ``reference`` are empty. Those of
            volumes are the volumes.
        """
        rules: dict[str, dict[str, float | str | None]] = {}
        for column in columns:
            info = CATALOG[column]
            if column.endswith("_ml"):
                rules[column] = dict.fromkeys(("both", "prediction", "reference"), "measured")
                continue
            defined = info.perfect if column == "specificity" else math.nan
            rules[column] = {
                "both": finite_or_none(self.when_both_empty(column, defined)),
                "prediction": finite_or_none(info.missed),
                "reference": finite_or_none(info.invented) if column != "specificity" else "measured",
            }
        return rules

    def to_plain(self) -> dict[str, Any]:
        """Return the conventions that influence the figures, as plain values for ``summary.json``."""
        plain: dict[str, Any] = {"tolerance_mm": self.tolerance_mm, "both_empty": self.both_empty}
        if "boundary_iou" in self.metrics:
            plain["boundary_mm"] = self.boundary_mm
        if "lesion_wise" in self.metrics:
            plain |= {"lesion_dilation": self.lesion_dilation, "lesion_min_mm3": self.lesion_min_mm3}
        return plain


_OPTIONS_BY_COLUMN = {
    "surface_dice": ("tolerance_mm",),
    "surface_dice_area": ("tolerance_mm",),
    "boundary_iou": ("boundary_mm",),
    "lesion_dice": ("lesion_dilation", "lesion_min_mm3"),
    "lesion_hd95_mm": ("lesion_dilation", "lesion_min_mm3"),
}


def options_of_metric(column: str) -> tuple[str, ...]:
    """Return the names of the options of `MetricOptions` on which a metric depends.

    Args:
        column: Name of the metric.

    Returns:
        The names, as stored in ``summary.json``.

    >>> options_of_metric("surface_dice")
    ('both_empty', 'tolerance_mm')
    """
    return ("both_empty", *_OPTIONS_BY_COLUMN.get(column, ()))


DEFAULT_OPTIONS = MetricOptions()
"""What ``medseg evaluate`` computes without options."""
