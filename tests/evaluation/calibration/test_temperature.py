"""Temperatures: a known miscalibration is found again, and labels never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from medseg.evaluation.calibration.temperature import (
    fit_temperature,
    fit_temperatures,
    negative_log_likelihood,
    probabilities,
)
from medseg.inference.sliding.labelling import label_rule
from medseg.inference.uncertainty.logit_sample import VoxelSample, output_members
from medseg.labels.label_table import Labels

LABELS = Labels.from_names({"background": 0, "edema": 1, "core": 2})
REGIONS = LABELS.with_regions({"whole": [1, 2], "core": [2]})


def drawn(temperatures, count=40_000, seed=0, labels=LABELS) -> VoxelSample:
    """Return logits whose references are drawn from the probabilities at these temperatures."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(count, labels.num_outputs)).astype(np.float32)
    p = probabilities(logits, temperatures, regions=bool(labels.regions))
    if labels.regions:  # nested regions: the core is part of the whole
        whole, core = rng.random((2, count)) < p.T
        reference = np.where(whole, np.where(core, 2, 1), 0)
    else:
        reference = (rng.random((count, 1)) > p.cumsum(-1)).sum(-1).clip(max=p.shape[1] - 1)
    return VoxelSample(logits, reference, np.ones(count), np.ones(count, bool))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_one_temperature_is_found_again(temperature):
    (found,) = fit_temperature(drawn((temperature,)), output_members(LABELS), regions=False)
    assert found == pytest.approx(temperature, rel=0.03)


def test_one_temperature_per_class_is_found_again():
    truth = (1.0, 2.5, 0.7)
    found = fit_temperatures(drawn(truth), output_members(LABELS), (1.2,), regions=False)
    np.testing.assert_allclose(found, truth, rtol=0.08)


def test_one_temperature_per_region_is_found_again():
    """The core is only observed within the whole, so the whole is certain here."""
    sample = drawn((1.5, 3.0), labels=REGIONS)
    inside = sample.reference > 0
    sample = sample.chosen(inside)
    members = output_members(REGIONS)
    _, core = fit_temperatures(sample, members, (1.0,), regions=True)
    assert core == pytest.approx(3.0, rel=0.08)


def test_weights_count_as_repetitions():
    sample = drawn((2.0,), count=2000)
    weight = np.random.default_rng(1).integers(1, 4, 2000)
    weighted = VoxelSample(sample.logits, sample.reference, weight.astype(float), sample.near)
    rows = np.repeat(np.arange(2000), weight)
    repeated = VoxelSample(
        sample.logits[rows], sample.reference[rows], np.ones(len(rows)), np.ones(len(rows), bool)
    )
    members = output_members(LABELS)
    one = fit_temperature(weighted, members, regions=False)
    assert one == pytest.approx(fit_temperature(repeated, members, regions=False), rel=1e-3)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_the_likelihood_is_that_of_the_definition(labels):
    sample = drawn((1.5, 0.8, 1.2)[: labels.num_outputs], count=500, labels=labels)
    members, regions = output_members(labels), bool(labels.regions)
    p = probabilities(sample.logits, (1.3,), regions=regions)
    inside = members[sample.reference]
    expected = -np.log(np.where(inside, p, 1 - p)).mean() if regions else -np.log(p[inside]).mean()
    assert negative_log_likelihood(sample, members, (1.3,), regions=regions) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("several", [False, True])
def test_prediction_uses_the_probabilities_that_were_fitted(labels, several):
    temperatures = (1.5, 0.6, 2.0)[: labels.num_outputs] if several else (1.7,)
    logits = np.random.default_rng(2).normal(scale=4, size=(200, labels.num_outputs)).astype(np.float32)
    rule, plain = label_rule(labels, temperatures), label_rule(labels)
    found = rule.probabilities(torch.from_numpy(logits)).numpy()
    expected = probabilities(logits, temperatures, regions=bool(labels.regions))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert torch.equal(rule.classes(torch.from_numpy(logits)), plain.classes(torch.from_numpy(logits)))


def test_a_number_added_to_all_logits_changes_no_probability():
    logits = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
    one = probabilities(logits, (1.5, 0.6, 2.0), regions=False)
    np.testing.assert_allclose(one, probabilities(logits + 7, (1.5, 0.6, 2.0), regions=False), atol=1e-5)
    np.testing.assert_allclose(
        probabilities(logits, (2.0,), regions=False), softmax(logits / 2, -1), atol=1e-6
    )
