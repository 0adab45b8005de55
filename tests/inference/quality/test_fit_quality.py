"""Quality models reach their nominal coverage and flagged fraction on cases that they were not fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.inference.quality.fit_quality import fit_quality, measure_quality
from tests.helpers.reference_cases import reference_cases


def test_new_cases_are_covered_and_rarely_flagged():
    model = fit_quality(reference_cases(300))
    new = reference_cases(600, seed=1)
    measured = measure_quality(new, dict.fromkeys(range(5), model))
    assert measured.dice_coverage == pytest.approx(0.9, abs=0.03)
    assert (
        0.87 <= measured.volume_coverage <= 0.97
    )  # half of the labels are absent cysts, which are covered in 98 %
    assert measured.flagged <= 0.06
    assert measured.correlation > 0.8


def test_figures_of_the_file_are_those_of_models_without_the_case():
    cases = reference_cases(90, folds=3)
    expected = {fold: fit_quality([case for case in cases if case.fold != fold]) for fold in range(3)}
    assert fit_quality(cases).measured == measure_quality(cases, expected)


def test_a_spoilt_fold_is_found():
    cases = reference_cases()
    model = fit_quality([case for case in cases if case.fold])
    for case in cases:
        case.features["noise"]["MRI"] *= 6
    measured = measure_quality(cases, dict.fromkeys(range(5), model))
    assert measured.flagged == 1


def test_few_cases_have_no_estimates_and_no_flags():
    model = fit_quality(reference_cases(15))
    assert model.threshold is None
    assert model.dice == {}
    found = model.judge(reference_cases(1)[0].features)
    assert found.flags == ()
    assert (found.label("liver").volume_low_ml, found.label("liver").dice) == (None, None)


def test_labels_that_were_not_annotated_everywhere_are_judged_by_the_other_cases():
    cases = reference_cases()
    partly = [case for case in cases if int(case.case.removeprefix("case_")) < 100]
    for case in partly:
        for values in (case.dice, case.volumes_ml, case.reference_ml):
            values.pop("liver")
    model = fit_quality(cases)
    assert (model.cases, model.dice["liver"].cases, model.volumes["liver"].cases) == (200, 100, 100)


def test_a_reference_without_the_label_lowers_the_lower_end():
    cases = reference_cases()
    for case in cases[:20]:
        case.reference_ml["liver"] = 0.0
        case.dice["liver"] = 0.0
    model = fit_quality(cases)
    assert model.volumes["liver"].low == 0
    assert model.volumes["liver"].high < 1.3


def test_the_volume_interval_is_the_conformal_one():
    cases = reference_cases(39, folds=3)
    logs = np.sort([np.log(case.reference_ml["liver"] / case.volumes_ml["liver"]) for case in cases])
    found = fit_quality(cases).volumes["liver"]
    assert (found.low, found.high) == pytest.approx((np.exp(logs[1]), np.exp(logs[37])), rel=1e-5)
