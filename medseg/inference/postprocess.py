"""Corrections of finished label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import PredictSettings

BYTES_A_VOXEL = (
    8  # that `keep_largest_components` takes at most: a mask, a copy of up to 16 bits, the components
)


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


def keep_largest_components(
    classes: NDArray[Any], wanted: Sequence[int], *, together: bool = False
) -> NDArray[Any]:
    """Set all but the largest connected component to background.

    Components touch by faces, edges or corners (26 neighbours); components tied for largest all stay.

    Args:
        classes: class indices `(X, Y, Z)`; not changed.
        wanted: classes to clean; others stay as they are.
        together: one component for the union of `wanted` instead of one per class.

    Returns:
        A cleaned copy.
    """
    result = classes.copy()
    groups = [list(wanted)] if together else [[value] for value in wanted]
    for group in groups:
        mask = np.empty(classes.shape, bool, order="F")
        # A slice at a time here and below, because NumPy looks values up, and counts them, in copies of 64 bits.
        for index in range(classes.shape[-1]):
            mask[..., index] = np.isin(classes[..., index], group)
        box = _box_of(mask)
        components, count = ndimage.label(mask[box], structure=np.ones((3,) * classes.ndim))
        del mask
        if count < 2:
            continue
        sizes = np.zeros(count + 1, np.int64)
        for part in components:
            sizes += np.bincount(part.ravel(), minlength=count + 1)
        sizes[0] = 0
        dropped = sizes < sizes.max()
        dropped[0] = False
        for here, part in zip(result[box], components, strict=True):
            here[dropped[part]] = 0
    return result


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds all that is true; an empty one if nothing is."""
    found = []
    for axis in range(mask.ndim):
        across = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        found.append(slice(int(across[0]), int(across[-1]) + 1) if len(across) else slice(0, 0))
    return tuple(found)
