"""nnU-Net's learned post-processing: the removal of connected components that improved its cross-validation.

``crossval_results_folds_*/postprocessing.json`` names functions and their arguments. There is only one function, which
sets all but the largest component of some labels to background. ``postprocessing.pkl`` contains the same and is never
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.errors import ModelError
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import PredictSettings
from medseg.storage.json_files import read_object

_FUNCTION = "remove_all_but_largest_component_from_segmentation"
_FOLDER = "crossval_results_folds_"


def find_postprocessing(folder: Path, folds: Sequence[str]) -> Path | None:
    """Find the post-processing that was learned on these folds, or else on the most folds.

    Args:
        folder: Folder ``TRAINER__PLANS__CONFIGURATION``.
        folds: Imported folds, such as ``("0", "1")``.

    Returns:
        ``postprocessing.json``, or ``postprocessing.pkl`` if only that exists; None if nothing was learned.
    """
    found = {
        tuple(path.parent.name.removeprefix(_FOLDER).split("_")): path
        for suffix in ("pkl", "json")  # the latter replaces the former
        for path in sorted(folder.glob(f"{_FOLDER}*/postprocessing.{suffix}"))
    }
    if tuple(folds) in found:
        return found[tuple(folds)]
    return max(found.items(), key=lambda item: len(item[0]))[1] if found else None


def read_postprocessing(path: Path, labels: Labels, settings: PredictSettings) -> PredictSettings:
    """Return prediction settings with the post-processing of a ``postprocessing.json``.

    Args:
        path: The file.
        labels: Labels of the model; nnU-Net identifies labels and regions by their values.
        settings: Settings to change.

    Returns:
        The settings with ``keep_largest_foreground`` and ``keep_largest`` replaced.

    Raises:
        DataError: The file is not a JSON object.
        ModelError: medseg does not support a step.
    """
    values = read_object(path)
    functions, arguments = values.get("postprocessing_fns"), values.get("postprocessing_kwargs")
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise ModelError(
            f"{path}: expected the lists postprocessing_fns and postprocessing_kwargs, equally long. {_REMEDY}"
        )
    steps = [_step(*pair, path) for pair in zip(functions, arguments, strict=True)]
    # A first step on a region with all labels is the same as one on the whole foreground.
    foreground = steps[:1] == [labels.values[1:]]
    names = tuple(_name(step, labels, path) for step in steps[foreground:])
    return settings.replace(keep_largest_foreground=foreground, keep_largest=names)


def in_words(settings: PredictSettings) -> str:
    """Return a description of what the post-processing keeps."""
    parts = ["of all labels together"] if settings.keep_largest_foreground else []
    parts += [f"of {name}" for name in settings.keep_largest]
    return f"largest component {', then '.join(parts)}" if parts else "none"


_REMEDY = "Use the file that nnU-Net wrote, or remove it from the folder to import the model without post-processing."


def _step(function: Any, arguments: Any, path: Path) -> tuple[int, ...]:
    """Return the sorted values whose largest component is kept."""
    wanted = arguments.get("labels_or_regions") if isinstance(arguments, dict) else None
    known = function == _FUNCTION and isinstance(arguments, dict)
    if not known or not set(arguments) <= {"labels_or_regions", "background_label"}:
        raise ModelError(
            f"{path}: found the function {function!r} with the arguments {arguments!r}, expected {_FUNCTION} with "
            f"labels_or_regions, the only step that medseg knows. {_REMEDY}"
        )
    groups = wanted if isinstance(wanted, list) else [wanted]
    values: list[Any] = [
        value for group in groups for value in (group if isinstance(group, list) else [group])
    ]
    if not values or not all(type(value) is int for value in values) or arguments.get("background_label", 0):
        raise ModelError(f"{path}: found {arguments!r}, expected label values, and background 0. {_REMEDY}")
    return tuple(sorted(set(values)))


def _name(values: tuple[int, ...], labels: Labels, path: Path) -> str:
    """Return the name of the label or region with these values."""
    held = {region.values: region.name for region in labels.regions}
    held |= {(label.value,): label.name for label in labels.foreground if (label.value,) not in held}
    if values not in held:
        raise ModelError(
            f"{path}: found the values {list(values)}, expected those of a label or region: "
            f"{', '.join(f'{name} {list(group)}' for group, name in held.items())}. {_REMEDY}"
        )
    return held[values]
