"""The time that is left, with a simulated clock."""

from __future__ import annotations

import random

import pytest

from medseg.train.settings import TrainSettings
from medseg.train.timing.step_costs import UNKNOWN, Overhead, TimeSoFar, times_between
from medseg.train.timing.time_left import TimeLeft

BEGIN = TimeSoFar(0, 0.0, validates=False)


def simulated(
    settings: TrainSettings, pace, *, validation=0.0, saving=0.0, export=0.0, start=0, known=UNKNOWN
):
    """Per step the estimate and what was really left, for a training whose steps take `pace(step)` seconds."""
    assert settings.steps is not None
    estimator = TimeLeft(settings, TimeSoFar(start, 100.0 * start, validation > 0, known))
    spent, moments, saved = 100.0 * start, [], 0.0
    for step in range(start + 1, settings.steps + 1):
        last = step == settings.steps
        validated = validation if last or step % settings.validate_every == 0 else 0.0
        spent += pace(step) + validated
        estimator.update(step, spent, validation=validated, saving=saved)
        moments.append((step, spent, estimator.seconds(settings.steps)))
        saved = saving if last or step % settings.save_every == 0 else 0.0
        spent += saved
    ended = spent + export
    return {step: (left, ended - at) for step, at, left in moments}


def settings_of(**values: object) -> TrainSettings:
    return TrainSettings.parse({"steps": 300, "validate_every": 50, "save_every": 50, **values})


def slow_start(step: int) -> float:
    return 60.0 if step == 1 else 5.0 if step <= 3 else 0.5


def noisy(step: int) -> float:
    return 0.5 * random.Random(step).lognormvariate(0, 0.5)


@pytest.mark.parametrize("pace", [lambda step: 0.5, slow_start, noisy])
@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, {}),
        ({}, {"validation": 4.0, "saving": 1.0, "export": 1.0}),
        ({"validate_every": 10, "save_every": 10}, {"validation": 8.0, "saving": 2.0, "export": 2.0}),
        ({"steps": 2000, "validate_every": 250, "save_every": 250}, {"validation": 3.0, "saving": 0.3}),
    ],
)
def test_within_a_fifth_after_a_tenth_of_the_run(pace, options, times) -> None:
    settings = settings_of(**options)
    found = simulated(settings, pace, **times)
    for share in (0.1, 0.2, 0.5, 0.9):
        left, really = found[int(share * settings.steps)]
        assert left == pytest.approx(really, rel=0.2), share


def test_after_the_last_validation_only_the_files_are_left() -> None:
    found = simulated(settings_of(), lambda step: 0.5, validation=4.0, saving=1.0, export=1.0)
    assert found[300] == (2.0, 2.0)  # the checkpoint and the model
    assert found[299][0] == pytest.approx(0.5 + 4.0 + 2.0)


def test_a_slow_first_step_alone_gives_no_estimate() -> None:
    found = simulated(settings_of(), slow_start)
    assert found[1][0] is None
    assert found[2][0] is not None
    assert found[6][0] == pytest.approx(found[6][1], rel=0.05)  # the three slow steps are left out


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    found = simulated(settings_of(), lambda step: 0.5 if step <= 100 else 1.5)
    left, really = found[200]
    assert left == pytest.approx(really, rel=0.05)


def test_validations_that_are_due_are_counted_before_the_first_was_measured() -> None:
    settings = settings_of(validate_every=100, save_every=300, validation_batches=8)
    left, really = simulated(settings, lambda step: 0.5, validation=8 * 0.25)[30]
    assert left == pytest.approx(really, rel=0.01)
    without = simulated(settings, lambda step: 0.5)[30][0]
    assert left - without == pytest.approx(3 * 2.0)


def test_a_resumed_training_knows_validations_and_checkpoints_of_before() -> None:
    found = simulated(
        settings_of(steps=120),
        slow_start_after(60),
        validation=30.0,
        saving=10.0,
        start=60,
        known=Overhead(30.0, 10.0),
    )
    left, really = found[72]
    assert left == pytest.approx(really, rel=0.1)


def slow_start_after(first: int):
    return lambda step: slow_start(step - first)


def test_a_time_budget_is_what_is_left_unless_the_steps_end_first() -> None:
    budget = TrainSettings.parse({"max_time": "10m"})
    estimator = TimeLeft(budget, BEGIN)
    estimator.update(1, 90.0, validation=0.0, saving=0.0)
    assert estimator.seconds(None) == 510
    assert estimator.seconds(700) == 510
    both = TimeLeft(TrainSettings.parse({"max_time": "10m", "steps": 20}), BEGIN)
    for step in range(1, 11):
        both.update(step, 2.0 * step, validation=0.0, saving=0.0)
    assert both.seconds(20) == pytest.approx(20.0)
    assert both.seconds(None) == 580


def test_long_trainings_keep_few_points() -> None:
    estimator = TimeLeft(settings_of(steps=50_000), TimeSoFar(7, 0.0, validates=False))
    for step in range(8, 20_000):
        estimator.update(step, 0.5 * (step - 7), validation=0.0, saving=0.0)
    assert len(estimator._points) <= 1025
    assert estimator.seconds(50_000) == pytest.approx(0.5 * (50_000 - 19_999), rel=1e-6)


def test_multiples_between_two_steps() -> None:
    assert [times_between(5, 4, until) for until in (4, 5, 9, 10)] == [0, 1, 1, 2]
    assert times_between(5, 10, 9) == 0
