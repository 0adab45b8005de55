"""Calibration figures: equal to values computed by hand and by the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseg.evaluation.calibration.reliability import BINS, brier_score, calibration_error, reliability


def test_the_error_of_a_small_example_computed_by_hand():
    # Bins of width 1/15: 0.95 and 0.97 are in the last one, 0.55 and 0.56 in the ninth.
    p = np.array([0.95, 0.97, 0.55, 0.56])
    right = np.array([True, False, True, True])
    diagram = reliability(p, right, np.ones(4))
    assert [(round(one.low * 15), one.share, one.frequency) for one in diagram] == [
        (8, 0.5, 1.0),
        (14, 0.5, 0.5),
    ]
    assert calibration_error(diagram) == pytest.approx(0.5 * abs(0.555 - 1) + 0.5 * abs(0.96 - 0.5))


def test_the_error_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    p, weight = rng.random(3000), rng.random(3000)
    right = rng.random(3000) < p**2
    expected, edges = 0.0, np.linspace(0, 1, BINS + 1)
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & (p < high)
        gap = np.average(p[inside], weights=weight[inside]) - np.average(
            right[inside], weights=weight[inside]
        )
        expected += weight[inside].sum() / weight.sum() * abs(gap)
    assert calibration_error(reliability(p, right, weight)) == pytest.approx(expected)


def test_probabilities_that_are_frequencies_have_almost_no_error():
    rng = np.random.default_rng(1)
    p = rng.random(200_000)
    assert calibration_error(reliability(p, rng.random(200_000) < p, np.ones(200_000))) < 0.005


def test_certainty_falls_into_the_last_bin():
    (found,) = reliability(np.ones(3), np.array([True, True, False]), np.ones(3))
    assert (found.low, found.high) == pytest.approx((14 / 15, 1))
    assert found.frequency == pytest.approx(2 / 3)


def test_brier_scores_of_classes_and_regions():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    inside = np.array([[True, False, False], [False, True, False]])
    expected = [0.09 + 0.04 + 0.01, 0.01 + 0.81 + 0.64]
    assert brier_score(p, inside, np.ones(2), regions=False) == pytest.approx(np.mean(expected))
    assert brier_score(p, inside, np.array([3.0, 1.0]), regions=False) == pytest.approx(
        (3 * expected[0] + expected[1]) / 4
    )
    assert brier_score(p, inside, np.ones(2), regions=True) == pytest.approx(np.mean(expected) / 3)
