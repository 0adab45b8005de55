"""Steps that fit into a time budget, in words: before, during and after a training."""

from __future__ import annotations

import pytest
import torch

from medseg.train.settings import TrainSettings
from medseg.train.timing.nominal_processor import GFLOPS_PER_CORE, LEAST_STEPS, step_seconds
from medseg.train.timing.step_estimate import (
    StepEstimate,
    estimate_steps,
    fitting_in_words,
    forward_flops,
    measured_in_words,
    trained_in_words,
)


@pytest.mark.parametrize(
    ("steps", "found", "advised"),
    [(1, "1 step", True), (499, "499 steps", True), (500, "500 steps", False)],
)
def test_a_time_budget_that_is_enough_for_few_steps_is_reported(steps, found, advised):
    text = trained_in_words(steps, "90s")
    assert text.startswith(f"train.max_time=90s was enough for {found}")
    assert ("Give more time" in text) == advised


def test_what_fits_is_told_with_the_time_that_enough_steps_take():
    assert fitting_in_words(500, 2.0, "20m") == "about 500 steps fit into train.max_time=20m"
    few = fitting_in_words(15, 6.0, "90s")
    assert few.startswith(
        "about 15 steps fit into train.max_time=90s, too few to learn much: 500 take about 50 min. "
    )
    assert "patch.size" in few
    assert fitting_in_words(1, 60.0, "90s").startswith("about 1 step fit")
    assert measured_in_words(15, 6.0, "90s") == f"measured: 6 s per step; {few}"
    assert LEAST_STEPS == 500


def test_an_estimate_names_the_processor_that_it_assumes():
    estimate = StepEstimate(6.5, 2, "90s")
    assert estimate.steps == 13
    assert str(estimate).startswith(
        "expected: about 6.5 s per step on 2 cores of 40 GFLOP/s; about 13 steps fit into"
    )
    assert StepEstimate(1000.0, 1, "90s").steps == 1


def test_a_step_takes_three_forward_passes_of_the_counted_arithmetic():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    before = conv.weight.clone()
    assert forward_flops(conv, 3, (8, 6)) == 2 * 27 * 5 * 48
    expected = 3 * 2 * 27 * 5 * 48 * 4 / (2 * GFLOPS_PER_CORE * 1e9)
    settings = TrainSettings(max_time="90s", batch_size=2, gradient_accumulation=2)
    estimate = estimate_steps(conv, settings, (8, 6), cores=2)
    assert estimate == StepEstimate(pytest.approx(expected), 2, "90s")
    assert step_seconds(2 * 27 * 5 * 48, 4, 1) == pytest.approx(2 * expected)
    assert torch.equal(conv.weight, before)
    assert conv.weight.device.type == "cpu"
    assert estimate_steps(conv, TrainSettings(steps=5), (8, 6)) is None


def test_a_model_whose_forward_pass_needs_values_has_no_estimate():
    class Picky(torch.nn.Conv2d):
        def forward(self, image):
            return super().forward(image) if image.sum() > 0 else image

    picky = Picky(1, 1, 1)
    assert forward_flops(picky, 1, (4, 4)) is None
    assert estimate_steps(picky, TrainSettings(max_time="90s"), (4, 4)) is None
