"""The stages of a U-Net for a patch at a given spacing: strides and kernels per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

SMALLEST_EDGE = 4  # voxels of the deepest feature map
SAME_SCALE = 2.0  # spacings within this ratio are treated as equal


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net, from the full resolution down, and the patch that fits them.

    Attributes:
        strides: Strides per stage and axis; those of the first stage are 1.
        kernels: Kernel sizes per stage and axis, 1 or 3.
        patch: Voxels per axis, multiples of `divisor`.
        divisor: Product of all strides of each axis.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]
    divisor: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        """The number of resolutions."""
        return len(self.strides)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the voxels per axis of each stage's feature maps, for one patch."""
        sizes, size = [], self.patch
        for stride in self.strides:
            size = tuple(n // s for n, s in zip(size, stride, strict=True))
            sizes.append(size)
        return sizes


def plan_topology(
    spacing: Sequence[float], patch: Sequence[float], smallest_edge: int = SMALLEST_EDGE
) -> Topology:
    """Halve the finest axes until they are as coarse as the others, then all axes, while feature maps stay large enough.

    An axis is halved while it has twice `smallest_edge` voxels and its spacing is below twice the finest among such
    axes. Kernels span 3 voxels along axes within twice the finest spacing and 1 along coarser ones; once 3, they stay 3.

    Args:
        spacing: Spacing in mm per axis.
        patch: Voxels per axis; halves are allowed, because medians have them. It is enlarged to multiples of the
            divisor.
        smallest_edge: Smallest size in voxels of the deepest feature map along an axis.

    Returns:
        Strides and kernels of each stage, with the enlarged patch.
    """
    return _planned(tuple(spacing), tuple(patch), smallest_edge)


# The search for the largest memory that the time allows shrinks the same patches again at each of its steps.
@lru_cache(maxsize=4096)
def _planned(spacing: tuple[float, ...], patch: tuple[float, ...], smallest_edge: int) -> Topology:
    size, current = list(patch), list(spacing)
    axes = range(len(size))
    divisor, kernel = [1] * len(size), [1] * len(size)
    strides, kernels = [tuple(divisor)], []
    while True:
        halved = _axes_to_halve(size, current, smallest_edge)
        if not halved:
            break
        for axis in axes:
            if current[axis] / min(current) < SAME_SCALE:
                kernel[axis] = 3
        for axis in halved:
            divisor[axis] *= 2
            current[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        kernels.append(tuple(kernel))
    kernels.append((3,) * len(size))
    fitted = tuple(math.ceil(n / d) * d for n, d in zip(patch, divisor, strict=True))
    return Topology(tuple(strides), tuple(kernels), fitted, tuple(divisor))


def _axes_to_halve(size: Sequence[float], spacing: Sequence[float], smallest_edge: int) -> list[int]:
    long_enough = [axis for axis, n in enumerate(size) if n >= 2 * smallest_edge]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    chosen = [axis for axis in long_enough if spacing[axis] / finest < SAME_SCALE]
    if len(chosen) == 1 and size[chosen[0]] < 3 * smallest_edge:
        return []
    return chosen
