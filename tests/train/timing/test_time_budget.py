"""Time budgets, with a simulated clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from medseg.train.optimization.schedule import ScheduleProgress, learning_rate, new_schedule
from medseg.train.settings import TrainSettings
from medseg.train.timing.step_costs import TimeSoFar
from medseg.train.timing.time_budget import PLANS, StepPlanner

Pace = Callable[[int, float], float]


class Simulation:
    """A training whose steps, validations and checkpoints take given seconds."""

    def __init__(self, settings: TrainSettings, pace: Pace, validation: float = 0.0, saving: float = 0.0):
        self.settings, self.pace = settings, pace
        self.validation, self.saving = validation, saving
        self.step, self.spent, self.plans = 0, 0.0, 0
        self.course = new_schedule(settings)
        self.rates: list[float] = []

    def run(self, until: float = math.inf) -> Simulation:
        """Continue to the end, or to a time, as a new process would."""
        pacer = StepPlanner(self.settings, TimeSoFar(self.step, self.spent, self.validation > 0))
        saved = 0.0
        while self.step != self.course.end and self.spent < until:
            self.rates.append(learning_rate(self.settings.optimizer, self.step, self.course))
            self.spent += self.pace(self.step, self.spent)
            self.step += 1
            last = self.step == self.course.end
            validated = self.validation if last or self.step % self.settings.validate_every == 0 else 0.0
            self.spent += validated
            end = pacer.update(self.step, self.spent, validation=validated, saving=saved)
            saved = self.saving if last or self.step % self.settings.save_every == 0 else 0.0
            self.spent += saved
            if end is not None and not last:
                self.course = self.course.replanned(self.step, end)
                self.plans += 1
        return self


def settings_of(**values: object) -> TrainSettings:
    return TrainSettings.parse({"max_time": "10m", "validate_every": 250, "save_every": 250, **values})


def slow_start(step: int, spent: float) -> float:
    return 20.0 if step == 0 else 0.2


def noisy(step: int, spent: float) -> float:
    return 0.2 * random.Random(step).lognormvariate(0, 0.7)


def half_as_fast_in_the_middle(step: int, spent: float) -> float:
    return 0.4 if 200 < spent < 450 else 0.2


def ever_slower(step: int, spent: float) -> float:
    return 0.1 + 0.3 * spent / 600


@pytest.mark.parametrize("pace", [slow_start, noisy, half_as_fast_in_the_middle, ever_slower])
@pytest.mark.parametrize(("validation", "saving"), [(0.0, 0.0), (12.0, 2.0)])
def test_a_budget_is_met_with_a_decayed_rate(pace, validation, saving):
    done = Simulation(settings_of(), pace, validation, saving).run()
    assert done.spent + saving == pytest.approx(600, rel=0.03)  # the model is written too
    assert done.rates[-1] < 0.001 * 0.01**0.1
    assert 3 < done.plans <= len(PLANS)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "wsd"])
def test_the_rate_never_jumps_and_never_rises(schedule):
    settings = settings_of(optimizer={"schedule": schedule})
    done = Simulation(settings, half_as_fast_in_the_middle, 12.0, 2.0).run()
    falls = [before - after for before, after in zip(done.rates, done.rates[1:], strict=False)]
    assert min(falls) >= 0
    if schedule != "wsd":  # which begins its fall as steeply as a root does
        assert max(falls[:-20]) < 0.01 / 400


def test_a_budget_of_few_long_steps_is_met():
    done = Simulation(settings_of(), lambda step, spent: 50.0).run()
    assert done.step == 12
    assert done.spent == 600


def test_the_maximum_number_of_steps_may_come_first():
    done = Simulation(settings_of(steps=100), lambda step, spent: 0.2).run()
    assert done.step == 100
    later = Simulation(settings_of(steps=10_000), lambda step, spent: 0.2).run()
    assert later.step < 10_000
    assert later.spent == pytest.approx(600, rel=0.01)


@pytest.mark.parametrize("until", [2.0, 60.0, 400.0, 599.0])
def test_time_before_an_interruption_counts(until):
    broken = Simulation(settings_of(), lambda step, spent: 0.2, 12.0, 2.0).run(until=until)
    broken.pace = lambda step, spent: 0.3  # it goes on with a slower machine
    assert broken.spent < 601
    done = broken.run()
    assert done.spent == pytest.approx(600, rel=0.03)
    assert done.rates[-1] < 0.0005


def test_a_spent_budget_ends_after_one_more_step():
    late = Simulation(settings_of(), lambda step, spent: 0.2)
    late.step, late.spent, late.course = 900, 700.0, ScheduleProgress(0, 0, 0, 0.0, 1000)
    assert late.run().step == 902  # one to measure, one to end
