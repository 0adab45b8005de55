"""Left and right: which axes a training may mirror.

A mirrored image shows a right kidney where the left one was, under the old name. A network that is trained so
can tell the two apart no more, which a mean Dice hides as one bad label among many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg.data.settings import Augmentation
from medseg.errors import ConfigError
from medseg.labels import Labels

if TYPE_CHECKING:
    from medseg.experiment.config import Experiment


def resolve_mirroring(experiment: Experiment, labels: Labels) -> Augmentation:
    """The augmentation with its mirror axes chosen: all of the patch, but not left-right under sided labels.

    Raises:
        ConfigError: training or prediction is told to mirror left and right, and labels come in such pairs.
    """
    in_patch, in_volume = _left_right_axes(experiment)
    pairs = labels.sided_pairs()
    chosen, predicted = experiment.augment.mirror_axes, experiment.predict.mirror_axes
    if pairs:
        _refuse("augment.mirror_axes", chosen or (), in_patch, pairs)
        _refuse("predict.mirror_axes", predicted, in_volume, pairs)
    if chosen is None:
        axes = (0, 1, 2)[: len(experiment.patch.size)]
        return experiment.augment.replace(mirror_axes=[a for a in axes if not (pairs and a == in_patch)])
    return experiment.augment


def _left_right_axes(experiment: Experiment) -> tuple[int | None, int]:
    """The left-right axis among those of the patch (None across the slices of a 2-D one), and of the volume."""
    orientation = experiment.preprocess.orientation
    in_volume = next(axis for axis, code in enumerate(orientation) if code in "LR")
    axes = [0, 1, 2]
    if len(experiment.patch.size) == 2:
        axes.remove(experiment.patch.slice_axis)
    return (axes.index(in_volume) if in_volume in axes else None), in_volume


def _refuse(field: str, axes: Sequence[int], axis: int | None, pairs: Sequence[tuple[str, str]]) -> None:
    if axis in axes:
        left, right = pairs[0]
        raise ConfigError(
            f"{field}: found {list(axes)} with axis {axis} from left to right, expected it left out, because "
            f"mirroring makes {left} look like {right}. Remove {axis}, or merge the two labels."
        )
