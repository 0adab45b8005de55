"""The memory and time of a network, and networks that are compiled."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from medseg.inference.sliding import window_network
from medseg.inference.sliding.window_network import WindowNetwork

CUDA = torch.device("cuda")


@pytest.fixture
def network(make_predictor) -> WindowNetwork:
    made = make_predictor()
    return WindowNetwork(made.model, made.saved, torch.device("cpu"))


def test_the_cost_of_a_batch_is_measured_once(network):
    first = network.measured_cost(1)
    assert first[0] >= 0
    assert 0 < first[1] < math.inf
    assert network.measured_cost(1) is first


def test_a_batch_that_does_not_fit_into_a_device_has_an_infinite_cost(network, monkeypatch):
    def measure(batch_size: int) -> tuple[int, float]:
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 100, 0.5

    released = []
    monkeypatch.setattr(network, "device", CUDA)
    monkeypatch.setattr(network, "_measure", measure)
    monkeypatch.setattr(window_network, "release_memory", released.append)
    network._largest_batch = 4
    assert network.measured_cost(4) == (sys.maxsize, math.inf)
    assert network._largest_batch == 3  # smaller batches are not filled up to one that does not fit
    assert network.measured_cost(1) == (100, 0.5)
    assert released == [CUDA, CUDA]


@pytest.mark.parametrize(("device", "message"), [("cpu", "out of memory"), ("cuda", "shapes do not match")])
def test_other_errors_are_raised(network, monkeypatch, device, message):
    def fail(batch_size: int) -> tuple[int, float]:
        raise RuntimeError(message)

    monkeypatch.setattr(network, "device", torch.device(device))
    monkeypatch.setattr(network, "_measure", fail)
    with pytest.raises(RuntimeError, match=message):
        network.measured_cost(2)


def test_a_network_is_compiled_for_one_window_size(make_predictor, monkeypatch):
    compiled = []

    def compile_later(model: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        compiled.append((model, dynamic))
        return torch.nn.Identity()

    monkeypatch.setattr(window_network, "prepare_compilation", compiled.append)
    monkeypatch.setattr(torch, "compile", compile_later)
    made = make_predictor(compile=True)
    compiled.clear()
    network = WindowNetwork(made.model, made.saved, torch.device("cpu"))
    assert isinstance(network.volumetric, torch.nn.Identity)
    assert compiled == ["compile", (made.model, False)]
