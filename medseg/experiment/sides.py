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
from medseg.labels import Labels

if TYPE_CHECKING:
    from medseg.experiment.config import Experiment


_OTHER_OPPOSITES = (
    ("anterior", "posterior", "AP"),
    ("superior", "inferior", "SI"),
    ("upper", "lower", "SI"),
)


def resolve_mirroring(experiment: Experiment, labels: Labels) -> Augmentation:
    """The augmentation with its mirror axes chosen: all of the patch, but none between labels that come in opposites.

    Raises:
        ConfigError: training or prediction is told to mirror left and right, and labels come in such pairs.
    """
    in_patch, in_volume = _axes_along(experiment, "LR")
    pairs = labels.sided_pairs()
    chosen, predicted = experiment.augment.mirror_axes, experiment.predict.mirror_axes
    if pairs:
        _refuse("augment.mirror_axes", chosen or (), in_patch, pairs)
        _refuse("predict.mirror_axes", predicted, in_volume, pairs)
    if chosen is None:
        kept = set(in_patch if pairs else ())
        if experiment.preprocess.orientation is not None:
            for word, opposite, letters in _OTHER_OPPOSITES:
                if labels.opposite_pairs(word, opposite):
                    kept |= set(_axes_along(experiment, letters)[0])
        axes = (0, 1, 2)[: len(experiment.patch.size)]
        return experiment.augment.replace(mirror_axes=[a for a in axes if a not in kept])
    return experiment.augment


def _axes_along(experiment: Experiment, letters: str) -> tuple[list[int], list[int]]:
    """The axes that may run along a direction such as ``LR``: among those of the patch, and of the volume.

    One of the volume, and of the patch none across the slices of a 2-D one; all where files keep their own axes.
    """
    orientation = experiment.preprocess.orientation
    in_volume = [axis for axis in range(3) if orientation is None or orientation[axis] in letters]
    axes = [0, 1, 2]
    if len(experiment.patch.size) == 2:
        axes.remove(experiment.patch.slice_axis)
    return [axes.index(axis) for axis in in_volume if axis in axes], in_volume


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
