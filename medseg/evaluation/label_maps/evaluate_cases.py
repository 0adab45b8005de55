"""Label maps of many cases, compared one after the other with their references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from medseg.errors import DataError
from medseg.evaluation.label_maps.metric_options import DEFAULT_OPTIONS, MetricOptions
from medseg.evaluation.label_maps.metrics import LabelMetrics, compare_label_maps, label_values
from medseg.evaluation.label_maps.pairs import Pair
from medseg.labels.label_table import Labels
from medseg.volumes.volume import Volume

_MANY_VALUES, _SHARED = 30, 0.25


def evaluate_cases(
    pairs: Iterable[Pair], labels: Labels | None = None, options: MetricOptions = DEFAULT_OPTIONS
) -> Iterator[list[LabelMetrics]]:
    """Yield the rows of each case, reading files only when their case is reached.

    Args:
        pairs: Predictions and references, for example from `pair_files`.
        labels: Names of the values; None names each value that occurs in the case.
        options: Metrics to compute, and the conventions for them.

    Yields:
        The rows of one case.

    Raises:
        DataError: As in `evaluate`, raised at the faulty case.

    >>> import numpy as np
    >>> from medseg.evaluation import Pair
    >>> from medseg.volumes.grid import Grid
    >>> from medseg.volumes.volume import Volume
    >>> volume = Volume(np.ones((1, 4, 4, 4), np.uint8), Grid.from_spacing((4, 4, 4)), "label")
    >>> [[row.dice for row in rows] for rows in evaluate_cases([Pair("a", volume, volume)])]
    [[1.0]]
    """
    for pair in pairs:
        prediction, reference = pair.volumes()
        table = labels_in(prediction, reference) if labels is None else labels
        if labels is None:
            _check_same_kind(prediction, reference, pair.case)
        yield compare_label_maps(
            prediction, reference, table, options, case=pair.case, annotated=pair.annotated
        )


def labels_in(*volumes: Volume) -> Labels:
    """Return labels for all values of these label maps, named ``label_1`` and so on; 0 is the background.

    Args:
        *volumes: Label maps.

    Returns:
        The labels.

    Raises:
        DataError: A volume is not a label map, or has a negative value.
    """
    return Labels.from_values(*(label_values(volume, "label map") for volume in volumes))


def _check_same_kind(prediction: Volume, reference: Volume, case: str) -> None:
    """Raise if one side is an image instead of a label map: it has many values that the other side lacks."""
    found = [set(np.unique(volume.data).tolist()) - {0} for volume in (prediction, reference)]
    if max(map(len, found)) > _MANY_VALUES and len(found[0] & found[1]) < _SHARED * max(map(len, found)):
        raise DataError(
            f"{case or 'evaluate'}: found {len(found[0])} values in the prediction and {len(found[1])} in the reference, "
            "expected label maps of the same labels. Compare maps of ids with --instances; if neither is an image, name the "
            "labels with --labels TSV."
        )
