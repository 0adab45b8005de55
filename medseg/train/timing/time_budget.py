"""Number of steps that fit into a time budget, by the speed measured so far."""

from __future__ import annotations

from bisect import bisect_right

from medseg.train.settings import TrainSettings
from medseg.train.timing.step_costs import COLD_STEPS, StepClock, StepCosts, TimeSoFar

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
        so_far: State of the training at the beginning of this process.

    Attributes:
        pace: Seconds per step in the last plan; 0 before the first.
    """

    def __init__(self, settings: TrainSettings, so_far: TimeSoFar) -> None:
        self._settings, self._so_far = settings, so_far
        self._clock, self._overhead = StepClock(so_far.spent), so_far.overhead
        self._plans = [self._moment(share) for share in PLANS]
        self._cold, self._before, self._recent = _MeanTime(), _MeanTime(), _MeanTime()
        self.pace = 0.0

    @property
    def _budget(self) -> float:
        assert self._settings.max_seconds is not None
        return self._settings.max_seconds

    def _moment(self, share: float) -> float:
        """Return the seconds spent when this process has used a share of the time that it began with."""
        return self._so_far.spent + share * max(0.0, self._budget - self._so_far.spent)

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
        window = self._cold if step - self._so_far.step <= COLD_STEPS else self._recent
        window.add(self._clock.lap(spent, validation=validation, saving=saving))
        self._overhead = self._overhead.updated(validation=validation, saving=saving)
        too_early = window is self._cold and spent < self._moment(PATIENCE_FOR_WARM)
        if not self._plans or spent < self._plans[0] or too_early:
            return None
        self._plans = [moment for moment in self._plans if moment > spent]
        end = step + max(1, self._fitting(step))
        self._before, self._recent = self._recent, _MeanTime()
        return end if self._settings.steps is None else min(end, self._settings.steps)

    def _fitting(self, step: int) -> int:
        """Return the number of steps that fit into the rest, including validations, checkpoints and the final ones."""
        windows = (self._before, self._recent) if self._recent.steps else (self._cold,)
        self.pace = max(1e-6, sum(w.seconds for w in windows) / sum(w.steps for w in windows))
        costs = StepCosts.estimated(
            self._settings, self.pace, self._overhead, validates=self._so_far.validates
        )
        left = self._budget - self._clock.spent - costs.end
        most = int(max(0.0, left) / self.pace) + 2
        return bisect_right(range(most), left, key=lambda more: costs.until(step, step + more)) - 1
