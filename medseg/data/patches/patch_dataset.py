"""Random training patches from prepared cases.

Randomness is stateless: the generator of each sample is made from (seed, stream, index). Workers, ranks and
a resumed run therefore see the same data.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from medseg.data.patches.augment import augment, draw_affine
from medseg.data.patches.case_store import StoredCase
from medseg.data.patches.first_stage_channels import FirstStageChannels
from medseg.data.settings import Augmentation
from medseg.data.slices2d.radiological_view import RadiologicalView
from medseg.data.slices2d.slice_channels import SliceChannels
from medseg.errors import DataError

Sample = dict[str, Tensor]
_EVEN_WITHIN = 1e-6  # rounding of shares that are equal in exact arithmetic


def sample_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of one sample; equal arguments give equal draws on every machine."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class PatchDataset(Dataset[Sample]):
    """Patches by index; sample `index` belongs to step ``index // batch_size``.

    Cases are drawn uniformly with replacement. The last ``round(foreground · batch_size)`` patches of a batch
    are centred on a voxel of a foreground class or region drawn uniformly among those of the case (nnU-Net's rule);
    their cases are drawn among those that have foreground. Where that is no patch of a batch, some batches have one, so
    that the share is kept all the same. Of a dataset with an ignore label, all other patches are centred on a voxel
    that somebody looked at.

    Args:
        cases: prepared cases.
        size: patch size in voxels, three numbers. A 2-D patch has size 1 along the slice axis, and samples
            come without that axis.
        length: number of samples.
        batch_size: samples a step.
        seed: of the experiment.
        stream: name of the sequence, so that training and validation differ.
        foreground: share of patches that must hold foreground, in [0, 1].
        augmentation: settings, or None for none.
        slice_axis: the axis of size 1 for 2-D patches, None for 3-D.
        channels: how the channels of 2-D patches are made; as they are in the case unless given.
        display: how 2-D patches are turned; not at all unless given.
        first_stage: the earlier stage of a cascade, of which every case must hold a label map.

    Samples are ``{"image": (c, *spatial) float32, "label": (1, *spatial) int64}``. If every case has an instance map,
    they hold ``"instances": (1, *spatial) int64`` besides: the ids of the case, 0 where the label is background. With an
    earlier stage, the image's last channels are 1 where its label map has label 1, 2, ... and 0 elsewhere.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        *,
        size: tuple[int, ...],
        length: int,
        batch_size: int,
        seed: int,
        stream: str,
        foreground: float = 0.33,
        augmentation: Augmentation | None = None,
        slice_axis: int | None = None,
        channels: SliceChannels | None = None,
        display: RadiologicalView | None = None,
        first_stage: FirstStageChannels | None = None,
    ) -> None:
        if not cases:
            raise DataError(f"{stream}: found no case, expected at least one. Check the split.")
        thick = channels is not None and channels.settings.thickness > 1
        self.cases = list(cases)
        self.with_foreground = [case for case in cases if case.has_foreground] or self.cases
        self.placeable_size = (
            size  # where a patch may lie; neighbours of its slice may lie outside of the volume
        )
        self.size = _thickened(size, channels) if channels is not None else size
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.augmentation = augmentation if not thick else _in_plane(augmentation, slice_axis)
        self.slice_axis = slice_axis
        self.channels, self.display, self._thick = channels, display, thick
        self.first_stage = first_stage
        self.has_instances = all(case.has_instances for case in cases)
        self.foreground = foreground
        self.first_foreground_index = round(batch_size * (1 - foreground))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = sample_generator(self.seed, self.stream, index)
        forced = self._is_foreground_patch(index)
        cases = self.with_foreground if forced else self.cases
        case = cases[int(rng.integers(len(cases)))]
        centre = self._centre(case, forced, rng)
        matrix = self._draw_matrix(rng)
        image, maps = extract_patch(case, centre, self.size, matrix)
        if self.has_instances:
            maps = torch.cat([maps, extract_instances(case, centre, self.size, matrix)])
        if self.first_stage is not None:
            maps = torch.cat([maps, extract_first_stage(case, centre, self.size, matrix)])
        if self.slice_axis is not None and not self._thick:
            image, maps = image.squeeze(self.slice_axis + 1), maps.squeeze(self.slice_axis + 1)
        if self.augmentation is not None:
            image, maps = augment(image, maps, self.augmentation, rng)
        if self.first_stage is not None:
            image, maps = self.first_stage.appended(image, maps[-1:], rng), maps[:-1]
        return _sample(*self._as_seen(image, maps))

    def _is_foreground_patch(self, index: int) -> bool:
        """Whether this patch is to hold foreground."""
        if 1 < self.batch_size > self.first_foreground_index:
            return index % self.batch_size >= self.first_foreground_index
        return int((index + 1) * self.foreground) > int(index * self.foreground)

    def _as_seen(self, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Patches as the model is to see them: with its channels, thick ones as their middle slice, and turned."""
        if self.channels is not None and self._thick:
            image = self.channels.from_thick_slice(image)
            maps = maps.select(self.channels.axis + 1, self.channels.settings.neighbours)
        elif self.channels is not None:
            image = self.channels.from_values(image[None])[0]
        if self.display is not None:
            image, maps = self.display.turn(image), self.display.turn(maps)
        return image.contiguous(), maps.contiguous()

    def _centre(self, case: StoredCase, forced: bool, rng: np.random.Generator) -> NDArray[np.intp]:
        """Voxel at index ``size // 2`` of the patch."""
        if forced and case.has_foreground:
            numbers = [number for number in sorted(case.class_locations) if number > 0]
            voxels = case.class_locations[numbers[int(rng.integers(len(numbers)))]]
            return np.asarray(voxels[int(rng.integers(len(voxels)))], dtype=np.intp)
        if 0 in case.class_locations:  # there is an ignore label
            looked_at = case.class_locations[0]
            return np.asarray(looked_at[int(rng.integers(len(looked_at)))], dtype=np.intp)
        low = [
            min(0, extent - length) for extent, length in zip(case.shape, self.placeable_size, strict=True)
        ]
        high = [
            max(0, extent - length) for extent, length in zip(case.shape, self.placeable_size, strict=True)
        ]
        start = rng.integers(low, high, endpoint=True)
        return np.asarray(start + np.array(self.placeable_size) // 2, dtype=np.intp)

    def _draw_matrix(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        if self.augmentation is None:
            return None
        across = self.augmentation.dummy_2d_axis if self.slice_axis is None else self.slice_axis
        if across is None:
            return draw_affine(self.augmentation, 3, rng)
        in_plane = draw_affine(self.augmentation, 2, rng)
        if in_plane is None:
            return None
        axes = [axis for axis in range(3) if axis != across]
        matrix = np.eye(3)
        matrix[np.ix_(axes, axes)] = in_plane
        return matrix


def _thickened(size: tuple[int, ...], channels: SliceChannels) -> tuple[int, ...]:
    return tuple(
        channels.settings.thickness if axis == channels.axis else length for axis, length in enumerate(size)
    )


def _in_plane(augmentation: Augmentation | None, slice_axis: int | None) -> Augmentation | None:
    """The augmentation of a 2-D patch for the box of slices around it: its mirror axes among the box's three."""
    if augmentation is None:
        return None
    axes = [axis for axis in range(3) if axis != slice_axis]
    chosen = (0, 1) if augmentation.mirror_axes is None else augmentation.mirror_axes
    return augmentation.replace(mirror_axes=[axes[axis] for axis in chosen if axis < len(axes)])


def extract_patch(
    case: StoredCase,
    centre: NDArray[np.intp],
    size: tuple[int, ...],
    matrix: NDArray[np.float64] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut a patch, turned and scaled by `matrix` in the same read; outside the case is 0.

    Args:
        case: prepared case.
        centre: voxel `(3,)` that comes to index ``size // 2``.
        size: patch size `(3,)`.
        matrix: `(3, 3)` from patch offsets to source offsets, both in voxels; None for a plain crop.

    Returns:
        Image `(c, *size)` float32, interpolated linearly; label `(1, *size)`, each class interpolated by
        itself and the largest share winning.
    """
    start, box, grid = _patch_frame(centre, size, matrix)
    image = torch.from_numpy(_box(case.image, start, box).astype(np.float32, copy=False))
    label = _box(case.label, start, box)
    if grid is None:
        return image, torch.from_numpy(label.astype(np.int64))
    return _sampled(image, grid), _sampled_label(label, grid)


def extract_instances(
    case: StoredCase,
    centre: NDArray[np.intp],
    size: tuple[int, ...],
    matrix: NDArray[np.float64] | None = None,
) -> Tensor:
    """Cut the instance map as `cut` does: ids `(1, *size)` int64, each interpolated by itself, the largest share
    winning.
    """
    start, box, grid = _patch_frame(centre, size, matrix)
    ids = torch.from_numpy(_box(case.instances, start, box).astype(np.int64))
    return ids if grid is None else sampled_ids(ids, grid)


def extract_first_stage(
    case: StoredCase,
    centre: NDArray[np.intp],
    size: tuple[int, ...],
    matrix: NDArray[np.float64] | None = None,
) -> Tensor:
    """Cut the label map of an earlier stage as `cut` does the label: class indices `(1, *size)` int64."""
    start, box, grid = _patch_frame(centre, size, matrix)
    classes = _box(case.first_stage, start, box)
    return torch.from_numpy(classes.astype(np.int64)) if grid is None else _sampled_label(classes, grid)


def _patch_frame(
    centre: NDArray[np.intp], size: tuple[int, ...], matrix: NDArray[np.float64] | None
) -> tuple[NDArray[np.intp], tuple[int, ...], Tensor | None]:
    """Start and size of the box that a patch needs, and where in it the patch is sampled; None for the box itself."""
    if matrix is None:
        return centre - np.array(size) // 2, size, None
    offsets = np.array(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij")).reshape(3, 8)
    middle = np.array(size)[:, None] // 2
    reach = matrix @ (offsets - middle)
    start = np.floor(reach.min(axis=1)).astype(np.intp) + centre
    end = np.ceil(reach.max(axis=1)).astype(np.intp) + centre + 1
    box = tuple(int(n) for n in end - start)
    return start, box, _sampling_grid(matrix, size, box, centre - start)


def _sample(image: Tensor, maps: Tensor) -> Sample:
    """The sample of an image and its maps: the label, and perhaps the instance ids."""
    label = maps[:1].long()
    if len(maps) == 1:
        return {"image": image, "label": label}
    return {"image": image, "label": label, "instances": maps[1:].long() * (label > 0)}


def _sampling_grid(
    matrix: NDArray[np.float64], size: tuple[int, ...], box: tuple[int, ...], centre: NDArray[np.intp]
) -> Tensor:
    """Grid `(1, *size, 3)` for ``grid_sample``, whose coordinates run z, y, x in [−1, 1].

    Made of sums of one term an axis, whose rounding, unlike a matrix product's, depends on nothing else.
    """
    grid = np.empty((*size, 3), dtype=np.float32)
    offsets = [np.arange(n) - n // 2 for n in size]
    for axis in range(3):
        x, y, z = (2 / box[axis] * matrix[axis, source] * offsets[source] for source in range(3))
        plane = x[:, None] + y + (2 * centre[axis] + 1) / box[axis] - 1
        np.add(plane[..., None].astype(np.float32), z.astype(np.float32), out=grid[..., 2 - axis])
    return torch.from_numpy(grid[None])


def _sampled(image: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]


def _sampled_label(label: NDArray[np.generic], grid: Tensor) -> Tensor:
    counts = np.bincount(label.ravel())
    foreground = torch.from_numpy(np.flatnonzero(counts[1:]) + 1)
    if not len(foreground):
        return torch.zeros((1, *grid.shape[1:4]), dtype=torch.int64)
    # Unsigned 16-bit indices know no comparison in torch.
    indicators = torch.from_numpy(label.astype(np.int32)) == foreground.view(-1, 1, 1, 1)
    shares = _sampled(indicators.float(), grid)
    # Background's share is what is left, and it includes everything outside the case.
    best = 1 - shares.sum(0)
    result = torch.zeros(best.shape, dtype=torch.int64)
    for value, share in zip(
        foreground, shares, strict=True
    ):  # an arg-max over the classes is ten times slower
        result = torch.where(share > best, value, result)
        best = torch.maximum(share, best)
    return result[None]


def sampled_ids(ids: Tensor, grid: Tensor) -> Tensor:
    """Interpolate instance ids linearly, each by itself, the largest share winning; the smaller id of equals.

    The eight voxels around a sample hold at most eight ids, so the cost does not grow with the number of ids.

    Args:
        ids: `(1, X, Y, Z)` int64; outside is 0.
        grid: `(1, *size, 3)` as for ``grid_sample``.

    Returns:
        `(1, *size)` int64.
    """
    padded = functional.pad(ids[0], (2,) * 6)  # so that every voxel around a sample is there
    positions = [((grid[0, ..., 2 - a] + 1) * n - 1) / 2 for a, n in enumerate(ids.shape[1:])]
    lows = [p.floor().long().add(2).clamp(0, n + 2) for p, n in zip(positions, ids.shape[1:], strict=True)]
    result = padded[tuple(lows)]
    mixed = ~_uniform(padded)[tuple(lows)]
    fractions = [p[mixed] - p[mixed].floor() for p in positions]
    result[mixed] = _largest_share(padded, [low[mixed] for low in lows], fractions)
    return result[None]


def _uniform(ids: Tensor) -> Tensor:
    """Whether the voxels of each box of 2 x 2 x 2 from a voxel on are of one id, `(X - 1, Y - 1, Z - 1)`."""
    same = ids[:-1] == ids[1:]
    same = same[:, :-1] & same[:, 1:] & (ids[:-1, :-1] == ids[:-1, 1:])
    return same[..., :-1] & same[..., 1:] & (ids[:-1, :-1, :-1] == ids[:-1, :-1, 1:])


def _largest_share(ids: Tensor, lows: list[Tensor], fractions: list[Tensor]) -> Tensor:
    """Id with the largest linear weight among the eight voxels from `lows` on, for samples `(s,)` between them."""
    found, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        found.append(ids[tuple(low + step for low, step in zip(lows, corner, strict=True))])
        x, y, z = (part if step else 1 - part for part, step in zip(fractions, corner, strict=True))
        weights.append(x * y * z)
    # In rising order, so that of equal shares the smaller id stays.
    corners, order = torch.stack(found).sort(0)
    shares = torch.stack(weights).gather(0, order)
    winner, best = corners[0], torch.full(corners.shape[1:], -1.0)
    for candidate in corners:
        share = (shares * (corners == candidate)).sum(0)
        wins = share > best + _EVEN_WITHIN
        winner, best = torch.where(wins, candidate, winner), torch.where(wins, share, best)
    return winner


def _box(array: NDArray[np.generic], start: NDArray[np.intp], size: Sequence[int]) -> NDArray[np.generic]:
    """Copy of `(C, *size)` from `start`, which may lie outside; missing voxels are 0."""
    low = np.maximum(start, 0)
    high = np.minimum(start + np.array(size), array.shape[1:])
    result = np.zeros((array.shape[0], *size), dtype=array.dtype)
    if (high <= low).any():
        return result
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    result[(slice(None), *target)] = array[(slice(None), *source)]
    return result
