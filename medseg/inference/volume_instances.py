"""Instances of a whole volume, by a 2-D instance model slice by slice, on the grid of the volume's file."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medseg.geometry import Grid
from medseg.inference.linking import LinkSettings, link_slices
from medseg.instances import Instances
from medseg.models.slicewise import SliceWise
from medseg.volume import Volume


def find_instances(model: SliceWise, image: Tensor, settings: LinkSettings | None = None) -> Instances:
    """Find instances in every slice of a prepared volume and link them.

    Args:
        model: a 2-D instance model, slice by slice; in evaluation mode, where the image is.
        image: `(c, X, Y, Z)`.
        settings: of the linking.

    Returns:
        Instances of the volume `(X, Y, Z)`. Their `to_label_map` is a label map of the same pass.

    Raises:
        ModelError: the model finds no instances, or does not take such an image.
    """
    return link_slices(model.slice_instances(image[None]), axis=model.axis, settings=settings)


def onto_grid(instances: Instances, grid: Grid, target: Grid) -> Instances:
    """The instances of a volume on another grid, such as that of its file.

    Overlaps go to the higher score first. Each instance is interpolated linearly, the largest share winning; one that
    no voxel of `target` holds is left out.

    Args:
        instances: of a volume on `grid`.
        grid: of the prepared volume.
        target: of the file; may be turned, larger, finer or coarser.
    """
    ids = Volume(instances.to_map()[None], grid, "label").resampled(like=target).data[0]
    kept = np.unique(ids[ids > 0])
    return Instances.of_map(
        ids,
        {int(k): int(instances.classes[k - 1]) for k in kept},
        {int(k): float(instances.scores[k - 1]) for k in kept},
    )
