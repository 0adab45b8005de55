"""Orientations: axis codes such as RAS, and the permutations and flips between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError

AXES = "RAS"


def checked_axcodes(axcodes: str) -> str:
    """Return axis codes in upper case.

    Args:
        axcodes: Three letters in upper or lower case.

    Returns:
        Three letters, such as ``"RAS"``.

    Raises:
        DataError: The codes are not one letter each of R/L, A/P and S/I.
    """
    letters = axcodes.upper()
    pairs = [{"R", "L"}, {"A", "P"}, {"S", "I"}]
    if len(letters) != 3 or any(sum(letter in pair for letter in letters) != 1 for pair in pairs):
        raise DataError(
            f"orientation: found {axcodes!r}, expected one letter each of R/L, A/P and S/I. Use RAS, for example."
        )
    return letters


def reorientation(source: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the permutation and flips that reorient an array.

    Args:
        source: Axis codes of the array.
        target: Axis codes after reorientation.

    Returns:
        The source axis of each target axis, and whether it is reversed.

    Examples:
        >>> reorientation("RAS", "SPR")
        ((2, 1, 0), (False, True, False))
    """
    import nibabel.orientations as orientations

    source, target = checked_axcodes(source), checked_axcodes(target)
    transform = orientations.ornt_transform(
        orientations.axcodes2ornt(tuple(source)), orientations.axcodes2ornt(tuple(target))
    )
    axes, flips = [0, 0, 0], [False, False, False]
    for source_axis, (target_axis, direction) in enumerate(transform):
        axes[int(target_axis)] = source_axis
        flips[int(target_axis)] = bool(direction < 0)
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def reorient_array(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Return a view of an array with other axis codes.

    Args:
        array: Array `(*leading, X, Y, Z)`.
        source: Its axis codes.
        target: Axis codes of the view.

    Returns:
        View `(*leading, X, Y, Z)`; no value changes.
    """
    return permute_array(array, *reorientation(source, target))


def permute_array(array: NDArray[Any], axes: Sequence[int], flips: Sequence[bool]) -> NDArray[Any]:
    """Return a view of an array with permuted and reversed spatial axes.

    Args:
        array: Array `(*leading, X, Y, Z)`.
        axes: Source axis of each new spatial axis.
        flips: Whether each new spatial axis is reversed.

    Returns:
        View `(*leading, X, Y, Z)`; no value changes.
    """
    leading = array.ndim - 3
    moved = np.transpose(array, (*range(leading), *[leading + axis for axis in axes]))
    flipped = [leading + axis for axis, flip in enumerate(flips) if flip]
    return np.flip(moved, tuple(flipped)) if flipped else moved
