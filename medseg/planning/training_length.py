"""The length of a planned training: the steps or the time that was requested, or what suits the device."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.train.settings import seconds_of
from medseg.train.timing.nominal_processor import CORES, GFLOPS_PER_CORE

LONG_STEPS, SHORT_BUDGET = 250_000, "40m"
AIMED_STEPS = 1000
"""Steps that a plan without a GPU allows within its time: twice the fewest, so that a slower machine still takes those."""
_LONG = 20_000  # steps from which nnU-Net's recipe with SGD is used


@dataclass(frozen=True)
class TrainingLength:
    """The length of a training.

    Attributes:
        on_gpu: Whether the training runs on a GPU.
        steps: The requested steps; None if none were requested.
        time: The requested time, such as ``20m``; None if none was requested.
    """

    on_gpu: bool
    steps: int | None = None
    time: str | None = None

    @property
    def is_long(self) -> bool:
        """Whether the training is as long as nnU-Net's recipe assumes: on a GPU, or because of the requested steps."""
        return self.on_gpu if self.steps is None else self.steps >= _LONG

    @property
    def total_steps(self) -> int | None:
        """The number of steps; None if the time decides."""
        return LONG_STEPS if self.steps is None and self.time is None and self.is_long else self.steps

    @property
    def max_time(self) -> str | None:
        """The time budget; None if the steps decide."""
        return None if self.total_steps is not None else self.time or SHORT_BUDGET

    @property
    def step_gflop(self) -> float | None:
        """The arithmetic that a step may take, in billions of operations, so that enough steps fit; None without a limit.

        A short training of requested steps is planned as one of the usual time.
        """
        if self.on_gpu or self.is_long:
            return None
        return seconds_of(self.max_time or SHORT_BUDGET) * CORES * GFLOPS_PER_CORE / AIMED_STEPS
