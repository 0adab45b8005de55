"""The position of each step in the schedule when plans change and runs are extended."""

from __future__ import annotations

import math

import pytest

from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.train.optimization.schedule import (
    ScheduleProgress,
    extended_schedule,
    learning_rate,
    new_schedule,
)
from medseg.train.settings import DEFAULT_STEPS, OptimizerSettings, TrainSettings, seconds_of


def test_a_plain_training_runs_straight_to_the_end():
    progress = new_schedule(TrainSettings(steps=8))
    assert [progress.fraction_done(step) for step in range(9)] == [step / 8 for step in range(9)]


def test_a_new_plan_bends_the_line_and_never_jumps():
    progress = ScheduleProgress(0, 0, 0, 0.0, None)
    assert progress.fraction_done(7) == 0.0
    progress = progress.replanned(10, 110)
    assert (progress.fraction_done(10), progress.fraction_done(60), progress.fraction_done(110)) == (
        0.0,
        0.5,
        1.0,
    )
    bent = progress.replanned(60, 260)
    assert bent.fraction_done(60) == progress.fraction_done(60)
    assert bent.fraction_done(160) == 0.75
    assert bent.replanned(260, 260).fraction_done(260) == 1.0


def test_wsd_warms_up_stays_and_decays():
    settings = OptimizerSettings(lr=1.0, schedule="wsd", warmup_steps=4, decay_fraction=0.5)
    progress = new_schedule(TrainSettings(steps=16, optimizer=settings))
    rates = [learning_rate(settings, step, progress) for step in range(16)]
    assert rates[:8] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert rates[8:] == pytest.approx([1 - math.sqrt(step / 8) for step in range(8)])


@pytest.mark.parametrize("schedule", ["poly", "cosine", "wsd"])
def test_an_extension_rises_to_the_schedule_of_the_whole_length(schedule):
    settings = OptimizerSettings(lr=1.0, schedule=schedule)
    whole = TrainSettings(steps=1000, optimizer=settings)
    progress = extended_schedule(whole, 600, 60.0)
    assert progress.warmup == 20
    straight = [learning_rate(settings, step, new_schedule(whole)) for step in range(600, 1000)]
    rates = [learning_rate(settings, step, progress) for step in range(600, 1000)]
    assert rates[0] == pytest.approx(straight[0] / 20)
    assert rates[19:] == pytest.approx(straight[19:])


def test_a_constant_rate_is_extended_unchanged():
    settings = TrainSettings(steps=10, optimizer=OptimizerSettings(schedule="constant", warmup_steps=3))
    progress = extended_schedule(settings, 6, 1.0)
    assert {learning_rate(settings.optimizer, step, progress) for step in range(6, 10)} == {0.01}


def test_an_extension_by_time_starts_with_the_previous_speed():
    progress = extended_schedule(TrainSettings(max_time="300s"), 400, 100.0)
    assert (progress.begin, progress.anchor, progress.done, progress.end) == (400, 400, 1 / 3, 1200)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("1.5h", 5400), ("0.5m", 30), ("100h", 360_000)]
)
def test_durations_are_parsed(text, seconds):
    assert seconds_of(text) == seconds
    assert TrainSettings(max_time=text).max_seconds == seconds


@pytest.mark.parametrize("text", ["30", "m", "-3m", "0s", "0.0h", "3 m", "1h30m", "3d", "nanm", "", "١m"])
def test_invalid_durations_raise_a_clear_error(text):
    with pytest.raises(ConfigError, match=r"train\.max_time: .*unit s, m or h, such as 30m"):
        Experiment.parse({"train": {"max_time": text}})


def test_steps_have_a_default_only_without_a_budget():
    assert TrainSettings().steps == DEFAULT_STEPS
    assert TrainSettings(max_time="1h").steps is None
    both = TrainSettings(max_time="1h", steps=7)
    assert (both.steps, both.max_time) == (7, "1h")
    for settings in (TrainSettings(), TrainSettings(max_time="1h"), both):
        assert TrainSettings.parse(settings.to_plain()) == settings


def test_patience_needs_a_validation():
    with pytest.raises(ConfigError, match="early_stopping_patience: found validation_batches 0"):
        TrainSettings.parse({"early_stopping_patience": 3, "validation_batches": 0})
