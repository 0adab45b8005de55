"""Lack of memory and logits that are not finite: what is tried next, what is reported, and that other cases go on."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import medseg
from medseg import errors
from medseg.data.datasets.cases import Case
from medseg.data.datasets.phantom import phantom_case
from medseg.errors import DataWarning, ModelError, ResourceError
from medseg.inference.cohort.batch import predict_files
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.sliding import memory_plan
from medseg.inference.sliding.memory_plan import MemoryBudget, MemoryPlan, plan_memory
from medseg.inference.sliding.windows import SlidingWindow
from tests.inference.sliding.test_memory_plan import image_of

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 TiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    MemoryError("Unable to allocate 9. TiB for an array"),
)


@pytest.fixture
def image():
    return phantom_case(0, "ct", (14, 12, 10), (20.0, 22.0, 24.0))[0]


class Failing(torch.nn.Module):
    """A network that fails for batches above a limit, or in a number format."""

    def __init__(self, model, error, largest=0):
        super().__init__()
        self.model, self.error, self.largest, self.batches = model, error, largest, []

    def forward(self, batch):
        self.batches.append(len(batch))
        if len(batch) > self.largest:
            raise self.error
        return self.model(batch)


@pytest.mark.parametrize("error", ERRORS)
def test_smaller_batches_are_tried_and_reported(make_predictor, image, error):
    predictor = make_predictor(batch_size=4, skip_empty=False)
    expected = predictor(image).data
    network = Failing(predictor.network.volumetric, error, largest=1)
    predictor.network.volumetric = network
    notes = []
    labels = predictor.run(predictor.prepare(image), note=notes.append)
    assert np.array_equal(labels.data, expected)
    assert network.batches[:3] == [4, 2, 1]
    assert notes == [
        f"image: memory did not suffice; predicted with batches of {size}, on the device" for size in (2, 1)
    ]
    errors._warn.cache_clear()
    with pytest.warns(DataWarning, match="memory did not suffice"):
        predictor(image)


def test_the_next_layout_is_half_the_batch_then_sums_on_the_host():
    plan = MemoryPlan(1, 4, torch.float16, torch.device("cuda"), 10)
    seen = []
    while plan is not None:
        seen.append((plan.batch_size, plan.device.type))
        plan = plan.smaller()
    assert seen == [(4, "cuda"), (2, "cuda"), (1, "cuda"), (1, "cpu")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_case_without_enough_memory_fails_and_the_next_one_is_predicted(
    make_predictor, image, error, tmp_path
):
    predictor = make_predictor()
    paths = [tmp_path / f"{name}.nii.gz" for name in "abc"]
    for path in paths:
        medseg.write(image, path)
    network = Failing(predictor.network.volumetric, error, largest=1)
    prepare = predictor.prepare

    def prepared(case, **options):
        network.largest = 0 if case.id == "b" else 1
        return prepare(case, **options)

    predictor.network.volumetric = network
    predictor.prepare, predictor.max_memory = prepared, 10**12  # one case at a time
    pairs = [(Case(path.stem[0], (path,)), tmp_path / "out" / path.name) for path in paths]
    (tmp_path / "out").mkdir()
    outcomes = list(predict_files(predictor, pairs))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ResourceError, type(None)]
    message = str(outcomes[1].error)
    for part in (
        str(paths[1]),
        "found too little memory on cpu",
        "needed",
        "free",
        "Give a smaller --max-memory",
    ):
        assert part in message
    assert [pair[1].is_file() for pair in pairs] == [True, False, True]


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_predictor, image):
    predictor = make_predictor(batch_size=4)
    predictor.network.volumetric = Failing(None, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predictor(image)


class Overflowing(torch.nn.Module):
    """A network whose logits are infinite unless it runs in the safer number format."""

    def __init__(self, model, network):
        super().__init__()
        self.model, self.network = model, [network]

    def forward(self, batch):
        logits = self.model(batch)
        return logits if self.network[0].dtype == torch.bfloat16 else logits * torch.inf


def test_logits_that_are_not_finite_are_predicted_in_a_safer_format_and_recorded(
    make_predictor, image, tmp_path
):
    predictor = make_predictor()
    network = predictor.network
    with network.in_precision(torch.bfloat16):
        expected = predictor(image).data
    network.dtype, network.safer = torch.float32, torch.bfloat16
    network.volumetric = Overflowing(network.volumetric, network)
    medseg.write(image, tmp_path / "a.nii.gz")
    pair = (Case("a", (tmp_path / "a.nii.gz",)), tmp_path / "out.nii.gz")
    records, model_id = CaseRecords(tmp_path), ModelId("one")
    recording = partial(records.recording, model_id=model_id, labels=predictor.labels)
    (outcome,) = predict_files(predictor, [pair], recording=recording)
    assert outcome.error is None
    note = f"{tmp_path / 'a.nii.gz'}: logits were not finite in float32; predicted in bfloat16 instead"
    assert outcome.notes == (note,)
    assert np.array_equal(medseg.read_labels(outcome.target).data, expected)
    record = records.get("out")
    assert record.prediction.notes == (note,)
    assert record.is_by(model_id)
    assert network.dtype == torch.float32
    network.safer = None
    with pytest.raises(ModelError, match="found NaN or infinity"):
        predictor(image)


class OnDevice:
    """A network on a CUDA device, of which only the numbers are known."""

    device, dtype = torch.device("cuda:0"), torch.float16

    def __init__(self, bytes_per_window):
        self.bytes_per_window = bytes_per_window

    def measured_cost(self, batch):
        return batch * self.bytes_per_window, 0.0


def test_less_device_memory_means_smaller_batches_then_bands_then_the_host():
    shape, outputs, network = (1, 100, 200, 200), 20, OnDevice(10**8)
    sliding = SlidingWindow((64, 64, 64), batch_size=4, background=(0.0,) * outputs)
    plans = []
    for device in range(4 * 10**9, 0, -(10**7)):
        budget = MemoryBudget(10**12, 10**9, device=device)
        plans.append(plan_memory(image_of(shape), sliding, budget, network))
        assert plans[-1].device_peak <= device
    steps = list(dict.fromkeys((p.batch_size, p.bands > 1, p.device.type) for p in plans))
    assert steps[0] == (4, False, "cuda")
    assert steps.index((2, False, "cuda")) < steps.index((1, False, "cuda")) < steps.index((1, True, "cuda"))
    assert steps[-1] == (1, True, "cpu") or steps[-1] == (1, False, "cpu")
    assert plans[0].device_peak > memory_plan.EXPORT_ON_DEVICE
    assert plans[-1].device_peak == 0
