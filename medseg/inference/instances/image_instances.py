"""Find the instances of a volume with a 2D instance model, on the grid of the volume's file.

The model finds instances in each slice; `link_slices` links them to instances of the volume.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.prepare import prepare
from medseg.errors import ModelError, error_message
from medseg.inference.instances.link_slices import link_slices
from medseg.inference.sliding.window_network import WindowNetwork
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import LinkSettings, SavedModel
from medseg.models.base import Model
from medseg.models.volumetric.slicewise import SliceWise
from medseg.runtime.devices import autocast
from medseg.runtime.progress import Progress
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def find_instances(
    model: SliceWise,
    image: Tensor | PreparedSlices,
    settings: LinkSettings | None = None,
    *,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Instances:
    """Find instances in every slice of a prepared volume and link them.

    Args:
        model: A 2D instance model applied slice by slice, in evaluation mode.
        image: Image `(c, X, Y, Z)`, or slices prepared on request for a model whose slice axis is the last one.
        settings: Link settings; None for the defaults.
        device: Device of the model, to which some slices at a time are copied; None if the image is there.
        progress: Called with (done, total, "slice").

    Returns:
        Instances of the volume `(X, Y, Z)`. Their `to_label_map` is the label map of the same prediction.

    Raises:
        ModelError: The model does not find instances, or does not accept such an image.
    """
    depth = image.shape[1 + model.axis] if isinstance(image, Tensor) else image.shape[1]
    count = model.batch_size or depth
    margin = model.view.settings.thickness // 2
    slices: list[Instances] = []
    for first in range(0, depth, count):
        last = min(first + count, depth)
        low, high = max(first - margin, 0), min(last + margin, depth)
        part = _slices(image, model.axis, low, high)
        part = part if device is None else part.to(device)
        slices += model.slice_instances(part[None])[first - low : last - low]
        if progress is not None:
            progress(last, depth, "slice")
    return link_slices(slices, axis=model.axis, settings=settings)


def _slices(image: Tensor | PreparedSlices, axis: int, first: int, last: int) -> Tensor:
    """Return the slices from `first` to before `last` along `axis`, as a volume `(c, X, Y, Z)`."""
    if isinstance(image, Tensor):
        return image.narrow(1 + axis, first, last - first)
    if axis != 2:
        raise ValueError(
            f"slice axis: found {axis}, expected 2, because slices prepared on request are perpendicular to axis 2"
        )
    return torch.from_numpy(image.slices(first, last)).movedim(1, 3)


def onto_grid(instances: Instances, grid: Grid, target: Grid) -> Instances:
    """Return the instances of a volume on another grid, such as that of its file.

    Overlaps are resolved first, in favour of the higher score. A voxel gets the instance with the largest share in linear
    interpolation; instances without any voxel on `target` are dropped.

    Args:
        instances: Instances of a volume on `grid`.
        grid: Grid of the prepared volume.
        target: Grid of the file, of any orientation, extent and spacing.

    Returns:
        Instances on `target`, in the order of the given ones.
    """
    ids = Volume(instances.to_map()[None], grid, "label").resampled(like=target).data[0]
    kept = np.unique(ids[ids > 0])
    return Instances.from_map(
        ids,
        {int(k): int(instances.classes[k - 1]) for k in kept},
        {int(k): float(instances.scores[k - 1]) for k in kept},
    )


def without_covered(instances: Instances, least: float = 0.5) -> Instances:
    """Return the instances that are not mostly covered by instances with higher scores.

    In a map of ids each voxel belongs to one instance. Instances that are mostly covered would leave slivers there, which
    count as instances of their own (overlaps are resolved as in Kirillov et al. 2019, panoptic segmentation).

    Args:
        instances: The instances.
        least: Minimum share of an instance that must be left.

    Returns:
        The remaining instances with their full masks, in the given order.
    """
    taken = np.zeros(instances.shape, dtype=bool)
    kept = []
    for index in np.argsort(-instances.scores, kind="stable").tolist():
        mask, place = instances.masks[index], instances.box(index)
        free = mask & ~taken[place]
        if free.any() and np.count_nonzero(free) >= least * np.count_nonzero(mask):
            taken[place] |= mask
            kept.append(index)
    return instances.select(sorted(kept))


def require_instance_model(model: Model, saved: SavedModel, labels: Labels) -> None:
    """Raise `ModelError` unless the model finds instances of labels.

    Args:
        model: The network.
        saved: Settings of its model folder.
        labels: Its labels.
    """
    if labels.regions:
        fix = "Predict label maps, without instances"
        raise ModelError(
            error_message(saved.name, "predicts regions, which may overlap, not instances", fix=fix)
        )
    if not callable(getattr(model, "instances", None)):
        member = getattr(model, "members", [None])[0]
        if callable(getattr(member, "instances", None)):
            fix = "Use one of its members, such as RUN/fold_0 of a cross-validation"
            raise ModelError(error_message(f"{saved.name}: ensemble", "finds no instances", fix=fix))
        fix = "Use a model of mask_rcnn*, maskformer* or mask2former*; or evaluate the connected components of its label maps"
        raise ModelError(error_message(saved.model["name"], "finds no instances", fix=fix))


def image_instances(
    network: WindowNetwork,
    saved: SavedModel,
    labels: Labels,
    volume: Volume,
    *,
    where: str = "image",
    progress: Progress | None = None,
) -> Instances:
    """Find the instances of an image, slice by slice, linked across slices, on the image's own grid.

    The model sees whole slices; windows, mirroring and `slices.planes` apply to label maps only.

    Args:
        network: A 2D instance model on its device.
        saved: Settings of its model folder.
        labels: Its labels.
        volume: Image `(C, X, Y, Z)` as read from its file; a natural image is one slice.
        where: File or case, for messages.
        progress: Called with (done, total, "slice").

    Returns:
        Instances of the volume `(X, Y, Z)` whose score is at least ``predict.min_instance_score``, without overlap;
        instances that are covered by better ones by more than half are dropped.

    Raises:
        ModelError: The model does not find instances.
        DataError: The image does not fit the model.
    """
    require_instance_model(network.model, saved, labels)
    settings = saved.predict
    prepared = prepare(volume, saved.preprocessing, where=where)
    model = SliceWise(network.model, saved.slice_view, batch_size=saved.slices.batch_size)
    image = prepared.slices if model.axis == 2 else torch.from_numpy(prepared.image.data)
    with torch.inference_mode(), autocast(network.dtype, network.device):
        found = find_instances(model, image, settings.link, device=network.device, progress=progress)
    kept = found.select(np.flatnonzero(found.scores >= settings.min_instance_score))
    return onto_grid(without_covered(kept), prepared.grid, volume.grid)
