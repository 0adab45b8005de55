"""Left and right, front and back, up and down: which axes a training mirrors.

A mirrored image shows a right kidney where the left one was, under the old name. A network that is trained so
can tell the two apart no more, which a mean Dice hides as one bad label among many. Front and back look less alike, so
that mirroring anterior and posterior parts is left to the user; by default it is not done, because it hides where
they lie.
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
    """The augmentation with its mirror axes chosen: all of the patch, but none between labels that come in opposites.

    Raises:
        ConfigError: training or prediction is told to mirror left and right, and labels come in such pairs.
    """
    orientation = experiment.preprocess.orientation
    in_patch = [0, 1, 2]  # the volume's axes, in the order of the patch
    if len(experiment.patch.size) == 2:
        in_patch.remove(experiment.patch.slice_axis)
    pairs = labels.left_right_pairs()
    chosen, predicted = experiment.augment.mirror_axes, experiment.predict.mirror_axes
    if pairs:
        sideways = _along(orientation, "LR")
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
    """The axes of the volume along which labels lie that come in opposites.

    Args:
        names: of labels and regions, such as left_kidney and right_kidney.
        orientation: axis codes of the network's arrays; None where files keep their own axes, any of which may then run
            from left to right.
    """
    found = set(_along(orientation, "LR") if opposite_names(names, "left", "right") else ())
    if orientation is not None:
        for word, opposite, letters in _OTHER_OPPOSITES:
            if opposite_names(names, word, opposite):
                found |= set(_along(orientation, letters))
    return tuple(sorted(found))


def _along(orientation: str | None, letters: str) -> list[int]:
    """The axes that may run along a direction such as ``LR``; all where files keep their own axes."""
    return [axis for axis in range(3) if orientation is None or orientation[axis] in letters]


def _refuse(
    field: str, axes: Sequence[int], forbidden: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> None:
    for axis in axes:
        if axis in forbidden:
            left, right = pairs[0]
            known = "from" if len(forbidden) == 1 else "perhaps from"
            raise ConfigError(
                f"{field}: found {list(axes)} with axis {axis} {known} left to right, expected it left out, because "
                f"mirroring makes {left} look like {right}. Remove {axis}, or merge the two labels."
            )
