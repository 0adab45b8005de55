"""The patch that fits a memory budget, and the batch that fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from medseg.errors import ConfigError
from medseg.planning.nnunet.presets import LEAST_BATCH, REFERENCE_BATCH, Preset, feature_map_values
from medseg.planning.nnunet.topology import Topology, plan_topology

_FIRST_PATCH = {2: 2048, 3: 256}  # voxels along each axis of an isotropic patch, before it is shrunk
BatchLimit = Literal["memory", "voxels", "cases", "least"]


@dataclass(frozen=True)
class NetworkSize:
    """A network that fits a memory budget, with its patch and batch.

    Attributes:
        spacing: Spacing in mm per axis.
        median_shape: Voxels per axis of the median case at this spacing.
        topology: Stages and patch.
        batch_size: Patches per step.
        batch_limit: What limits the batch size.
        feature_map_values: Feature-map values of one patch.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    topology: Topology
    batch_size: int
    batch_limit: BatchLimit
    feature_map_values: int

    @property
    def patch(self) -> tuple[int, ...]:
        """The voxels per axis of a patch."""
        return self.topology.patch


def first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """Return the initial patch: a cube in mm, no longer than the median case along any axis.

    Args:
        spacing: Spacing in mm per axis.
        median_shape: Voxels per axis of the median case.

    Returns:
        Voxels per axis, as floating-point numbers.
    """
    dims = len(spacing)
    per_mm = 1 / np.asarray(spacing, dtype=float)
    cube = np.round(per_mm * (_FIRST_PATCH[dims] ** dims / np.prod(per_mm)) ** (1 / dims))
    return tuple(float(n) for n in np.minimum(cube, median_shape))


def size_network(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    dataset_voxels: float,
    num_labels: int,
    preset: Preset,
    memory_gib: float | None = None,
) -> NetworkSize:
    """Shrink the patch until its network fits the budget, and use the remaining memory for the batch.

    Args:
        spacing: Spacing in mm per axis; two axes for a 2D network.
        median_shape: Voxels per axis of the median case.
        dataset_voxels: Voxels of all training cases at full resolution.
        num_labels: Number of labels, including background.
        preset: Kind of network, reference memory and limit of the batch.
        memory_gib: Memory to fill in GiB; None takes the preset's own.

    Returns:
        The network with its patch and batch.

    Raises:
        ConfigError: Even the smallest patch does not fit.
    """
    dims = len(spacing)
    budget, reference_batch = preset.maps_within(dims, memory_gib), REFERENCE_BATCH[dims]
    topology = plan_topology(spacing, first_patch(spacing, median_shape))
    values = feature_map_values(topology, num_labels, preset)
    while values * preset.least_share(dims) > budget:
        topology = plan_topology(spacing, _shrunk(topology, spacing, median_shape))
        values = feature_map_values(topology, num_labels, preset)
    batch, limit = _batch_size(
        values, budget, reference_batch, dataset_voxels * preset.voxel_share, topology.patch
    )
    return NetworkSize(tuple(spacing), tuple(median_shape), topology, batch, limit, values)


def _shrunk(topology: Topology, spacing: Sequence[float], median_shape: Sequence[float]) -> list[int]:
    """Return a patch that is shorter along the axis that covers most of the median case."""
    covered = [p / m for p, m in zip(topology.patch, median_shape, strict=True)]
    axis = max(range(len(covered)), key=lambda a: (covered[a], a))
    trial = list(topology.patch)
    trial[axis] -= topology.divisor[axis]
    if trial[axis] < 1:
        raise ConfigError(
            f"memory: even a patch of {'x'.join(map(str, topology.patch))} voxels does not fit the budget. Give "
            "more memory, or choose a smaller preset."
        )
    # The shorter patch may be halved less often, and is then shortened by the smaller step: from 256 to 224 instead of 192.
    step = plan_topology(spacing, trial).divisor[axis]
    patch = list(topology.patch)
    patch[axis] -= step
    return patch


def _batch_size(
    values: int, budget: float, reference_batch: int, most_voxels: float, patch: Sequence[int]
) -> tuple[int, BatchLimit]:
    """Return the number of patches per step and what limits it."""
    by_memory = round(budget / values * reference_batch)
    by_voxels = round(most_voxels / prod(patch))
    batch = max(min(by_memory, by_voxels), LEAST_BATCH)
    if batch > min(by_memory, by_voxels):
        return batch, "least"
    return batch, "memory" if by_memory <= by_voxels else "voxels"
