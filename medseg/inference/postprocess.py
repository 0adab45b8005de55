"""Post-processing of label maps: keep only the largest connected components."""

from __future__ import annotations

from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import PredictSettings


def component_groups(settings: PredictSettings, labels: Labels) -> list[tuple[int, ...]]:
    """Return the groups of label values that are reduced to their largest connected component.

    Args:
        settings: Prediction settings. The whole foreground comes first, if wanted, then each name of `keep_largest`.
        labels: Labels and regions that these names refer to. A region is the group of its labels.

    Returns:
        Label values of each group, in the order in which the groups are reduced.

    Raises:
        DataError: A name is neither a label nor a region.
    """
    known: dict[str, tuple[int, ...]] = {label.name: (label.value,) for label in labels.foreground}
    known |= {region.name: region.values for region in labels.regions}
    unknown = next((name for name in settings.keep_largest if name not in known), None)
    if unknown is not None:
        raise DataError(
            f"keep_largest: unknown label {unknown!r}.{did_you_mean(unknown, known)} Known: {', '.join(known)}."
        )
    foreground = [labels.values[1:]] if settings.keep_largest_foreground else []
    return [*foreground, *(known[name] for name in settings.keep_largest)]
