"""Number of steps that fit into a time budget, by the speed measured so far."""

from __future__ import annotations

from bisect import bisect_right

from medseg.train.settings import TrainSettings
from medseg.train.timing.time_left import COLD_STEPS, assumed_validation_seconds, times_between

# Shares of the time that this process began with. Plans are frequent at first, when little is known, and at the end,
# when little can still be corrected; between plans the schedule is a straight line.
PLANS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
PATIENCE_FOR_WARM = 0.1


class _MeanTime:
    """The mean time of some steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds


class StepPlanner:
    """Planner of the number of steps of a training with a time budget; it plans repeatedly.

    Args:
        settings: Settings with a time budget.
        validates: Whether there are held-out cases.
        step: Steps done before this process.
        spent: Seconds spent before this process.
        overhead: `overhead` of an earlier process.

    Attributes:
        overhead: Seconds that the last validation and the last checkpoint took; 0 if unknown.
        pace: Seconds per step in the last plan; 0 before the first.
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
        assert settings.max_seconds is not None
        self._settings, self._validates = settings, validates
        self._budget, self._spent, self._began = settings.max_seconds, spent, spent
        left = max(0.0, self._budget - spent)
        self._plans = [spent + share * left for share in PLANS]
        self._warm_by = spent + PATIENCE_FOR_WARM * left
        self._first = step
        self._cold, self._before, self._recent = _MeanTime(), _MeanTime(), _MeanTime()
        self.overhead = overhead
        self.pace = 0.0

    def update(self, step: int, spent: float, *, validation: float, saving: float) -> int | None:
        """Record a step and plan again if it is time to do so.

        Args:
            step: Steps done now.
            spent: Seconds spent in total.
            validation: Seconds of validation since the last call; 0 if there was none.
            saving: Seconds of saving checkpoints since the last call; 0 if there was none.

        Returns:
            Total number of steps, at least one more than `step`; None if the plan stays.
        """
        window = self._cold if step - self._first <= COLD_STEPS else self._recent
        window.add(max(0.0, spent - self._spent - validation - saving))
        self._spent = spent
        self.overhead = (validation or self.overhead[0], saving or self.overhead[1])
        if not self._plans or spent < self._plans[0] or (window is self._cold and spent < self._warm_by):
            return None
        self._plans = [moment for moment in self._plans if moment > spent]
        end = step + max(1, self._fitting(step))
        self._before, self._recent = self._recent, _MeanTime()
        return end if self._settings.steps is None else min(end, self._settings.steps)

    def _fitting(self, step: int) -> int:
        """Return the number of steps that fit into the rest, including validations, checkpoints and the final ones."""
        settings = self._settings
        windows = (self._before, self._recent) if self._recent.steps else (self._cold,)
        self.pace = pace = max(1e-6, sum(w.seconds for w in windows) / sum(w.steps for w in windows))
        validation, saving = self.overhead
        if not self._validates:
            validation = 0.0
        elif not validation:
            validation = assumed_validation_seconds(settings, pace)
        left = self._budget - self._spent - validation - 2 * saving  # the last checkpoint, and the model

        def cost(more: int) -> float:
            last = step + more - 1
            validations = times_between(settings.validate_every, step, last)
            saves = times_between(settings.save_every, step, last)
            return more * pace + validations * validation + saves * saving

        return bisect_right(range(int(max(0.0, left) / pace) + 2), left, key=cost) - 1
