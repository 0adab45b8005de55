"""Prediction on a CUDA device has the labels of a processor, except where two classes are equally likely up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.data.datasets.phantom import phantom_case
from medseg.inference.predictor import Predictor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
IMAGE = phantom_case(0, "ct", (40, 36, 30), (9.0, 9.0, 11.0))[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skip_empty", [False, True])
@pytest.mark.parametrize("spacing", [None, (8.0, 8.0, 8.0)])
def test_labels_are_those_of_a_processor(make_predictor, dims, skip_empty, spacing):
    """Slices are read ahead, last batches are filled, and labels are copied while the network works."""
    made = make_predictor(dims, spacing=spacing, skip_empty=skip_empty, batch_size=3)
    expected = made(IMAGE).data
    found = Predictor(made.model, made.saved, made.labels, device="cuda")(IMAGE).data
    assert (found != expected).mean() < 1e-3
    assert len(np.unique(found)) > 1


def test_a_budget_of_device_memory_changes_no_label(make_predictor):
    made = make_predictor()
    free = Predictor(made.model, made.saved, made.labels, device="cuda")(IMAGE).data
    budget = torch.cuda.memory_allocated() + (1 << 30)
    bounded = Predictor(made.model, made.saved, made.labels, device="cuda", max_device_memory=budget)(
        IMAGE
    ).data
    assert np.array_equal(free, bounded)
