"""Find the instances of a volume with a network that predicts centres, in the same rolling slab as label maps.

The sliding windows yield the blended maps of the network block by block. `VoteDecoder` takes each block and holds only the
slices that may still change, so the memory does not grow with the length of the volume, and instances that cross the
blocks are whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medseg.errors import warn_once
from medseg.inference.instances.image_instances import onto_grid
from medseg.inference.sliding.engine import Engine
from medseg.inference.sliding.labelling import FiniteCheck
from medseg.inference.sliding.memory_plan import MemoryPlan
from medseg.inference.sliding.prepared_prediction import Note, PreparedPrediction
from medseg.inference.sliding.window_network import SLAB_FIRST, WindowNetwork
from medseg.inference.sliding.windows import window_slices
from medseg.labels.instance_votes import VoteDecoder
from medseg.labels.instances import Instances
from medseg.model_folder.settings import SavedModel
from medseg.models.base import Model
from medseg.models.unet.instance_unet import InstanceUNet, voting_slices
from medseg.runtime.progress import Progress

_BYTES_PER_WAITING_VOXEL = (
    40  # of a foreground voxel whose instance is not known yet, and of the density of votes
)


class CentreMaps(Model):
    """The maps of an instance U-Net as the output of a model, so that windows of them are predicted like logits.

    Args:
        model: The instance U-Net.
    """

    def __init__(self, model: InstanceUNet) -> None:
        super().__init__(
            spatial_dims=model.spatial_dims,
            in_channels=model.in_channels,
            num_classes=model.num_classes + 1 + model.spatial_dims,
            divisor=model.divisor,
        )
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, distance and offsets (n k+1+d *spatial) of an image (n c *spatial)."""
        return self.model.maps(image)


def centre_engine(engine: Engine, model: InstanceUNet, saved: SavedModel) -> Engine:
    """Return the engine that predicts the maps of an instance U-Net, with the windows and the memory of another engine.

    Args:
        engine: The engine that predicts the label maps of the network.
        model: The network.
        saved: Settings of its model folder.

    Returns:
        The engine, for `volume_instances`.
    """
    background = (*engine.rule.background_logits, *[0.0] * (1 + model.spatial_dims))
    network = WindowNetwork(CentreMaps(model), saved, engine.network.device)
    sliding = replace(engine.sliding, background=background)
    return replace(engine, network=network, sliding=sliding)


def volume_instances(
    engine: Engine,
    model: InstanceUNet,
    prepared: PreparedPrediction,
    *,
    min_score: float = 0.0,
    progress: Progress | None = None,
    note: Note = warn_once,
) -> Instances:
    """Find the instances of a prepared volume.

    Args:
        engine: The engine that `centre_engine` returned.
        model: The network.
        prepared: The volume, after the first stage of a cascade.
        min_score: Smallest score of an instance, the mean probability of foreground of its voxels.
        progress: Called with (done, total, "window").
        note: Called with a sentence if the volume had to be predicted in another way than planned.

    Returns:
        Instances `(X, Y, Z)` on the grid of the file, in the order of their centres along the last axis of the network.

    Raises:
        ConfigError: The allowed memory is too small.
        ResourceError: The memory did not suffice in any layout.
        ModelError: The network returned NaN or infinity.
    """
    assert prepared.geometry is not None
    grid = prepared.geometry.grid
    spacing = [grid.spacing[axis] for axis in SLAB_FIRST]
    run = partial(_found, engine, model, prepared, spacing, progress)
    waiting = engine.sliding.window[0] * math.prod(prepared.image.shape[2:]) * _BYTES_PER_WAITING_VOXEL
    plan = partial(engine.plan, prepared, whole_planes=True, more=waiting)
    found = _in_axes_of_network(engine.attempt(prepared, run, plan, note))
    kept = found.select(np.flatnonzero(found.scores >= min_score))
    return onto_grid(kept, grid, prepared.target.volume.grid)


def _found(
    engine: Engine,
    model: InstanceUNet,
    prepared: PreparedPrediction,
    spacing: Sequence[float],
    progress: Progress | None,
    plan: MemoryPlan,
) -> Instances:
    """Return the instances `(Z, X, Y)` of a volume, predicted in one layout."""
    sliding = replace(engine.windows_for(prepared, plan), mirror_axes=())
    network = partial(_mirrored_maps, engine.network, model.num_classes, engine.sliding.mirror_axes)
    length = model.typical_length(spacing)
    decoder = VoteDecoder(prepared.image.shape[1:], spacing, length, reach=-(-sliding.window[0] // 2))
    check = FiniteCheck()
    for block in window_slices(prepared.image, network, sliding, progress=progress):
        check.add(block)
        decoder.add(voting_slices(block.movedim(-1, 0), model.num_classes, SLAB_FIRST))
    check.finish()
    return decoder.finish()


@torch.inference_mode()
def _mirrored_maps(network: WindowNetwork, num_classes: int, axes: Sequence[int], batch: Tensor) -> Tensor:
    """Return the mean of the maps over all combinations of flips; offsets along a flipped axis change their sign.

    Args:
        network: The network.
        num_classes: Number of classes, background included.
        axes: Axes of Z, X, Y that are flipped.
        batch: Windows `(n, c, Z, X, Y)`.

    Returns:
        Maps `(n, k+1+d, Z, X, Y)` float32.
    """
    subsets = [s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)]
    total: Tensor | None = None
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        maps = network(batch.flip(dims) if dims else batch).float()
        if dims:
            maps = maps.flip(dims)
            for axis in subset:
                maps[:, num_classes + 1 + SLAB_FIRST[axis]].neg_()
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total / len(subsets)


def _in_axes_of_network(found: Instances) -> Instances:
    """Return instances `(X, Y, Z)` of instances `(Z, X, Y)`."""
    x, y, z = (SLAB_FIRST.index(axis) for axis in range(3))
    return Instances.from_crops(
        [found.shape[axis] for axis in (x, y, z)],
        found.starts[:, (x, y, z)],
        [mask.transpose(x, y, z) for mask in found.masks],
        found.classes,
        found.scores,
    )
