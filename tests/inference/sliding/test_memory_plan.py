"""How a prediction is laid out within a memory budget, and that memory outside the network counts, too."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import medseg
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import ConfigError
from medseg.inference.sliding.memory_plan import MemoryBudget, plan_memory
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.slices import InMemoryImage
from medseg.inference.sliding.to_file_grid import LinearWeights
from medseg.inference.sliding.windows import SlidingWindow
from medseg.io.probability_files import writing_probabilities
from medseg.labels.components import KEEP_LARGEST_BYTES_PER_VOXEL, keep_largest_components
from medseg.volumes.resampling import AxisMap


def image_of(shape):
    """A prepared image of this shape that is its own target; nothing of it is in memory."""
    axes = tuple(LinearWeights.from_axis_map(AxisMap.resize(size, size)) for size in shape[1:])
    return PreparedPrediction(InMemoryImage(torch.zeros(1).expand(shape)), None, axes)  # type: ignore[arg-type]


def network_of(bytes_per_window=0, dtype=torch.float32):
    return SimpleNamespace(
        device=torch.device("cpu"), dtype=dtype, measured_cost=lambda batch: (batch * bytes_per_window, 0.0)
    )


def plan(budget, shape=(1, 100, 200, 200), classes=20, reduced=False, batch=4):
    sliding = SlidingWindow((64, 64, 64), batch_size=batch, background=(0.0,) * classes)
    network = network_of(10**8, torch.bfloat16 if reduced else torch.float32)
    return plan_memory(image_of(shape), sliding, MemoryBudget(budget, 10**9), network)


def test_less_memory_means_float16_sums_then_bands_then_smaller_batches():
    plans = []
    for budget in range(plan(10**11, reduced=True).peak, 10**9, -(10**7)):
        try:
            plans.append(plan(budget, reduced=True))
        except ConfigError:
            break
        assert plans[-1].peak <= budget
    steps = list(dict.fromkeys((p.batch_size, p.sums, p.bands) for p in plans))
    assert steps[0] == (4, torch.float32, 1)
    assert steps[1] == (4, torch.float16, 1)
    assert steps[2] == (4, torch.float16, 2)
    assert steps[-1][:2] == (1, torch.float16)
    assert all(p.sums == torch.float32 for p in (plan(17 * 10**8), plan(10**11)))


def test_too_little_memory_raises_with_the_smallest_sufficient_budget():
    with pytest.raises(ConfigError, match=r"found 1\.2 GB, expected at least (\d+\.\d) GB") as caught:
        plan(12 * 10**8)
    least = float(str(caught.value).split("at least ")[1].split(" GB")[0])
    assert plan(int(least * 1e9)).peak <= least * 1e9
    with pytest.raises(ConfigError):
        plan(int(least * 1e9 - 2e8))


def test_windows_without_overlap_are_predicted_in_bands_of_their_own():
    def found(overlap):
        sliding = SlidingWindow((64, 64, 64), overlap, background=(0.0,) * 20)
        return plan_memory(image_of((1, 100, 256, 64)), sliding, MemoryBudget(10**12, 0), network_of())

    assert found(0.0).bands == 4  # a quarter of the memory, without additional windows
    assert found(0.5).bands == 1


def test_memory_for_post_processing_counts():
    def found(later):
        sliding = SlidingWindow((64, 64, 64), background=(0.0, 0.0))
        budget = MemoryBudget(10**10, 10**6, later)
        return plan_memory(image_of((1, 64, 64, 64)), sliding, budget, network_of())

    assert found(5 * 10**9).peak > 5 * 10**9 > found(0).peak
    with pytest.raises(ConfigError, match=r"expected at least 1\d\.\d GB"):
        found(11 * 10**9)


def test_components_take_no_more_than_is_planned_for():
    import tracemalloc

    classes = np.zeros((96, 96, 96), np.uint8)
    classes[2:-2, 2:-2, 2:60] = 1
    classes[2:-2, 2:-2, 70:-2] = 1
    tracemalloc.start()
    cleaned = keep_largest_components(classes, (1,), together=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cleaned.sum() == 92 * 92 * 58
    assert peak <= KEEP_LARGEST_BYTES_PER_VOXEL * classes.size


def test_pages_of_probabilities_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.io.probability_files._PAGES", 1 << 16)
    like = phantom_case(0, "ct", (40, 32, 30), (8.0, 8.0, 8.0))[0]
    with writing_probabilities(tmp_path / "p.nii", like, {"a": 0, "b": 0, "c": 0}) as probabilities:
        whole = 40 * 32 * 30 * 3 * 2
        assert probabilities.resident_bytes(0) == whole  # every slice lies all over the file
        assert probabilities.resident_bytes(2) < probabilities.resident_bytes(1) <= whole
        closed = []
        monkeypatch.setattr(probabilities, "close", lambda close=probabilities.close: closed.append(close()))
        for index in range(30):
            probabilities.array(2)[:, :, :, index] = index
        assert len(closed) > 5
    found = np.asarray(medseg.read(tmp_path / "p.nii").data)
    np.testing.assert_allclose(found[:, 3, 4] * 65535, np.tile(np.arange(30), (3, 1)), atol=1e-3)


def test_a_prediction_with_probabilities_counts_their_pages(make_predictor, tmp_path):
    predictor = make_predictor()
    prepared = predictor.prepare(phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0])
    plain = predictor.engine.plan(prepared).peak
    with predictor.writing_probabilities(tmp_path / "p.nii", prepared.target.volume) as probabilities:
        counted = predictor.engine.plan(prepared, files=[probabilities]).peak
    assert counted > plain


def test_the_network_is_not_measured_while_an_image_is_read(make_predictor):
    network = make_predictor().network
    with network.exclusive:
        thread = threading.Thread(target=network.measured_cost, args=(1,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    assert network.measured_cost(1)[0] >= 0
