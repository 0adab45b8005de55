"""What a plan without a GPU decides by time, where nnU-Net decides by memory: the patch, and 2D or a low resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from statistics import median

from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.errors import ConfigError
from medseg.planning.nnunet.configurations import Configurations
from medseg.planning.nnunet.presets import LEAST_BATCH, Preset, widths
from medseg.planning.nnunet.sizing import NetworkSize
from medseg.planning.nnunet.small_datasets import STAGES_FOR_DEEP_SUPERVISION
from medseg.planning.nnunet.spacing import THICK_SLICES
from medseg.planning.nnunet.topology import SMALLEST_EDGE, Topology
from medseg.planning.training_length import TrainingLength
from medseg.runtime.formatting import percent
from medseg.train.timing.nominal_processor import BACKWARD_COST

FEW_SLICES = 32
"""Slices up to which a volume of thick slices is planned in 2D: a 3D network can hardly pool across them."""
_FEW_VOXELS = 100  # of a label at a low resolution, below which the full resolution is planned
_BATCH_VOXELS = 1 << 16  # of a batch, where a step takes long
_LEAST_PATCH = {2: 64**2, 3: 32**3}  # voxels, below which a patch sees too little
_NARROWER = 2  # divisor of the channels: a quarter of the arithmetic


@dataclass(frozen=True)
class NetworkCost:
    """The arithmetic of the networks of a plan.

    Attributes:
        preset: Plain or residual network.
        length: Length of the training, which decides about widths and batches.
        channels: Number of input channels.
        outputs: Number of output channels.
    """

    preset: Preset
    length: TrainingLength
    channels: int
    outputs: int

    def widths(self, topology: Topology) -> tuple[int, ...]:
        """Return the channels per stage: nnU-Net's, or half of them for a short training without a GPU."""
        planned = widths(topology.num_stages, len(topology.patch))
        short = self.length.step_gflop is not None
        return tuple(width // _NARROWER for width in planned) if short else planned

    def batch_size(self, planned: int, patch: Sequence[int]) -> int:
        """Return the patches per step: the planned ones or, without a GPU, as few as make steps short."""
        return planned if self.length.on_gpu else short_batch_size(planned, patch)

    def forward_flops(self, topology: Topology) -> int:
        """Return the floating-point operations of the forward pass of one patch, two per multiplication."""
        channels, sizes = self.widths(topology), topology.sizes()
        kernels = [prod(kernel) for kernel in topology.kernels]
        blocks = self.preset.blocks(topology.num_stages)
        heads = _num_heads(topology.num_stages)
        total, width = 0, self.channels
        if self.preset.residual:
            total += prod(sizes[0]) * kernels[0] * width * channels[0]  # the stem
            width = channels[0]
        for out, size, kernel, count in zip(channels, sizes, kernels, blocks, strict=True):
            convs = 2 * count if self.preset.residual else count
            shortcut = width * out if self.preset.residual and width != out else 0
            total += prod(size) * (kernel * (width * out + (convs - 1) * out * out) + shortcut)
            width = out
        for stage in range(topology.num_stages - 1):
            out, voxels = channels[stage], prod(sizes[stage])
            total += voxels * channels[stage + 1] * out  # each voxel is upsampled from one coarser voxel
            convs = 2 * out * out + (self.preset.decoder_blocks - 1) * out * out
            total += voxels * kernels[stage] * convs
            total += voxels * out * self.outputs * (stage < heads)
        return 2 * total

    def step_gflop(self, size: NetworkSize) -> float:
        """Return the arithmetic of a training step, in billions of operations."""
        batch = self.batch_size(size.batch_size, size.patch)
        return self.forward_flops(size.topology) * (1 + BACKWARD_COST) * batch / 1e9


def short_batch_size(planned: int, patch: Sequence[int]) -> int:
    """Return the patches per step of a training without a GPU.

    Args:
        planned: The most patches per step.
        patch: Voxels per axis of a patch.

    Returns:
        As few as make steps short, but 2 if that many were planned.

    Examples:
        >>> short_batch_size(9, (40, 56, 40)), short_batch_size(9, (24, 24, 24))
        (2, 4)
    """
    return min(planned, max(LEAST_BATCH, _BATCH_VOXELS // prod(patch)))


def patch_within_volumes(
    patch: Sequence[int], shape: Sequence[float], divisor: Sequence[int]
) -> tuple[int, ...]:
    """Return a patch without the parts that would mostly be padding.

    Args:
        patch: Voxels per axis of the patch of a trained network.
        shape: Voxels of the median volume or slice.
        divisor: Number per axis that divides the size of a patch.

    Returns:
        The multiples of the divisor that are nearest to the volume, where these are smaller. The coarsest feature map keeps
        as many voxels per axis as nnU-Net requires.

    Examples:
        >>> patch_within_volumes((40, 56, 40), (35, 50, 36), (8, 8, 8))
        (32, 48, 32)
    """
    return tuple(
        min(own, n * max(SMALLEST_EDGE, ceil(size / n - 0.5)))
        for own, size, n in zip(patch, shape, divisor, strict=True)
    )


def _num_heads(num_stages: int) -> int:
    """Return the number of resolutions that are supervised, as `supervision_weights` of the U-Net counts them."""
    levels = num_stages - 1
    return 1 if num_stages < STAGES_FOR_DEEP_SUPERVISION else levels if levels < 3 else levels - 1


def fitting_gib(size_within: Callable[[float], NetworkSize], gib: float, cost: NetworkCost) -> float:
    """Return the memory within which nnU-Net's rules plan a network whose steps are short enough.

    A patch is shrunk by the rules for too little memory, which keep its proportions and its topology sensible.

    Args:
        size_within: Plans the network for an amount of memory in GiB.
        gib: The memory that may be used.
        cost: The arithmetic of networks, and the length of the training.

    Returns:
        GiB, at most `gib`. Patches are not shrunk below 64² or 32³ voxels.

    Raises:
        ConfigError: The memory itself does not fit the smallest network.
    """
    size, limit = size_within(gib), cost.length.step_gflop
    while limit is not None and (needed := cost.step_gflop(size)) > limit:
        less = min(gib, _gib_of(size, cost.preset)) * max(0.5, min(0.98, limit / needed))
        try:
            smaller = size_within(less)
        except ConfigError:  # there is no smaller patch
            break
        if prod(smaller.patch) < _LEAST_PATCH[len(smaller.patch)]:
            break
        size, gib = smaller, less
    return gib


def _gib_of(size: NetworkSize, preset: Preset) -> float:
    """Return the memory that holds the smallest batch of a network."""
    dims = len(size.patch)
    full = preset.maps_within(dims, None)
    return preset.memory_gib * size.feature_map_values * preset.least_share(dims) / full


def reason_for_2d(spacing: Sequence[float], median_shape: Sequence[float]) -> str | None:
    """Return why a dataset is planned in 2D for a short training, or None if it is not.

    Args:
        spacing: Target spacing in mm, that across slices first.
        median_shape: Voxels of the median case at this spacing, in the same order.

    Returns:
        A phrase for the comment of the plan.
    """
    ratio, slices = spacing[0] / max(spacing[1:]), median_shape[0]
    if ratio <= THICK_SLICES or slices > FEW_SLICES:
        return None
    return (
        f"2D, because slices are thick ({ratio:.1f} times as thick as pixels are wide, more than {THICK_SLICES:g}) and few "
        f"(median {slices:g}, at most {FEW_SLICES}): many more steps fit into the time than in 3D, and there is little to "
        "see across slices. --dims 3 plans it in 3D"
    )


def reason_for_low_resolution(fingerprint: Fingerprint, planned: Configurations) -> str | None:
    """Return why a dataset is planned at a low resolution for a short training, or None if it is not.

    Args:
        fingerprint: Measurements of the dataset.
        planned: The networks whose steps are short enough.

    Returns:
        A phrase for the comment of the plan; None also if a label would be left with too few voxels.
    """
    full, low = planned.config_3d_fullres, planned.config_3d_lowres
    if full is None or low is None:
        return None
    kept = prod(low.median_shape) / prod(full.median_shape)
    if _smallest_label(fingerprint) * kept < _FEW_VOXELS:
        return None
    seen = prod(min(1.0, p / m) for p, m in zip(full.patch, full.median_shape, strict=True))
    return (
        f"3D at a low resolution, because a patch at full resolution whose steps are short enough covers only {percent(seen)} "
        "of the median volume. --dims 3 plans the full resolution"
    )


def _smallest_label(fingerprint: Fingerprint) -> float:
    """Return the voxels of the smallest label, in the median case that has it."""
    found = (
        [case.label_voxels[value] for case in fingerprint.cases if value in case.label_voxels]
        for value in fingerprint.foreground_labels.values()
    )
    return min((median(voxels) for voxels in found if voxels), default=0.0)
