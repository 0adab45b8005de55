"""The time that a training still takes, from the steps, validations and checkpoints so far."""

from __future__ import annotations

from medseg.train.settings import TrainSettings

COLD_STEPS = 3
"""Slow first steps of a process: code is compiled, workers start, files are read for the first time."""
FORWARD_SHARE = 0.5
"""Assumed time of a validation batch, relative to a training batch, until a validation was measured."""
_MOST_POINTS = 1024


def times_between(every: int, after: int, until: int) -> int:
    """Return how many multiples of `every` are above `after` and not above `until`.

    >>> times_between(10, 10, 30)
    2
    """
    return max(0, until // every - after // every)


def assumed_validation_seconds(settings: TrainSettings, pace: float) -> float:
    """Return the time that a validation is assumed to take until one was measured.

    Args:
        settings: Settings of the training.
        pace: Seconds per step.

    Returns:
        Seconds.
    """
    return FORWARD_SHARE * pace / settings.gradient_accumulation * settings.validation_batches


class TimeLeft:
    """Estimator of the time that is left; each process begins anew.

    The pace is that of the later half of the steps of this process, without validations and checkpoints, so that slow first
    steps are soon forgotten and a machine that becomes slower is noticed. Validations and checkpoints that are still due are
    added with the mean of those that were measured.

    Args:
        settings: Settings of the training.
        validates: Whether there are held-out cases.
        step: Steps done before this process.
        spent: Seconds spent before this process.
        overhead: Seconds of the last validation and the last checkpoint of an earlier process; 0 if unknown.
    """

    def __init__(
        self,
        settings: TrainSettings,
        *,
        validates: bool,
        step: int,
        spent: float,
        overhead: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._settings, self._validates = settings, validates
        self._first, self._spent = step, spent
        # Seconds of training, without validations and checkpoints, after some of the steps of this process.
        self._points = [(step, 0.0)]
        self._every = 1
        self._earlier = overhead
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
        trained = self._points[-1][1] + max(0.0, spent - self._spent - validation - saving)
        self._spent = spent
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
        left = None if budget is None else max(0.0, budget - (self._spent if spent is None else spent))
        if left is not None and (end is None or self._settings.steps is None):
            return left
        found = None if end is None else self._by_steps(end, self._points[-1][0] if step is None else step)
        return left if found is None else min(found, left) if left is not None else found

    def _by_steps(self, end: int, step: int) -> float | None:
        pace = self._pace()
        if pace is None:
            return None
        settings = self._settings
        saving = _mean(self._saves) or self._earlier[1]
        validation = _mean(self._validations) or self._earlier[0]
        if not self._validates:
            validation = 0.0
        elif not validation:
            validation = assumed_validation_seconds(settings, pace)
        # The last step validates and saves in any case, and the model is exported.
        validations = times_between(settings.validate_every, step, end - 1) + (step < end)
        saves = times_between(settings.save_every, step, end - 1) + 2
        return (end - step) * pace + validations * validation + saves * saving

    def _pace(self) -> float | None:
        """Return the seconds per step of the later half of the steps; None before the second step."""
        last, now = self._points[-1]
        done = last - self._first
        if done < 2:
            return None
        begin = self._first + (max(COLD_STEPS, done // 2) if done > COLD_STEPS else 1)
        step, then = next(point for point in self._points if point[0] >= min(begin, last - 1))
        return (now - then) / (last - step) if last > step else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
