"""The configurations of a dataset: 2D, full resolution, and a low resolution if volumes are large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from medseg.data.preprocessing.channel_methods import channel_method
from medseg.data.settings import Method
from medseg.planning.nnunet.presets import Preset
from medseg.planning.nnunet.sizing import NetworkSize, size_network
from medseg.planning.nnunet.spacing import inverse_order, median_shape, slice_axis_first, target_spacing

_ENOUGH_CONTEXT = 0.25  # fraction of the median volume that one patch should cover
_COARSEN_BY = 1.03
_SAME_SCALE = 2.0
_WORTH_IT = 2.0  # a low resolution must have at most half the voxels
_MASKED_BELOW = 0.75  # fraction of the volume that the crop to non-zero keeps
_Sizer = Callable[[Sequence[float], Sequence[float], float], NetworkSize]


@dataclass(frozen=True)
class DatasetMeasures:
    """The input of the planner, with axes in the order z, y, x.

    Attributes:
        spacings: Spacing in mm, one per case.
        shapes: Voxels after the crop to non-zero, one per case.
        num_labels: Number of labels, including background.
        target: Spacing to plan for instead of the dataset's own.
    """

    spacings: tuple[tuple[float, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    num_labels: int
    target: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Configurations:
    """All networks planned for a dataset; their axes are in the order `order` of z, y, x.

    Attributes:
        order: The axes, coarsest first: the 2D network sees slices perpendicular to the first axis.
        median_spacing: Median spacing of the files, in this order.
        median_shape: Median shape of the files, in this order.
        config_2d: The 2D network.
        config_3d_fullres: The 3D network at the target spacing; None for datasets of single slices.
        config_3d_lowres: The 3D network at a coarser spacing; None if the full resolution sees enough of a volume.
    """

    order: tuple[int, ...]
    median_spacing: tuple[float, ...]
    median_shape: tuple[int, ...]
    config_2d: NetworkSize
    config_3d_fullres: NetworkSize | None
    config_3d_lowres: NetworkSize | None

    @property
    def inverse_order(self) -> tuple[int, ...]:
        """The order of axes that returns values to z, y, x."""
        return inverse_order(self.order)


def plan_configurations(
    measures: DatasetMeasures, preset: Preset, memory_gib: float | None = None
) -> Configurations:
    """Plan all configurations of a dataset, equal to nnU-Net's.

    Args:
        measures: Measurements of the dataset.
        preset: Kind of network and memory.
        memory_gib: Memory to fill in GiB; None takes the preset's own.

    Returns:
        The 2D network, and the 3D networks that make sense for the dataset.

    Raises:
        ConfigError: The memory does not fit the smallest network.
    """
    target = measures.target or target_spacing(measures.spacings, measures.shapes)
    order = slice_axis_first(target)
    at_target = median_shape(measures.spacings, measures.shapes, target)
    spacing, median = _ordered(target, order), _ordered(at_target, order)
    cases = len(measures.shapes)
    voxels = prod(median) * cases

    def size(spacing: Sequence[float], shape: Sequence[float], voxels: float) -> NetworkSize:
        return size_network(spacing, shape, voxels, measures.num_labels, preset, memory_gib)

    flat = size(spacing[1:], median[1:], voxels)
    full = size(spacing, median, voxels) if median[0] != 1 else None
    low = _low_resolution(full, cases, size) if full else None
    file_shape = np.median(np.asarray(measures.shapes, dtype=float), axis=0)
    return Configurations(
        order=order,
        median_spacing=_ordered(np.median(np.asarray(measures.spacings), axis=0), order),
        median_shape=tuple(round(n) for n in _ordered(file_shape, order)),
        config_2d=flat,
        config_3d_fullres=full,
        config_3d_lowres=low,
    )


def _low_resolution(full: NetworkSize, cases: int, size: _Sizer) -> NetworkSize | None:
    """Return the first coarser network whose patch covers a quarter of the median volume."""
    spacing, low = list(full.spacing), full
    voxels = prod(full.median_shape)
    while prod(low.patch) / voxels < _ENOUGH_CONTEXT:
        fine = [max(spacing) / s > _SAME_SCALE for s in spacing]
        chosen = fine if any(fine) else [True] * len(spacing)
        spacing = [s * _COARSEN_BY if coarsen else s for s, coarsen in zip(spacing, chosen, strict=True)]
        exact = [n * (f / s) for n, f, s in zip(full.median_shape, full.spacing, spacing, strict=True)]
        voxels = prod(exact)
        low = size(spacing, [round(n) for n in exact], voxels * cases)
    return low if low is not full and prod(full.median_shape) / voxels >= _WORTH_IT else None


def normalization_schemes(
    channel_names: Sequence[str], median_relative_size: float
) -> tuple[tuple[Method, ...], tuple[bool, ...]]:
    """Return the normalisation of each channel, and whether it is restricted to the non-zero mask.

    The method depends on the name: CT is normalised by its foreground statistics, unknown channels by their own mean and
    standard deviation.

    Args:
        channel_names: Names of the channels.
        median_relative_size: Median fraction of the volume that the crop to non-zero keeps. Below 0.75, channels that are
            normalised by their own statistics use the mask.

    Returns:
        The method of each channel, and whether it uses the mask.
    """
    chosen = tuple(channel_method(name) for name in channel_names)
    masked = median_relative_size < _MASKED_BELOW
    return chosen, tuple(scheme == "zscore" and masked for scheme in chosen)


def _ordered(values: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(values[axis]) for axis in order)
