"""Case weights: how often each case is sampled, with and without foreground."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medseg.data.patches.sampling import PatchSampler, sample_generator
from medseg.errors import DataError
from medseg.train.batches import Batches

SIZE = (4, 4, 4)


@pytest.fixture
def cases(make_stored):
    """Four cases; the last one has no foreground."""
    stored = []
    for number in range(4):
        label = np.zeros((6, 6, 6), np.uint8)
        label[2:4, 2:4, 2:4] = number < 3
        stored.append(make_stored(np.zeros((1, 6, 6, 6), np.float32), label, f"case{number}"))
    return stored


def sampled(sampler, indices):
    return [sampler.sample(index, sample_generator(3, "train", index))[0].id for index in indices]


def test_each_kind_of_patch_follows_the_weights(cases):
    """Weights that are used only for the patches that are not centred on foreground would give even shares there."""
    sampler = PatchSampler(cases, SIZE, 2, 0.5, weights=[1, 4, 0, 5])
    centred = Counter(sampled(sampler, range(1, 8000, 2)))
    anywhere = Counter(sampled(sampler, range(0, 8000, 2)))
    assert all(sampler.is_centred_on_foreground(index) for index in range(1, 20, 2))
    shares = {name: count / 4000 for name, count in centred.items()}
    assert shares == pytest.approx({"case0": 0.2, "case1": 0.8}, abs=0.03)
    shares = {name: count / 4000 for name, count in anywhere.items()}
    assert shares == pytest.approx({"case0": 0.1, "case1": 0.4, "case3": 0.5}, abs=0.03)


def test_equal_weights_change_no_sample(cases):
    plain, weighted = PatchSampler(cases, SIZE, 2), PatchSampler(cases, SIZE, 2, weights=[2.5] * 4)
    assert sampled(plain, range(200)) == sampled(weighted, range(200))


def test_weights_without_foreground_are_those_of_all_cases(cases):
    sampler = PatchSampler(cases, SIZE, 2, weights=[0, 0, 0, 1])
    assert set(sampled(sampler, range(20))) == {"case3"}


def test_processes_share_the_samples_of_one(cases):
    """Each process takes its part of the samples of a step, so that the weights hold for all of them together."""
    sampler = PatchSampler(cases, SIZE, 4, weights=[1, 4, 0, 5])
    alone = [index for batch in Batches(range(50), 4) for index in batch]
    parts = [list(Batches(range(50), 2, rank=rank, processes=2)) for rank in range(2)]
    together = [index for pair in zip(*parts, strict=True) for batch in pair for index in batch]
    assert sampled(sampler, together) == sampled(sampler, alone)


def test_some_case_must_have_a_weight(cases):
    with pytest.raises(DataError, match="found 0 for all 4 training cases, expected one above 0"):
        PatchSampler(cases, SIZE, 2, weights=[0, 0, 0, 0])
