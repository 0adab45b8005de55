"""The axes that are mirrored in training, given labels for opposite sides of the body.

A mirrored image shows a right kidney labelled as the left one. A network that is trained on such images cannot
distinguish the two, which the mean Dice over many labels hides. Left and right are therefore never mirrored if labels
come in such pairs. Anterior and posterior, and superior and inferior parts, look less alike: mirroring them is allowed,
but off by default, because it hides their position from the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg.data.settings import Augmentation
from medseg.errors import ConfigError
from medseg.labels.label_table import Labels
from medseg.labels.left_right import opposite_names

if TYPE_CHECKING:
    from medseg.experiment.config import ExperimentConfig


_OTHER_OPPOSITES = (
    ("anterior", "posterior", "AP"),
    ("superior", "inferior", "SI"),
    ("upper", "lower", "SI"),
)


def resolve_mirroring(experiment: ExperimentConfig, labels: Labels) -> Augmentation:
    """Return the augmentation with its mirror axes: by default all axes of the patch along which no labels are opposites.

    Args:
        experiment: Experiment whose augmentation is completed.
        labels: Labels of the dataset.

    Returns:
        The augmentation; mirror axes that the experiment sets are kept.

    Raises:
        ConfigError: Training or prediction mirrors left and right, and there are left and right labels.
    """
    orientation = experiment.preprocess.orientation
    in_patch = [0, 1, 2]  # the volume's axes, in the order of the patch
    if len(experiment.patch.size) == 2:
        in_patch.remove(experiment.patch.slice_axis)
    pairs = labels.left_right_pairs()
    chosen, predicted = experiment.augment.mirror_axes, experiment.predict.mirror_axes
    if pairs:
        sideways = _axes_along(orientation, "LR")
        _refuse(
            "augment.mirror_axes", chosen or (), [in_patch.index(a) for a in sideways if a in in_patch], pairs
        )
        _refuse("predict.mirror_axes", predicted, sideways, pairs)
    if chosen is not None:
        return experiment.augment
    kept = opposite_axes(labels.all_names, orientation)
    axes = [index for index, axis in enumerate(in_patch) if axis not in kept]
    return experiment.augment.replace(mirror_axes=axes)


def opposite_axes(names: Sequence[str], orientation: str | None) -> tuple[int, ...]:
    """Return the axes of the volume along which labels are opposites, such as left_kidney and right_kidney.

    Args:
        names: Names of labels and regions.
        orientation: Axis codes of the network's arrays, such as RAS; None if files keep their own axes, each of which
            may then run from left to right.

    Returns:
        Indices of the axes, ascending.
    """
    found = set(_axes_along(orientation, "LR") if opposite_names(names, "left", "right") else ())
    if orientation is not None:
        for word, opposite, letters in _OTHER_OPPOSITES:
            if opposite_names(names, word, opposite):
                found |= set(_axes_along(orientation, letters))
    return tuple(sorted(found))


def _axes_along(orientation: str | None, letters: str) -> list[int]:
    """Return the axes that may run along a direction such as ``LR``: all of them if files keep their own axes."""
    return [axis for axis in range(3) if orientation is None or orientation[axis] in letters]


def _refuse(
    field: str, axes: Sequence[int], forbidden: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> None:
    for axis in axes:
        if axis in forbidden:
            left, right = pairs[0]
            known = "from" if len(forbidden) == 1 else "perhaps from"
            raise ConfigError(
                f"{field}: found {list(axes)} with axis {axis} {known} left to right, expected other axes only, because "
                f"mirroring makes {left} look like {right}. Remove {axis}, or merge the two labels."
            )
