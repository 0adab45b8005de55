"""What ``medseg train`` says about a finished training."""

import pytest

from medseg.cli.training.train import steps_in_words


@pytest.mark.parametrize(
    ("steps", "found", "advised"),
    [(1, "1 step", True), (249, "249 steps", True), (250, "250 steps", False)],
)
def test_a_time_budget_that_is_enough_for_few_steps_is_reported(steps, found, advised):
    text = steps_in_words(steps, "90s")
    assert text.startswith(f"train.max_time=90s was enough for {found}")
    assert ("Give more time" in text) == advised
