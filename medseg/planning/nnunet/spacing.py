"""The target spacing of a dataset, in nnU-Net's order of axes.

The rules of this package are those of nnU-Net v2 (Isensee et al., Nature Methods 2021,
doi:10.1038/s41592-020-01008-z). They assume axes in the order z, y, x, in which ties are broken; `propose` converts
their results to medseg's X, Y, Z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.volumes.grid import shape_at_spacing

THICK_SLICES = 3.0  # an axis is thick when its spacing exceeds this many times the others'
THICK_PERCENTILE = 10.0
_STAY_ABOVE_MM = 1e-5


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the spacing to train at: the median of all cases; for thick slices a finer spacing across them.

    Args:
        spacings: Spacing in mm per axis, one per case.
        shapes: Voxels per axis after the crop to non-zero, one per case.

    Returns:
        mm per axis. Slices are thick if the median spacing of an axis exceeds three times that of the others and its
        median size is below a third of theirs; then the 10th percentile of its spacings is taken, but not less than the
        others' spacing.
    """
    per_case = np.asarray(spacings, dtype=float)
    target = np.median(per_case, axis=0)
    size = np.median(np.asarray(shapes, dtype=float), axis=0)
    worst = int(np.argmax(target))
    coarsest_other = max(t for axis, t in enumerate(target) if axis != worst)
    smallest_other = min(s for axis, s in enumerate(size) if axis != worst)
    if target[worst] > THICK_SLICES * coarsest_other and size[worst] * THICK_SLICES < smallest_other:
        finer = float(np.percentile(per_case[:, worst], THICK_PERCENTILE))
        target[worst] = finer if finer >= coarsest_other else coarsest_other + _STAY_ABOVE_MM
    return tuple(float(value) for value in target)


def slice_axis_first(spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the order of axes with the coarsest first and the others unchanged; the first of equals wins.

    Args:
        spacing: Spacing in mm per axis.

    Returns:
        Indices of the axes.
    """
    worst = int(np.argmax(spacing))
    return (worst, *(axis for axis in range(len(spacing)) if axis != worst))


def inverse_order(order: Sequence[int]) -> tuple[int, ...]:
    """Return the order of axes that undoes `order`.

    Args:
        order: An order of axes.

    Returns:
        Indices of the axes.
    """
    return tuple(list(order).index(axis) for axis in range(len(order)))


def median_shape(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target: Sequence[float]
) -> tuple[float, ...]:
    """Return the median shape of the cases at spacing `target`, voxels per axis; it may end in a half.

    Args:
        spacings: Spacing in mm per axis, one per case.
        shapes: Voxels per axis, one per case.
        target: Spacing in mm per axis.

    Returns:
        Voxels per axis.
    """
    resampled = [shape_at_spacing(n, old, target) for n, old in zip(shapes, spacings, strict=True)]
    return tuple(float(value) for value in np.median(resampled, axis=0))
