"""Corrections of finished label maps."""

from __future__ import annotations

from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import PredictSettings


def component_groups(settings: PredictSettings, labels: Labels) -> list[tuple[int, ...]]:
    """The values of which, as one, only the largest component stays, one group after the other.

    Args:
        settings: first the whole foreground, if they say so, then each name of `keep_largest` in order.
        labels: the name of a region stands for the labels that it holds.

    Raises:
        DataError: a name of neither label nor region.
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
