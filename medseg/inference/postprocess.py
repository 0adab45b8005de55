"""Post-processing of label maps: keep only the largest connected components, and remove small ones."""

from __future__ import annotations

from medseg.errors import DataError, did_you_mean
from medseg.labels.components import keep_largest_components, remove_small_components
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import PredictSettings
from medseg.volumes.volume import Volume

_ROUNDING = 1e-6  # relative; files hold voxel sizes in single precision


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
    known = _values_by_name(labels)
    for key in ("keep_largest", "min_component_ml"):
        unknown = next((name for name in getattr(settings, key) if name not in known), None)
        if unknown is not None:
            raise DataError(
                f"{key}: unknown label {unknown!r}.{did_you_mean(unknown, known)} Known: {', '.join(known)}."
            )
    foreground = [labels.values[1:]] if settings.keep_largest_foreground else []
    return [*foreground, *(known[name] for name in settings.keep_largest)]


def has_postprocessing(settings: PredictSettings) -> bool:
    """Return whether the settings ask for any post-processing."""
    return bool(settings.keep_largest_foreground or settings.keep_largest or settings.min_component_ml)


def post_process(found: Volume, settings: PredictSettings, labels: Labels) -> Volume:
    """Return a label map after the post-processing that the settings ask for.

    Args:
        found: A label map `(1, X, Y, Z)` with the labels' values; not changed.
        settings: Prediction settings.
        labels: Labels and regions of the label map.

    Returns:
        A label map on the same grid; `found` itself if the settings ask for no post-processing.

    Raises:
        DataError: A name is neither a label nor a region.
    """
    if not has_postprocessing(settings):
        return found
    data = found.data[0]
    for group in component_groups(settings, labels):
        data = keep_largest_components(data, group, together=True)
    known = _values_by_name(labels)
    for name, volume in settings.min_component_ml.items():
        largest = int(volume * 1000 / found.grid.voxel_volume * (1 + _ROUNDING))
        data = remove_small_components(data, known[name], largest)
    return found.with_data(data[None])


def _values_by_name(labels: Labels) -> dict[str, tuple[int, ...]]:
    """Return the values of every label and region."""
    known: dict[str, tuple[int, ...]] = {label.name: (label.value,) for label in labels.foreground}
    return known | {region.name: region.values for region in labels.regions}
