"""Corrections of nnU-Net's planning rules for small datasets."""

from __future__ import annotations

from dataclasses import replace

from medseg.planning.nnunet.presets import LEAST_BATCH, Preset, feature_map_values
from medseg.planning.nnunet.sizing import NetworkSize
from medseg.planning.nnunet.topology import SAME_SCALE, SMALLEST_EDGE, Topology, plan_topology

STAGES_FOR_DEEP_SUPERVISION = 3


def adapted_to_small_data(size: NetworkSize, cases: int, num_labels: int, preset: Preset) -> NetworkSize:
    """Return a network that can be trained, with a batch no larger than the number of cases.

    Without this limit, a preset for large GPUs puts most of a small dataset into every batch: 178 patches per step for
    260 cases of a few centimetres.

    Args:
        size: The planned network.
        cases: Number of cases.
        num_labels: Number of labels, including background.
        preset: The preset.

    Returns:
        The network; `size` itself if nothing has to change.
    """
    topology = with_two_stages(size.topology, size.spacing)
    if topology != size.topology:
        size = replace(
            size, topology=topology, feature_map_values=feature_map_values(topology, num_labels, preset)
        )
    most = max(cases, LEAST_BATCH)
    return replace(size, batch_size=most, batch_limit="cases") if size.batch_size > most else size


def with_two_stages(topology: Topology, spacing: tuple[float, ...]) -> Topology:
    """Return a topology with at least one pooling: a patch that is too small is enlarged along its fine axes, by padding.

    Args:
        topology: The planned topology.
        spacing: Spacing in mm per axis.

    Returns:
        The topology; `topology` itself if it has a pooling already.
    """
    if topology.num_stages > 1:
        return topology
    fine = [axis for axis, s in enumerate(spacing) if s / min(spacing) < SAME_SCALE]
    least = (2 if len(fine) > 1 else 3) * SMALLEST_EDGE
    patch = [max(n, least) if axis in fine else n for axis, n in enumerate(topology.patch)]
    return plan_topology(spacing, patch)


def deep_supervision(topology: Topology) -> bool:
    """Return whether there is an intermediate resolution to supervise besides the finest and the coarsest.

    Args:
        topology: The planned topology.

    Returns:
        True for three stages or more.
    """
    return topology.num_stages >= STAGES_FOR_DEEP_SUPERVISION
