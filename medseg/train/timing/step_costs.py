"""What the steps, validations and checkpoints of a training take, by which budgets are planned and the time left is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from medseg.train.settings import TrainSettings

COLD_STEPS = 3
"""Slow first steps of a process: code is compiled, workers start, files are read for the first time."""
FORWARD_SHARE = 0.5
"""Assumed time of a validation batch, relative to a training batch, until a validation was measured."""


class Overhead(NamedTuple):
    """The seconds of a validation and of a checkpoint; 0 if unknown.

    Attributes:
        validation: Seconds of a validation.
        saving: Seconds of a checkpoint.
    """

    validation: float = 0.0
    saving: float = 0.0

    def updated(self, *, validation: float, saving: float) -> Overhead:
        """Return the overhead with new measurements; 0 keeps an earlier one.

        Args:
            validation: Seconds of a validation; 0 if there was none.
            saving: Seconds of a checkpoint; 0 if there was none.

        Returns:
            The last known seconds of both.
        """
        return Overhead(validation or self.validation, saving or self.saving)


UNKNOWN = Overhead()
"""The overhead before the first validation and the first checkpoint."""


@dataclass(frozen=True)
class TimeSoFar:
    """The state of a training when a process begins or continues it.

    Attributes:
        step: Steps done.
        spent: Seconds spent.
        validates: Whether there are held-out cases.
        overhead: What the last validation and the last checkpoint of an earlier process took.
    """

    step: int
    spent: float
    validates: bool
    overhead: Overhead = UNKNOWN


class StepClock:
    """The time of steps, without validations and checkpoints.

    Args:
        spent: Seconds spent before the first step.

    Attributes:
        spent: Seconds spent until the last step.
    """

    def __init__(self, spent: float) -> None:
        self.spent = spent

    def lap(self, spent: float, *, validation: float, saving: float) -> float:
        """Return the seconds that a step took by itself.

        Args:
            spent: Seconds spent until now.
            validation: Seconds of validation since the last call.
            saving: Seconds of saving checkpoints since the last call.

        Returns:
            Seconds, not negative.
        """
        seconds = max(0.0, spent - self.spent - validation - saving)
        self.spent = spent
        return seconds


@dataclass(frozen=True)
class StepCosts:
    """What the rest of a training takes.

    Attributes:
        settings: Settings of the training, which say when it validates and saves.
        pace: Seconds per step.
        validation: Seconds per validation; 0 without held-out cases.
        saving: Seconds per checkpoint, and of the export of the model.
    """

    settings: TrainSettings
    pace: float
    validation: float
    saving: float

    @classmethod
    def estimated(
        cls, settings: TrainSettings, pace: float, overhead: Overhead, *, validates: bool
    ) -> StepCosts:
        """Return the costs, where a validation that was not measured yet is assumed to take a share of its steps.

        Args:
            settings: Settings of the training.
            pace: Seconds per step.
            overhead: What was measured.
            validates: Whether there are held-out cases.

        Returns:
            The costs.
        """
        assumed = FORWARD_SHARE * pace / settings.gradient_accumulation * settings.validation_batches
        validation = (overhead.validation or assumed) if validates else 0.0
        return cls(settings, pace, validation, overhead.saving)

    @property
    def end(self) -> float:
        """The seconds of the last validation, the last checkpoint and the model that is exported."""
        return self.validation + 2 * self.saving

    def until(self, step: int, end: int) -> float:
        """Return the seconds of the steps after `step` up to `end`, with all that is due before the last of them has ended.

        Args:
            step: Steps done.
            end: Total number of steps.

        Returns:
            Seconds, without `end`.
        """
        validations = times_between(self.settings.validate_every, step, end - 1)
        saves = times_between(self.settings.save_every, step, end - 1)
        return (end - step) * self.pace + validations * self.validation + saves * self.saving


def times_between(every: int, after: int, until: int) -> int:
    """Return how many multiples of `every` are above `after` and not above `until`.

    >>> times_between(10, 10, 30)
    2
    """
    return max(0, until // every - after // every)
