"""The ends of a network: its input channels and its outputs by name, and the tensors that depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.models.base import Model

Kind = Literal["input", "output"]
Build = Callable[[int, int], Model]
"""A function that builds a network for a number of input channels and a number of outputs."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Ends:
    """The names at both ends of a network.

    Attributes:
        inputs: Names of the input channels in order; None if they are not known.
        outputs: Names of the outputs in order, the background first unless they are regions; None if they are not known.
        regions: Whether the outputs are regions, which overlap.
    """

    inputs: tuple[str, ...] | None
    outputs: tuple[str, ...] | None
    regions: bool = False


@dataclass(frozen=True)
class EndAxis:
    """An axis of a tensor whose length depends on the number of input channels or of outputs.

    Attributes:
        kind: Which of the two.
        axis: The axis.
        step: Entries per channel or output, such as 4 for the boxes of a class.
        extra: Entries that belong to none: positive for entries at the end, such as the class "no object", and negative if
            the first outputs have no entries, such as the background of a detector.
    """

    kind: Kind
    axis: int
    step: int
    extra: int


def end_axes(build: Build, in_channels: int, num_outputs: int) -> dict[str, tuple[EndAxis, ...]]:
    """Find the tensors that depend on the channels or the outputs, for any network.

    The network is built without memory for other numbers of them, and the shapes are compared.

    Args:
        build: Function that builds the network.
        in_channels: Number of input channels.
        num_outputs: Number of outputs.

    Returns:
        The axes by name of the tensor; tensors without such an axis are left out.
    """
    with torch.device("meta"):
        shapes = _shapes(build(in_channels, num_outputs))
        others: dict[Kind, tuple[Shapes, int]] = {
            "input": (_shapes(build(in_channels + 1, num_outputs)), in_channels),
            "output": (_shapes(build(in_channels, num_outputs + 1)), num_outputs),
        }
    found: dict[str, tuple[EndAxis, ...]] = {}
    for name, shape in shapes.items():
        axes = []
        for kind, (other, count) in others.items():
            for axis, (size, larger) in enumerate(zip(shape, other.get(name, shape), strict=True)):
                if step := larger - size:
                    axes.append(EndAxis(kind, axis, step, size - step * count))
        if axes:
            found[name] = tuple(axes)
    return found


def _shapes(model: Model) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def input_names(
    channels: tuple[str, ...], slices: SliceSettings, first_stage: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the names of a network's input channels.

    Args:
        channels: Names of the channels of the images.
        slices: How slices become images of a 2D model.
        first_stage: Names of the foreground labels of the first stage of a cascade.

    Returns:
        One name per input channel, in order.

    Examples:
        >>> input_names(("CT",), SliceSettings(channels="neighbours"))
        ('CT, slice -1', 'CT, slice +0', 'CT, slice +1')
    """
    if slices.channels == "neighbours":
        reach = range(-slices.neighbours, slices.neighbours + 1)
        channels = tuple(f"{name}, slice {shift:+d}" for name in channels for shift in reach)
    elif slices.channels == "repeat":
        channels = tuple(f"{name}, copy {n + 1}" for name in channels for n in range(slices.repeats))
    elif slices.channels == "ct_windows":
        channels = tuple(
            f"{name}, window {level:g}/{width:g}" for name in channels for level, width in slices.ct_windows
        )
    return (*channels, *(f"first stage: {label}" for label in first_stage))
