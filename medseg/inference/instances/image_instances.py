"""Find the instances of a volume with a 2D instance model, on the grid of the volume's file.

The model finds instances in each slice; `link_slices` links them to instances of the volume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.data.preprocessing.lazy_image import PreparedSlices
from medseg.data.preprocessing.prepare import prepare
from medseg.errors import ConfigError, ModelError, error_message
from medseg.inference.instances.link_slices import link_slices
from medseg.inference.sliding.window_network import WindowNetwork
from medseg.labels.instances import Instances, Mask
from medseg.labels.label_table import Labels
from medseg.model_folder.settings import LinkSettings, SavedModel
from medseg.models.base import Model
from medseg.models.volumetric.slicewise import SliceWise
from medseg.runtime.devices import autocast
from medseg.runtime.memory import format_size
from medseg.runtime.progress import Progress
from medseg.volumes.grid import Grid, reorientation_like, world_positions
from medseg.volumes.volume import Volume

_VOXELS_AT_ONCE = 250_000  # of a map of ids that is resampled, which takes several times its memory
_SLICES_AT_ONCE = 8  # at least, because of the margins
_MARGIN = 2  # slices on both sides, so that the border of the part is not repeated


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
    interpolation; instances without any voxel on `target` are dropped. Some slices are computed at a time.

    Args:
        instances: Instances of a volume on `grid`.
        grid: Grid of the prepared volume.
        target: Grid of the file, of any orientation, extent and spacing.

    Returns:
        Instances on `target`, in the order of the given ones.
    """
    axis = reorientation_like(grid, target)[0].index(2)  # of the target, along the slices of the instances
    voxels = max(1, math.prod(target.shape) // target.shape[axis])
    count = max(_SLICES_AT_ONCE, _VOXELS_AT_ONCE // voxels)
    parts: dict[int, list[tuple[NDArray[np.intp], Mask]]] = {}
    for first in range(0, target.shape[axis], count):
        start = np.zeros(3, np.intp)
        start[axis] = first
        shape = [min(count, size - first) if a == axis else size for a, size in enumerate(target.shape)]
        part = target.cropped(start.tolist(), shape)
        low, high = _slices_behind(part, grid)
        ids = Volume(
            _painted(instances, low, high)[None],
            grid.cropped((0, 0, low), (*grid.shape[:2], high - low)),
            "label",
        )
        resampled = ids.resampled(like=part).data[0]
        for number, box in enumerate(ndimage.find_objects(resampled), start=1):
            if box is not None:
                corner = start + [side.start for side in box]
                parts.setdefault(number, []).append((corner, resampled[box] == number))
    joined = [_joined(parts[number]) for number in sorted(parts)]
    kept = instances.select([number - 1 for number in sorted(parts)])
    return Instances.from_crops(
        target.shape,
        np.array([corner for corner, _ in joined], np.intp),
        [mask for _, mask in joined],
        kept.classes,
        kept.scores,
    )


def _slices_behind(part: Grid, grid: Grid) -> tuple[int, int]:
    """Return the range of slices of a grid from which a part of another grid is interpolated, with a margin."""
    corners = world_positions(np.linalg.inv(grid.affine), part.corners)[:, 2]
    depth = grid.shape[2]
    low = min(max(int(np.floor(corners.min())) - _MARGIN, 0), depth - 1)
    return low, max(min(int(np.ceil(corners.max())) + 1 + _MARGIN, depth), low + 1)


def _painted(instances: Instances, first: int, last: int) -> NDArray[np.int32]:
    """Return the instance map `(X, Y, last - first)` of some slices, with the ids of `Instances.to_map`."""
    result = np.zeros((*instances.shape[:2], last - first), np.int32)
    for index in np.argsort(-instances.scores, kind="stable")[::-1].tolist():
        x, y, z = instances.box(index)
        low, high = max(z.start, first), min(z.stop, last)
        if low < high:
            mask = instances.masks[index][..., low - z.start : high - z.start]
            result[x, y, low - first : high - first][mask] = index + 1
    return result


def _joined(parts: Sequence[tuple[NDArray[np.intp], Mask]]) -> tuple[NDArray[np.intp], Mask]:
    """Return the corner and mask of an instance from those of its parts."""
    low = np.min([corner for corner, _ in parts], axis=0)
    high = np.max([corner + mask.shape for corner, mask in parts], axis=0)
    joined = np.zeros(high - low, bool)
    for corner, mask in parts:
        joined[tuple(slice(a, a + n) for a, n in zip(corner - low, mask.shape, strict=True))] |= mask
    return low, joined


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
        fix = "Use a model of instance_unet*, mask_rcnn*, maskformer* or mask2former*; or evaluate the connected components of its label maps"
        raise ModelError(error_message(saved.model["name"], "finds no instances", fix=fix))


def check_instance_settings(model: Model, saved: SavedModel, limits: Mapping[str, int | None]) -> None:
    """Raise `ConfigError` unless a model can find instances with these settings.

    Args:
        model: The network.
        saved: Settings of its model folder.
        limits: Bytes of the limits of memory, by the name of their setting; None for no limit.
    """
    if saved.predict.engine != "torch":
        raise ConfigError(
            f"engine: found {saved.predict.engine}, expected torch for instances. Predict with engine=torch."
        )
    given = next((name for name, limit in limits.items() if limit is not None), None)
    if given is not None and model.spatial_dims == 2:
        raise ConfigError(
            f"{given}: found {format_size(limits[given] or 0)}, expected no limit for instances of {saved.model['name']}, "
            "which sees whole slices. Leave it out, or use a 3D model."
        )


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
