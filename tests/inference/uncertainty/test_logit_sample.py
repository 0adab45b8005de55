"""Samples of logits: unbiased weights, the same whatever the bands, and nothing from unknown voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import DataError
from medseg.inference.sliding.memory_plan import MemoryPlan
from medseg.inference.uncertainty import logit_sample
from medseg.inference.uncertainty.logit_sample import LogitSampler, VoxelSample, splitmix64
from medseg.labels.label_table import Labels
from tests.helpers.predictors import LABELS

REGIONS = LABELS.with_regions({"organs": [5, 7, 300], "tumour": [300]})


@pytest.fixture
def case(tmp_path):
    """A small CT whose reference has all three labels."""
    image, _ = phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))
    label = np.zeros(image.data.shape, np.int16)
    label[0, 2:8, 3:9, 3:9] = 5
    label[0, 5:8, 5:8, 5:8] = 7
    label[0, 6:8, 6:8, 6:8] = 300
    medseg.write(image, tmp_path / "image.nii.gz")
    medseg.write(medseg.Volume(label, image.grid, "label"), tmp_path / "label.nii.gz")
    return Case("one", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


def sampled(predictor, case, bands=1) -> VoxelSample:
    sampler = predictor.logit_sampler(case)
    plan = MemoryPlan(bands, 1, torch.float32, torch.device("cpu"), 0)
    object.__setattr__(predictor.engine, "plan", lambda *args, **options: plan)
    predictor.run(predictor.prepare(case), sampler=sampler)
    return sampler.sample()


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_small_strata_are_taken_whole(labels, make_predictor, case, monkeypatch):
    monkeypatch.setattr(logit_sample, "QUOTAS", (10**6,) * 4)
    predictor = make_predictor(labels=labels)
    found = sampled(predictor, case)
    prepared = predictor.prepare(case)
    assert len(found) == prepared.geometry.image.data[0].size
    assert (found.weight == 1).all()
    label = medseg.read_labels(case.label).data
    counts = np.bincount(LABELS.to_classes(label, "label").ravel(), minlength=4)
    assert np.bincount(found.reference, minlength=4).tolist() == counts.tolist()
    logits = predictor.logits(torch.from_numpy(prepared.geometry.image.data)).flatten(1).T.numpy()
    assert np.array_equal(np.sort(found.logits, axis=0), np.sort(logits, axis=0))


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_the_sample_does_not_depend_on_bands(labels, make_predictor, case, monkeypatch):
    monkeypatch.setattr(logit_sample, "QUOTAS", (40, 30, 20, 10))
    predictor = make_predictor(labels=labels, spacing=(26.0, 13.0, 30.0))
    one, other = sampled(predictor, case), sampled(predictor, case, bands=3)
    assert len(one) <= 100
    for name in ("logits", "reference", "weight", "near"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_weighted_sums_are_unbiased(make_predictor, case, monkeypatch):
    """The mean over many cases of other ids, hence other samples, approaches the sum over all voxels."""
    predictor = make_predictor()
    prepared = predictor.prepare(case)
    logits = predictor.logits(torch.from_numpy(prepared.geometry.image.data)).permute(3, 1, 2, 0)
    monkeypatch.setattr(logit_sample, "QUOTAS", (30, 30, 30, 30))
    estimates, totals = [], []
    for number in range(60):
        sampler = predictor.logit_sampler(Case(f"case {number}", case.images, case.label))
        sampler.begin(prepared)
        sampler.see(logits, 0, slice(0, logits.shape[1]))
        found = sampler.sample()
        estimates.append((found.weight * found.logits[:, 1]).sum())
        totals.append(found.weight.sum())
    assert totals == pytest.approx([logits[..., 1].numel()] * 60)
    error = np.std(estimates, ddof=1) / np.sqrt(60)
    assert abs(np.mean(estimates) - float(logits[..., 1].sum())) < 4 * error


def test_near_is_the_surrounding_of_the_reference_and_the_prediction(make_predictor, case, monkeypatch):
    monkeypatch.setattr(logit_sample, "QUOTAS", (10**6,) * 4)
    found = sampled(make_predictor(), case)
    label = medseg.read_labels(case.label).data[0] > 0
    from scipy.ndimage import maximum_filter

    reference = maximum_filter(label, 7).sum()
    near_background = (found.near & (found.logits.argmax(-1) == 0)).sum()
    predicted = (found.logits.argmax(-1) > 0).sum()
    assert found.near.sum() == near_background + predicted
    assert reference <= found.near.sum() <= reference + predicted


def test_ignored_voxels_and_partially_annotated_cases_are_left_out(
    make_predictor, case, monkeypatch, tmp_path
):
    monkeypatch.setattr(logit_sample, "QUOTAS", (10**6,) * 4)
    label = medseg.read_labels(case.label)
    data = label.data.copy()
    data[0, 0] = 255
    medseg.write(label.with_data(data), tmp_path / "ignored.nii.gz")
    ignoring = Labels(LABELS.items, ignore=255)
    one = Case("one", case.images, tmp_path / "ignored.nii.gz")
    found = sampled(make_predictor(labels=ignoring), one)
    assert len(found) == data.size - data[0, 0].size
    assert found.reference.max() < 4
    data[data > 5] = 0
    data[data == 255] = 0
    medseg.write(label.with_data(data), tmp_path / "partial.nii.gz")
    partial = Case("one", case.images, tmp_path / "partial.nii.gz", annotated=("liver",))
    assert not len(sampled(make_predictor(), partial))


def test_a_sample_is_kept_in_a_file(make_predictor, case, tmp_path):
    predictor = make_predictor()
    sampler = predictor.logit_sampler(case)
    predictor.run(predictor.prepare(case), sampler=sampler)
    sampler.write(tmp_path / "folder" / "one.npz")
    found, expected = VoxelSample.read(tmp_path / "folder" / "one.npz"), sampler.sample()
    for name in ("logits", "reference", "weight", "near"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    whole = (tmp_path / "folder" / "one.npz").read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
    for damaged in (b"PK", whole[: len(whole) // 2], flipped):
        (tmp_path / "folder" / "one.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="not a sample of logits"):
            VoxelSample.read(tmp_path / "folder" / "one.npz")


def test_keys_of_positions_look_random():
    keys = splitmix64(torch.arange(100_000), 7)
    assert len(keys.unique()) == 100_000
    shares = np.histogram(keys.numpy().astype(np.float64), bins=16)[0] / 100_000
    assert abs(shares - 1 / 16).max() < 0.004
    assert abs(np.corrcoef(keys[:-1].numpy(), keys[1:].numpy())[0, 1]) < 0.02
    assert not torch.equal(keys, splitmix64(torch.arange(100_000), 8))


def test_samplers_read_references_only_when_the_prediction_begins(make_predictor, case):
    predictor = make_predictor()
    sampler = LogitSampler(
        Case("one", case.images, case.label.with_name("missing.nii.gz")),
        predictor.saved.preprocessing,
        LABELS,
    )
    with pytest.raises(DataError, match=r"missing\.nii\.gz"):
        predictor.run(predictor.prepare(case), sampler=sampler)
