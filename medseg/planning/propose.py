"""The networks that fit a fingerprint, in medseg's order of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any, Literal, TypeVar

from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.data.settings import Axis
from medseg.errors import ConfigError
from medseg.planning.memory_budget import MemoryBudget
from medseg.planning.nnunet.configurations import Configurations, DatasetMeasures, plan_configurations
from medseg.planning.nnunet.presets import Preset, widths
from medseg.planning.nnunet.sizing import BatchLimit, NetworkSize
from medseg.planning.nnunet.small_datasets import adapted_to_small_data, deep_supervision
from medseg.planning.processor_plans import (
    NetworkCost,
    fitting_gib,
    reason_for_2d,
    reason_for_low_resolution,
)
from medseg.planning.training_length import TrainingLength
from medseg.volumes.orientation import AXES

Kind = Literal["2d", "3d", "lowres"]
T = TypeVar("T")
_ACROSS_SINGLE_SLICES = 999.0  # multiple of the pixels' spacing, so that no 3D patch extends across them
_AXES_XYZ: tuple[Axis, Axis, Axis] = (2, 1, 0)  # axis of X, Y, Z for each of z, y, x
_NOISE = 5e-5  # relative error of a spacing from headers in single precision and oblique axes


@dataclass(frozen=True)
class Proposal:
    """A network for a dataset. Axes are X, Y, Z in RAS+; for a 2D network, the two axes in the plane of its slices.

    Attributes:
        kind: 2D, 3D at full resolution, or 3D at a low resolution.
        kind_reason: Why another kind than 3D at full resolution was chosen; empty if it was requested or follows from the data.
        spacing: Target spacing of the three axes in mm.
        slice_axis: The axis across slices.
        patch: Voxels per axis of the network.
        divisor: Number per axis that divides the size of a patch.
        median_shape: Voxels of the median case at this spacing, three axes.
        strides: Strides per stage and axis.
        kernels: Kernel sizes per stage and axis.
        channels: Channels per stage by nnU-Net's rules.
        trained_channels: Channels per stage of the network that is trained.
        blocks: Convolutions or residual blocks per stage.
        batch_size: Patches per step by nnU-Net's rules.
        trained_batch_size: Patches per step of the training.
        batch_limit: What limits the batch size.
        batch_dice: Whether the Dice loss sums overlaps over the batch.
        deep_supervision: Whether intermediate resolutions are supervised.
        covered: Fraction of the median volume that one patch covers.
        preset: The preset.
        budget: The memory budget.
        length: The length of the training.
        forward_flops: Floating-point operations of the forward pass of one patch.
        limited_by_time: Whether the patch was shrunk so that enough steps fit into the time.
        low_resolution: Whether a low-resolution network would see more of a volume.
        instances: Whether the network finds instances, because the dataset has instance maps.
        orientation: Axis codes of the arrays of the network. A network that is fine-tuned may have others than RAS; its axes
            then replace X, Y, Z in all values.
    """

    kind: Kind
    kind_reason: str
    spacing: tuple[float, float, float]
    slice_axis: Axis
    patch: tuple[int, ...]
    divisor: tuple[int, ...]
    median_shape: tuple[float, float, float]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]
    trained_channels: tuple[int, ...]
    blocks: tuple[int, ...]
    batch_size: int
    trained_batch_size: int
    batch_limit: BatchLimit
    batch_dice: bool
    deep_supervision: bool
    covered: float
    preset: Preset
    budget: MemoryBudget
    length: TrainingLength
    forward_flops: int
    limited_by_time: bool
    low_resolution: bool
    instances: bool = False
    orientation: str = AXES

    @property
    def dims(self) -> int:
        """The number of spatial axes, 2 or 3."""
        return len(self.patch)


def propose(
    fingerprint: Fingerprint,
    preset: Preset,
    budget: MemoryBudget,
    kind: Kind | None = None,
    length: TrainingLength | None = None,
) -> Proposal:
    """Plan the network of one kind for a dataset.

    Args:
        fingerprint: Measurements of the dataset.
        preset: Size of the network.
        budget: Memory to fill.
        kind: Kind of network; None chooses 3D, or 2D for a dataset of single slices. For a short training without a GPU, it
            also chooses 2D for few thick slices, and a low resolution where patches would see too little of a volume.
        length: Length of the training; None for the usual one on the device of the budget.

    Returns:
        The planned network.

    Raises:
        ConfigError: The kind does not fit the dataset: 3D for single slices, or a low resolution although the full
            resolution sees enough; or the memory is too small.
    """
    length = length or TrainingLength(budget.on_gpu)
    cost = NetworkCost(preset, length, len(fingerprint.channel_names), fingerprint.num_outputs)
    choice = _choice(fingerprint, cost, budget.gib, kind)
    chosen, planned = choice.kind, choice.planned
    size = _adapted(_sized(planned, chosen, fingerprint.dataset), fingerprint, preset)
    topology = size.topology
    return Proposal(
        kind=chosen,
        kind_reason=choice.reason,
        spacing=_spacing(planned, size, fingerprint),
        slice_axis=_AXES_XYZ[planned.order[0]],
        patch=_in_xyz(size.patch, planned),
        divisor=_in_xyz(topology.divisor, planned),
        median_shape=_median_shape(planned, size, fingerprint),
        strides=tuple(_in_xyz(stride, planned) for stride in topology.strides),
        kernels=tuple(_in_xyz(kernel, planned) for kernel in topology.kernels),
        channels=widths(topology.num_stages, len(size.patch)),
        trained_channels=cost.widths(topology),
        blocks=preset.blocks(topology.num_stages),
        batch_size=size.batch_size,
        trained_batch_size=cost.batch_size(size.batch_size, size.patch),
        batch_limit=size.batch_limit,
        batch_dice=chosen == "2d" or (chosen == "3d" and planned.config_3d_lowres is not None),
        deep_supervision=deep_supervision(topology),
        covered=prod(min(1.0, p / m) for p, m in zip(size.patch, size.median_shape, strict=True)),
        preset=preset,
        budget=budget,
        length=length,
        forward_flops=cost.forward_flops(topology),
        limited_by_time=choice.limited_by_time,
        low_resolution=planned.config_3d_lowres is not None,
    )


@dataclass(frozen=True)
class _Choice:
    """The kind of network, the configurations within memory and time, and what led to them."""

    kind: Kind
    planned: Configurations
    limited_by_time: bool
    reason: str = ""


def _choice(fingerprint: Fingerprint, cost: NetworkCost, gib: float, kind: Kind | None) -> _Choice:
    measures = measures_of(fingerprint)

    def fitted(kind: Kind, memory: float) -> float:
        def size_within(memory: float) -> NetworkSize:
            planned = plan_configurations(measures, cost.preset, memory)
            return _adapted(_sized(planned, kind, fingerprint.dataset), fingerprint, cost.preset)

        return fitting_gib(size_within, memory, cost)

    def chosen(kind: Kind, reason: str = "") -> _Choice:
        # A low resolution is planned where the patch at full resolution, which has to fit the time, too, sees too little.
        memory = fitted(kind, fitted("3d", gib) if kind == "lowres" else gib)
        return _Choice(kind, plan_configurations(measures, cost.preset, memory), memory < gib, reason)

    if kind is not None:
        return chosen(kind)
    full = plan_configurations(measures, cost.preset, gib).config_3d_fullres
    if full is None:
        return chosen("2d")
    short = cost.length.step_gflop is not None
    if short and (reason := reason_for_2d(full.spacing, full.median_shape)):
        return chosen("2d", reason)
    volumes = chosen("3d")
    if short and (reason := reason_for_low_resolution(fingerprint, volumes.planned)):
        return chosen("lowres", reason)
    return volumes


def _adapted(size: NetworkSize, fingerprint: Fingerprint, preset: Preset) -> NetworkSize:
    return adapted_to_small_data(size, len(fingerprint.cases), fingerprint.counted_labels, preset)


def measures_of(fingerprint: Fingerprint) -> DatasetMeasures:
    """Return the planner's input in its axis order z, y, x; single slices get a very large depth.

    Args:
        fingerprint: Measurements of the dataset.

    Returns:
        Spacings and shapes of all cases, and the number of labels.
    """
    # The depth is the same for all cases; otherwise resampling a slice to the depth of another would yield several slices.
    depth = _ACROSS_SINGLE_SLICES * max(max(case.spacing) for case in fingerprint.cases)
    single = [median([case.shape_after_crop[axis] for case in fingerprint.cases]) == 1 for axis in range(3)]
    spacings, shapes = [], []
    for case in fingerprint.cases:
        x, y, z = (depth if single[axis] else case.spacing[axis] for axis in range(3))
        spacings.append((z, y, x))
        shapes.append(case.shape_after_crop[::-1])
    return DatasetMeasures(tuple(spacings), tuple(shapes), fingerprint.counted_labels)


def _sized(planned: Configurations, kind: Kind, dataset: str) -> NetworkSize:
    if kind == "2d":
        return planned.config_2d
    if planned.config_3d_fullres is None:
        raise ConfigError(
            f"dims: {dataset} holds single slices, expected volumes for a 3D plan. Give --dims 2."
        )
    if kind == "3d":
        return planned.config_3d_fullres
    if planned.config_3d_lowres is None:
        raise ConfigError(
            f"lowres: a patch of {dataset} at the full resolution already holds enough of a volume, so there is no low "
            "resolution to plan. Leave --lowres out."
        )
    return planned.config_3d_lowres


def _in_xyz(values: Sequence[T], planned: Configurations) -> tuple[T, ...]:
    """Return per-axis values of the planner, coarsest axis first, as X, Y, Z (or the two axes of a slice)."""
    if len(values) == 3:
        return tuple(values[place] for place in planned.inverse_order)[::-1]
    return tuple(values)[::-1]


def _spacing(
    planned: Configurations, size: NetworkSize, fingerprint: Fingerprint
) -> tuple[float, float, float]:
    """Return the target spacing; across single slices it is the largest of the files, so that each remains a single slice."""
    full = (planned.config_3d_fullres or planned.config_2d).spacing
    across = (
        full[0]
        if len(full) == 3
        else max(case.spacing[_AXES_XYZ[planned.order[0]]] for case in fingerprint.cases)
    )
    values = size.spacing if len(size.spacing) == 3 else (across, *size.spacing)
    x, y, z = (_without_noise(value) for value in _in_xyz(values, planned))
    return (x, y, z)


def _without_noise(value: float) -> float:
    """Return the number with the fewest digits close enough to `value`: 0.99997 becomes 1, 0.7832031 becomes 0.7832."""
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((number for number in shorter if abs(number - value) <= _NOISE * value), value)


def _median_shape(
    planned: Configurations, size: NetworkSize, fingerprint: Fingerprint
) -> tuple[float, float, float]:
    shape: Any = size.median_shape
    if len(shape) == 2:
        across = planned.config_3d_fullres.median_shape[0] if planned.config_3d_fullres else 1.0
        shape = (across, *shape)
    x, y, z = _in_xyz(shape, planned)
    return (float(x), float(y), float(z))
