"""Where nnU-Net's rules lead astray on small datasets, and what medseg does there."""

from __future__ import annotations

from dataclasses import replace

from medseg.planning.nnunet.presets import Preset, feature_map_values
from medseg.planning.nnunet.sizing import NetworkSize
from medseg.planning.nnunet.topology import SAME_SCALE, SMALLEST_EDGE, Topology, plan_topology

_LEAST_BATCH = 2
STAGES_FOR_DEEP_SUPERVISION = 3


def adapted_to_small_data(size: NetworkSize, cases: int, num_labels: int, preset: Preset) -> NetworkSize:
    """A network that can be trained, with a batch no larger than the number of cases.

    Without the cap a preset made for large GPUs puts most of a small dataset into every batch: 178 patches a step
    of 260 cases of a few centimetres.
    """
    topology = with_two_stages(size.topology, size.spacing)
    if topology != size.topology:
        size = replace(
            size, topology=topology, feature_map_values=feature_map_values(topology, num_labels, preset)
        )
    most = max(cases, _LEAST_BATCH)
    return replace(size, batch_size=most, batch_limit="cases") if size.batch_size > most else size


def with_two_stages(topology: Topology, spacing: tuple[float, ...]) -> Topology:
    """A topology with a pooling: a patch too small for one is grown along its fine axes, with padding."""
    if topology.num_stages > 1:
        return topology
    fine = [axis for axis, s in enumerate(spacing) if s / min(spacing) < SAME_SCALE]
    least = (2 if len(fine) > 1 else 3) * SMALLEST_EDGE
    patch = [max(n, least) if axis in fine else n for axis, n in enumerate(topology.patch)]
    return plan_topology(spacing, patch)


def deep_supervision(topology: Topology) -> bool:
    """Whether there is an intermediate resolution to supervise besides the finest and the deepest."""
    return topology.num_stages >= STAGES_FOR_DEEP_SUPERVISION
