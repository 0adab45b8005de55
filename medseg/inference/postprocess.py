"""Corrections of finished label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import DataError, nearest
from medseg.inference.settings import PredictSettings
from medseg.labels import Labels


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
            f"keep_largest: unknown label {unknown!r}.{nearest(unknown, known)} Known: {', '.join(known)}."
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
        mask = np.isin(classes, group)
        components, count = ndimage.label(mask, structure=np.ones((3,) * classes.ndim))
        if count < 2:
            continue
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        result[mask & (sizes[components] < sizes.max())] = 0
    return result
