"""Cross-fitted calibration: each fold with the temperatures of the others, and one temperature unless several are better."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from medseg.evaluation.calibration import cross_fitted as module
from medseg.evaluation.calibration.cross_fitted import cross_fitted
from medseg.evaluation.calibration.temperature import fit_temperature
from medseg.inference.uncertainty.logit_sample import VoxelSample, output_members
from tests.evaluation.calibration.test_temperature import LABELS, REGIONS, drawn


def folds(temperatures, labels=LABELS, count=3, size=6000):
    """Return two cases per fold, half of whose voxels are near foreground."""
    found = {}
    for fold in range(count):
        cases = []
        for number in range(2):
            sample = drawn(temperatures, size, 10 * fold + number, labels)
            cases.append(
                VoxelSample(sample.logits, sample.reference, sample.weight, np.arange(size) < size // 2)
            )
        found[fold] = cases
    return found


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_calibration_lowers_error_score_and_likelihood(labels):
    found = cross_fitted(folds((2.5,), labels), labels)
    assert found.cases == 6
    for part in ("near", "whole"):
        before, after = found.before[part], found.after[part]
        assert after.nll < before.nll
        assert after.brier < before.brier
        assert after.ece < 0.5 * before.ece
    assert set(found.after["near"].by_label) == {one.name for one in labels.evaluated}


def test_one_temperature_is_chosen_where_it_suffices():
    found = cross_fitted(folds((2.0,)), LABELS)
    assert found.method == "one"
    assert found.temperatures == pytest.approx((2.0,), rel=0.05)
    assert found.after["near"].ece < 0.02


def test_several_temperatures_are_chosen_where_they_fit_better():
    found = cross_fitted(folds((0.6, 3.0, 1.5)), LABELS)
    assert found.method == "per_label"
    assert found.held_out_nll["per_label"] < found.held_out_nll["one"]
    np.testing.assert_allclose(found.temperatures, (0.6, 3.0, 1.5), rtol=0.15)


def test_a_fold_takes_no_part_in_its_own_temperature():
    samples = folds((1.0,), count=2)
    samples[1] = folds((3.0,), count=2)[1]
    found = cross_fitted(samples, LABELS)
    near = [VoxelSample.joined(samples[fold]) for fold in (0, 1)]
    own = [fit_temperature(one.chosen(one.near), output_members(LABELS), regions=False) for one in near]
    one_each = found.of_folds if found.method == "one" else None
    assert one_each is not None
    assert one_each[0] == pytest.approx(own[1])
    assert one_each[1] == pytest.approx(own[0])


def test_without_voxels_near_foreground_there_is_nothing_to_fit():
    samples = folds((1.0,), count=2)
    far = [VoxelSample(one.logits, one.reference, one.weight, np.zeros(len(one), bool)) for one in samples[1]]
    assert cross_fitted({0: samples[0], 1: far}, LABELS) is None
    empty = samples[0][0].chosen(np.zeros(6000, bool))
    assert cross_fitted({0: [empty], 1: [empty]}, LABELS) is None


def test_large_samples_are_thinned_without_bias(monkeypatch):
    samples = folds((2.0,))
    everything = cross_fitted(samples, LABELS)
    monkeypatch.setattr(module, "MOST_VALUES", 30_000)
    thinned = cross_fitted(samples, LABELS)
    assert thinned.voxels < everything.voxels / 3
    assert thinned.temperatures == pytest.approx(everything.temperatures, rel=0.1)


def test_the_calibration_becomes_json():
    found = cross_fitted(folds((2.0,), size=500), LABELS)
    stored = json.loads(json.dumps(found.to_plain()))
    assert stored["temperatures"] == list(found.temperatures)
    assert stored["after"]["near"]["ece"] == found.after["near"].ece
    assert "expected calibration error" in str(found)


@pytest.mark.parametrize(("value", "expected"), [(20.0, True), (0.05, True), (19.99, True), (5.0, False)])
def test_temperatures_at_the_limit_are_noted(value, expected):
    found = cross_fitted(folds((2.0,)), LABELS)
    assert found.at_limit == ()
    assert "limit" not in str(found)
    one = replace(found, temperatures=(value,))
    assert one.at_limit == (("all",) if expected else ())
    several = replace(found, temperatures=(1.0, value, 2.0))
    label = next(iter(LABELS.foreground)).name
    assert several.at_limit == ((label,) if expected else ())
    assert (f"stay uncalibrated ({label})" in str(several)) is expected
    assert several.to_plain()["at_limit"] == list(several.at_limit)


def test_a_fit_that_reaches_the_limit_is_at_it():
    samples = {
        fold: [VoxelSample(one.logits * 1e-3, one.reference, one.weight, one.near) for one in cases]
        for fold, cases in folds((1.0,)).items()
    }
    assert cross_fitted(samples, LABELS).at_limit != ()
