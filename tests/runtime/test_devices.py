"""Which arithmetic a device is given."""

from __future__ import annotations

import pytest
import torch

from medseg.runtime import devices as precision


@pytest.mark.parametrize(("amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_processor_depends_on_its_matrix_unit(monkeypatch, amx, expected):
    monkeypatch.setattr(precision, "has_amx", lambda: amx)
    assert precision.resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_cuda_depends_on_native_bfloat16(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert precision.resolve_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_precision_is_taken(name):
    assert precision.resolve_precision(name, torch.device("cpu")) == getattr(torch, name)


def test_autocast_is_off_for_float32():
    layer, image = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with precision.autocast(torch.float32, torch.device("cpu")):
        assert layer(image).dtype == torch.float32
    with precision.autocast(torch.bfloat16, torch.device("cpu")):
        assert layer(image).dtype == torch.bfloat16


def test_channels_last_changes_layout_and_no_value():
    layer = torch.nn.Conv3d(2, 3, 3)
    before = layer.weight.detach().clone()
    moved = precision.to_channels_last(layer, 3)
    assert moved.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(moved.weight, before)
