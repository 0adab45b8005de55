"""Where in its schedule each step of a training stands, when the number of steps is planned or changed on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medseg.train.settings import OptimizerSettings, TrainSettings

EXTENSION_WARMUP = 0.05
POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class ScheduleProgress:
    """The share of the schedule that is done at each step: a line through (`anchor`, `done`) to (`end`, 1).

    A new plan moves the anchor to the present step, so the line bends there and never jumps.

    Attributes:
        begin: first step of this leg: 0, or where the run was extended.
        rise: steps from `begin` over which the learning rate warms up.
        anchor: step from which the line runs. done: share at that step, in [0, 1].
        end: steps in all; None while a budget has no plan yet, when the share stays at `done`.
    """

    begin: int
    warmup: int
    anchor: int
    done: float
    end: int | None

    def fraction_done(self, step: int) -> float:
        """Share of the schedule that lies behind after `step` steps, in [0, 1]."""
        if self.end is None or step <= self.anchor:
            return self.done
        return self.done + (1 - self.done) * (step - self.anchor) / (self.end - self.anchor)

    def replanned(self, step: int, end: int) -> ScheduleProgress:
        """The course that bends at `step` to end at `end`."""
        return replace(self, anchor=step, done=self.fraction_done(step), end=end)


def new_schedule(settings: TrainSettings) -> ScheduleProgress:
    """The course of a new training."""
    return ScheduleProgress(0, settings.optimizer.warmup_steps, 0, 0.0, settings.steps)


def extended_schedule(settings: TrainSettings, step: int, seconds: float) -> ScheduleProgress:
    """The course of a finished training that goes on.

    It is the last part of the schedule that the whole training, old and new steps together, would have had. The rate
    rises to it from near 0 over a twentieth of the new steps, but not in a constant schedule, where it never fell.

    Args:
        settings: with the new end. step, seconds: done before.
    """
    budget = settings.max_seconds
    if budget is None:
        assert settings.steps is not None
        end, done = settings.steps, step / settings.steps
    else:  # at the speed known, until it is measured again
        done = min(seconds / budget, 1.0)
        end = step + max(1, round((budget - seconds) * step / max(seconds, 1e-9)))
    constant = settings.optimizer.schedule == "constant"
    rise = 0 if constant else math.ceil(EXTENSION_WARMUP * (end - step))
    return ScheduleProgress(step, rise, step, done, end)


def learning_rate(settings: OptimizerSettings, step: int, course: ScheduleProgress) -> float:
    """Rate of the step that follows `step` finished ones.

    ``wsd`` falls as 1 − √x over its last part, which Hägele et al. 2024 (arXiv:2405.18392) found better than a line.
    """
    rise = min(1.0, (step - course.begin + 1) / course.warmup) if course.warmup else 1.0
    share = course.fraction_done(step)
    falling = max(0.0, 1 - (1 - share) / settings.decay_fraction)
    falls = {
        "poly": float((1 - share) ** POLY_EXPONENT),
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "constant": 1.0,
        "wsd": 1 - math.sqrt(falling),
    }
    return settings.lr * rise * falls[settings.schedule]
