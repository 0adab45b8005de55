"""How many steps fit into a time budget: estimated before the first step, and measured in the first steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medseg.runtime.formatting import format_duration, pluralise
from medseg.train.settings import TrainSettings, seconds_of
from medseg.train.timing.nominal_processor import LEAST_STEPS, nominal_cores_in_words, step_seconds

if TYPE_CHECKING:
    from torch import nn

    from medseg.models.base import Model


@dataclass(frozen=True)
class StepEstimate:
    """The time of a step before the first one, from the arithmetic of the network.

    Attributes:
        seconds: Seconds per step.
        cores: Number of nominal cores that compute it.
        max_time: The time budget, as in the settings.
    """

    seconds: float
    cores: int
    max_time: str

    @property
    def steps(self) -> int:
        """The number of steps that fit into the budget, at least 1."""
        return max(1, int(seconds_of(self.max_time) / self.seconds))

    def __str__(self) -> str:
        step = f"expected: about {format_duration(self.seconds)} per step on {nominal_cores_in_words(self.cores)}"
        return f"{step}; {fitting_in_words(self.steps, self.seconds, self.max_time)}"


def fitting_in_words(steps: int, seconds: float, max_time: str) -> str:
    """Return how many steps fit into a time budget, with advice if they are too few.

    Args:
        steps: Number of steps that fit.
        seconds: Seconds per step.
        max_time: The time budget, as in the settings.

    Returns:
        A sentence without its first capital, or several.
    """
    found = f"about {steps:,} step{'s' if steps != 1 else ''} fit into train.max_time={max_time}"
    if steps >= LEAST_STEPS:
        return found
    return (
        f"{found}, too few to learn much: {LEAST_STEPS} take about {format_duration(LEAST_STEPS * seconds)}. Give more time, or take "
        "a smaller patch (patch.size), batch (train.batch_size) or network (model.channels)"
    )


def measured_in_words(steps: int, seconds: float, max_time: str) -> str:
    """Return how many steps fit into a time budget by the first steps of a training.

    Args:
        steps: The planned number of steps.
        seconds: Measured seconds per step.
        max_time: The time budget, as in the settings.

    Returns:
        A sentence, or several.
    """
    return f"measured: {format_duration(seconds)} per step; {fitting_in_words(steps, seconds, max_time)}"


def trained_in_words(steps: int, max_time: str) -> str:
    """Return how many steps were trained within a time budget, with advice if they were too few to learn much.

    Args:
        steps: Steps of the finished training.
        max_time: The time budget, as in the settings.

    Returns:
        One sentence, or two.
    """
    found = f"train.max_time={max_time} was enough for {pluralise(steps, 'step')}"
    if steps >= LEAST_STEPS:
        return found
    return (
        f"{found}, fewer than the {LEAST_STEPS} from which much is learnt. Give more time, or take smaller patches or a smaller "
        "network."
    )


def estimate_steps(
    model: Model, settings: TrainSettings, size: Sequence[int], cores: int | None = None
) -> StepEstimate | None:
    """Return the steps that are expected to fit into the time budget of a training.

    Args:
        model: The model, which is not changed.
        settings: Settings of the training.
        size: Voxels per axis of a patch.
        cores: Number of cores; None for the threads that torch uses.

    Returns:
        The estimate; None without a budget, on a GPU, for compiled models, and for models whose forward pass needs values,
        such as those that find instances.
    """
    import torch

    on_cpu = next(model.parameters()).device.type == "cpu"
    if settings.max_time is None or settings.compile or not on_cpu:
        return None
    flops = forward_flops(model, model.in_channels, size)
    if not flops:
        return None
    cores = cores or torch.get_num_threads()
    patches = settings.batch_size * settings.gradient_accumulation
    return StepEstimate(step_seconds(flops, patches, cores), cores, settings.max_time)


def forward_flops(model: nn.Module, channels: int, patch: Sequence[int]) -> int | None:
    """Return the floating-point operations of the forward pass of one patch; nothing is computed.

    Args:
        model: The model, which is not changed.
        channels: Number of its input channels.
        patch: Voxels per axis of the patch.

    Returns:
        The number of operations of convolutions and matrix products, two per multiplication; None for models whose forward
        pass needs values.
    """
    import torch
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    state = {
        name: tensor.detach().to("meta")
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
    }
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            functional_call(model, state, (torch.empty(1, channels, *patch),))
    except Exception:
        return None  # layers that look at values cannot run on the meta device
    return int(counter.get_total_flops())
