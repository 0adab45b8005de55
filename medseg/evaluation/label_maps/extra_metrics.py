"""The metrics of label maps that are computed on request."""

from __future__ import annotations

import math
from collections.abc import Callable

from medseg.evaluation.label_maps.boundary_iou import boundary_iou
from medseg.evaluation.label_maps.centerline_dice import centerline_dice
from medseg.evaluation.label_maps.lesion_wise import lesion_wise
from medseg.evaluation.label_maps.mask_pair import MaskPair
from medseg.evaluation.label_maps.metric_catalog import EXTRA
from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.surface_area import area_distances

Measure = Callable[[MaskPair, MetricOptions], tuple[float, ...]]

_MEASURES: dict[str, Measure] = {
    "surface_dice_area": lambda pair, options: (
        area_distances(pair.prediction, pair.reference, pair.steps).surface_dice(options.tolerance_mm),
    ),
    "cldice": lambda pair, options: (centerline_dice(pair),),
    "boundary_iou": lambda pair, options: (boundary_iou(pair, options.boundary_mm),),
    "lesion_wise": lambda pair, options: lesion_wise(pair, options.lesion_dilation, options.lesion_min_mm3),
}


def measure_extra(pair: MaskPair, options: MetricOptions) -> dict[str, float]:
    """Return the metrics that were requested.

    Args:
        pair: The masks of a label in a case.
        options: Which metrics, and by which conventions.

    Returns:
        The values by column.
    """
    found: dict[str, float] = dict.fromkeys(options.columns, math.nan)
    if pair.prediction.any() or pair.reference.any():
        for name in options.metrics:
            found |= zip(EXTRA[name], _MEASURES[name](pair, options), strict=True)
    # NaN: there is nothing to measure.
    return {
        column: options.when_both_empty(column, math.nan) if math.isnan(value) else float(value)
        for column, value in found.items()
    }
