"""Agreement of volumes against published figures, formulas computed by hand, and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.evaluation.statistics.agreement import Agreement, agreement_cells

# Peak expiratory flow by the Wright meter and by the mini meter, l/min: table 1 of Bland and Altman 1986 (Lancet, first readings).
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def test_the_figures_are_those_of_bland_and_altman() -> None:
    names = [str(number) for number in range(17)]
    found = Agreement.of(np.array(WRIGHT, float), np.array(MINI, float), names)
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    # They rounded the standard deviation to 38.8 and took twice of it; the intervals of the paper are by t of 16 degrees.
    sd = (found.high - found.bias) / 1.96
    assert sd == pytest.approx(38.8, abs=0.05)
    assert (found.bias_interval.low, found.bias_interval.high) == pytest.approx((-22.0, 17.8), abs=0.15)
    # Today's formula of the standard error of a limit, s sqrt(1/n + 1.96^2 / (2 (n - 1))); in 1986 it was s sqrt(3/n) = 16.3.
    assert (found.low_interval.high - found.low) / 2.12 == pytest.approx(16.3, abs=0.3)


def test_cases_of_one_subject_do_not_narrow_the_intervals() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(10, 1, (2, 12))
    alone = Agreement.of(first, second, [str(number) for number in range(12)])
    grouped = Agreement.of(first, second, [str(number // 3) for number in range(12)])
    assert (grouped.bias, grouped.low, grouped.subjects) == (alone.bias, alone.low, 4)
    assert grouped.bias_interval.low < alone.bias_interval.low
    assert grouped.high_interval.high > alone.high_interval.high


@pytest.mark.parametrize("subjects", [["a"], ["a", "a"]])
def test_a_single_subject_has_no_intervals(subjects: list[str]) -> None:
    n = len(subjects)
    found = Agreement.of(np.arange(1.0, n + 1), np.zeros(n), subjects)
    assert np.isnan([found.bias_interval.low, found.low_interval.low]).all()
    assert json.loads(json.dumps(found.to_plain(), allow_nan=False))["bias_interval"] == {
        "low": None,
        "high": None,
    }
    assert agreement_cells({"liver": found})[1][3] == "-"


@pytest.mark.parametrize("subjects", [10, 40])
def test_intervals_cover_bias_and_limits_as_often_as_they_claim(subjects: int) -> None:
    names = [str(number) for number in range(subjects)]
    covered = []
    for differences in np.random.default_rng(1).normal(3, 2, (1000, subjects)):
        found = Agreement.of(differences, np.zeros(subjects), names)
        covered.append((3 in found.bias_interval, 3 + 1.96 * 2 in found.high_interval))
    assert (np.mean(covered, axis=0) > 0.91).all()
    assert (np.mean(covered, axis=0) < 0.975).all()
