"""The time that a training still takes, from the steps, validations and checkpoints so far."""

from __future__ import annotations

from medseg.train.settings import TrainSettings
from medseg.train.timing.step_costs import COLD_STEPS, Overhead, StepClock, StepCosts, TimeSoFar

_MOST_POINTS = 1024


class TimeLeft:
    """Estimator of the time that is left; each process begins anew.

    The pace is that of the later half of the steps of this process, without validations and checkpoints, so that slow first
    steps are soon forgotten and a machine that becomes slower is noticed. Validations and checkpoints that are still due are
    added with the mean of those that were measured.

    Args:
        settings: Settings of the training.
        so_far: State of the training at the beginning of this process.
    """

    def __init__(self, settings: TrainSettings, so_far: TimeSoFar) -> None:
        self._settings, self._so_far = settings, so_far
        self._clock = StepClock(so_far.spent)
        # Seconds of training, without validations and checkpoints, after some of the steps of this process.
        self._points = [(so_far.step, 0.0)]
        self._every = 1
        self._validations: list[float] = []
        self._saves: list[float] = []

    def update(self, step: int, spent: float, *, validation: float, saving: float) -> None:
        """Record a step.

        Args:
            step: Steps done now.
            spent: Seconds spent in total.
            validation: Seconds of validation since the last call; 0 if there was none.
            saving: Seconds of saving checkpoints since the last call; 0 if there was none.
        """
        if validation:
            self._validations.append(validation)
        if saving:
            self._saves.append(saving)
        trained = self._points[-1][1] + self._clock.lap(spent, validation=validation, saving=saving)
        if len(self._points) > 1 and self._points[-1][0] % self._every:
            self._points[-1] = (step, trained)  # only the last point may be between two that are kept
        else:
            self._points.append((step, trained))
        if len(self._points) > _MOST_POINTS:
            self._every *= 2
            self._points = [p for p in self._points[:-1] if p[0] % self._every == 0] + self._points[-1:]

    def seconds(
        self, end: int | None, *, step: int | None = None, spent: float | None = None
    ) -> float | None:
        """Return the seconds until the training ends, its last validation and its exports included.

        Args:
            end: Total number of steps; None before the first plan of a time budget.
            step: Steps done, with their validation; None for those of the last update.
            spent: Seconds spent; None for those of the last update.

        Returns:
            The seconds; None before the second step of this process, unless there is a time budget.
        """
        budget = self._settings.max_seconds
        left = None if budget is None else max(0.0, budget - (self._clock.spent if spent is None else spent))
        if left is not None and (end is None or self._settings.steps is None):
            return left
        found = None if end is None else self._by_steps(end, self._points[-1][0] if step is None else step)
        return left if found is None else min(found, left) if left is not None else found

    def _by_steps(self, end: int, step: int) -> float | None:
        pace = self._pace()
        if pace is None:
            return None
        means = Overhead(_mean(self._validations), _mean(self._saves))
        overhead = self._so_far.overhead.updated(validation=means.validation, saving=means.saving)
        costs = StepCosts.estimated(self._settings, pace, overhead, validates=self._so_far.validates)
        # The last step validates and saves in any case, and the model is exported.
        return costs.until(step, end) + (costs.end if step < end else costs.end - costs.validation)

    def _pace(self) -> float | None:
        """Return the seconds per step of the later half of the steps; None before the second step."""
        last, now = self._points[-1]
        done = last - self._so_far.step
        if done < 2:
            return None
        begin = self._so_far.step + (max(COLD_STEPS, done // 2) if done > COLD_STEPS else 1)
        step, then = next(point for point in self._points if point[0] >= min(begin, last - 1))
        return (now - then) / (last - step) if last > step else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
