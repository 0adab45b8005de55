from __future__ import annotations

import pytest

from medseg.train.settings import TrainSettings
from medseg.train.timing.step_costs import UNKNOWN, Overhead, StepClock, StepCosts

SETTINGS = TrainSettings.parse(
    {
        "steps": 300,
        "validate_every": 50,
        "save_every": 100,
        "validation_batches": 8,
        "gradient_accumulation": 2,
    }
)


def test_a_zero_keeps_what_was_measured_before() -> None:
    known = UNKNOWN.updated(validation=4.0, saving=0.0).updated(validation=0.0, saving=1.5)
    assert known == Overhead(4.0, 1.5)


def test_the_time_of_a_step_is_without_validations_and_checkpoints() -> None:
    clock = StepClock(100.0)
    assert clock.lap(103.0, validation=2.0, saving=0.5) == pytest.approx(0.5)
    assert clock.lap(103.5, validation=0.0, saving=0.0) == pytest.approx(0.5)
    assert clock.lap(104.0, validation=9.0, saving=0.0) == 0.0


def test_costs_of_the_rest_of_a_training() -> None:
    costs = StepCosts.estimated(SETTINGS, 0.5, Overhead(4.0, 1.0), validates=True)
    # 200 steps, validations after 150, 200 and 250, a checkpoint after 200; that of the last step is a part of the end
    assert costs.until(100, 300) == pytest.approx(200 * 0.5 + 3 * 4.0 + 1.0)
    assert costs.end == pytest.approx(4.0 + 2 * 1.0)


def test_a_validation_that_was_not_measured_is_assumed_and_none_is_counted_without_held_out_cases() -> None:
    assert StepCosts.estimated(SETTINGS, 0.5, UNKNOWN, validates=True).validation == pytest.approx(
        0.5 * 0.25 * 8
    )
    assert StepCosts.estimated(SETTINGS, 0.5, Overhead(4.0, 1.0), validates=False).end == 2.0
