"""Position of each step in the schedule, also if the number of steps is planned or changed during training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medseg.train.settings import OptimizerSettings, TrainSettings

EXTENSION_WARMUP = 0.05
POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class ScheduleProgress:
    """The completed fraction of the schedule at each step: a line through (`anchor`, `done`) to (`end`, 1).

    With a time budget, the total number of steps is estimated again during training. Each new estimate moves the anchor to
    the current step, so that the line changes its slope there but never jumps.

    Attributes:
        begin: First step of this part: 0, or the step at which the run was extended.
        warmup: Steps from `begin` over which the learning rate warms up.
        anchor: Step at which the line begins.
        done: Completed fraction at `anchor`, in [0, 1].
        end: Total number of steps; None with a time budget for which none was estimated yet. The fraction is `done` until then.
    """

    begin: int
    warmup: int
    anchor: int
    done: float
    end: int | None

    def fraction_done(self, step: int) -> float:
        """Return the completed fraction of the schedule after `step` steps, in [0, 1]."""
        if self.end is None or step <= self.anchor:
            return self.done
        return self.done + (1 - self.done) * (step - self.anchor) / (self.end - self.anchor)

    def replanned(self, step: int, end: int) -> ScheduleProgress:
        """Return a schedule that ends at `end` and agrees with this one up to `step`."""
        return replace(self, anchor=step, done=self.fraction_done(step), end=end)


def new_schedule(settings: TrainSettings) -> ScheduleProgress:
    """Return the schedule of a new training."""
    return ScheduleProgress(0, settings.optimizer.warmup_steps, 0, 0.0, settings.steps)


def extended_schedule(settings: TrainSettings, step: int, seconds: float) -> ScheduleProgress:
    """Return the schedule of a finished training that is extended.

    It is the last part of the schedule that the whole training, old and new steps together, would have had. The
    learning rate rises to it from near 0 over a twentieth of the new steps, except in a constant schedule, where it
    never fell.

    Args:
        settings: Settings with the new end.
        step: Steps done before.
        seconds: Seconds spent before.

    Returns:
        The schedule from `step` on. With a time budget, its end is estimated from the speed so far.
    """
    budget = settings.max_seconds
    if budget is None:
        assert settings.steps is not None
        end, done = settings.steps, step / settings.steps
    else:  # at the known speed, until it is measured again
        done = min(seconds / budget, 1.0)
        end = step + max(1, round((budget - seconds) * step / max(seconds, 1e-9)))
    constant = settings.optimizer.schedule == "constant"
    rise = 0 if constant else math.ceil(EXTENSION_WARMUP * (end - step))
    return ScheduleProgress(step, rise, step, done, end)


def learning_rate(settings: OptimizerSettings, step: int, progress: ScheduleProgress) -> float:
    """Return the learning rate of the step that follows `step` finished ones.

    ``wsd`` falls as 1 − √x over its last part, which Hägele et al. 2024 (arXiv:2405.18392) found better than a linear decay.
    """
    rise = min(1.0, (step - progress.begin + 1) / progress.warmup) if progress.warmup else 1.0
    fraction = progress.fraction_done(step)
    falling = max(0.0, 1 - (1 - fraction) / settings.decay_fraction)
    falls = {
        "poly": float((1 - fraction) ** POLY_EXPONENT),
        "cosine": 0.5 * (1 + math.cos(math.pi * fraction)),
        "constant": 1.0,
        "wsd": 1 - math.sqrt(falling),
    }
    return settings.lr * rise * falls[settings.schedule]
