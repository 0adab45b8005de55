"""A step takes the same patches however they are distributed."""

from __future__ import annotations

import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch

from medseg.data.patches import case_store
from medseg.errors import DataError
from medseg.train import batches as loading
from medseg.train.batches import Batches, load_batches, resolve_workers
from tests.helpers.patches import patch_dataset


@pytest.mark.parametrize(("size", "accumulate", "processes"), [(4, 1, 1), (1, 2, 2), (3, 4, 1), (2, 1, 3)])
def test_parts_of_all_processes_form_the_large_batch(size, accumulate, processes):
    steps = range(5, 9)
    seen = defaultdict(list)
    for rank in range(processes):
        batches = list(Batches(steps, size, accumulate, rank, processes))
        assert len(batches) == len(steps) * accumulate
        for number, batch in enumerate(batches):
            assert len(batch) == size
            seen[steps[number // accumulate]] += batch
    whole = size * accumulate * processes
    (large,) = [list(Batches(steps, whole))]
    assert [sorted(seen[step]) for step in steps] == large
    assert large[0][0] == 5 * whole


def test_parts_equal_those_of_one_process_that_accumulates():
    """Batches alternate between processes: two processes take the patches that one takes in two batches."""
    one = list(Batches(range(3), 2, accumulate=2))
    two = [list(Batches(range(3), 2, rank=rank, processes=2)) for rank in (0, 1)]
    assert one[0::2] == two[0]
    assert one[1::2] == two[1]


def test_batches_of_a_time_budget_have_no_end():
    batches = iter(Batches(range(10**9), 2))
    assert [next(batches) for _ in range(2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("workers", "device", "cores", "processes", "expected"),
    [
        ("auto", "cpu", 16, 1, 0),
        ("auto", "cuda", 16, 1, 12),
        ("auto", "cuda", 8, 1, 8),
        ("auto", "cuda", 16, 8, 2),
        ("auto", "cuda", 2, 4, 1),
        (5, "cpu", 2, 1, 5),
        (0, "cuda", 16, 1, 0),
    ],
)
def test_workers_are_chosen_by_the_machine(monkeypatch, workers, device, cores, processes, expected):
    monkeypatch.setattr(loading, "usable_cores", lambda: cores)
    monkeypatch.setattr(loading, "processes_per_machine", lambda: processes)
    assert resolve_workers(workers, torch.device(device)) == expected


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_prepared_case_that_is_lost_is_named_with_the_remedy(make_stored, workers):
    """Also by a worker, whose errors would otherwise arrive with a traceback in their text."""
    rng = np.random.default_rng(0)
    cases = [make_stored(rng.random((1, 8, 8, 8)), np.ones((8, 8, 8), np.uint8), name) for name in "ab"]
    patches = patch_dataset(cases, (4, 4, 4), length=8)
    shutil.rmtree(cases[0].folder)
    case_store._mapped.cache_clear()  # as if there were more cases than stay mapped
    remedy = rf"^{cases[0].folder}/\w+\.npy: missing, expected an array of a prepared case\. Delete the folder {cases[0].folder} "
    with pytest.raises(DataError, match=remedy):
        list(load_batches(patches, Batches(range(4), 2), workers))
