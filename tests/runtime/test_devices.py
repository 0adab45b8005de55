"""Which arithmetic a device is given."""

from __future__ import annotations

import pytest
import torch

from medseg.runtime import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("amx", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_processor_depends_on_its_matrix_unit(monkeypatch, amx, expected, dims):
    monkeypatch.setattr(devices, "has_amx", lambda: amx)
    assert devices.resolve_precision("auto", CPU, dims) == expected


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_of_a_flat_network_on_cuda_depends_on_native_bfloat16(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert devices.resolve_precision("auto", CUDA, 2) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), torch.float32), ((7, 0), torch.float16), ((7, 5), torch.float16), ((9, 0), torch.float16)],
)
def test_auto_of_a_volume_network_on_cuda_depends_on_tensor_cores(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.resolve_precision("auto", CUDA, 3) == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_precision_is_taken(name, device):
    assert devices.resolve_precision(name, device, 3) == getattr(torch, name)


def test_tf32_is_float32_with_shorter_products():
    assert devices.resolve_precision("tf32", CUDA, 3) == torch.float32


@pytest.mark.parametrize(("allowed", "products"), [(True, "high"), (False, "highest")])
def test_tf32_is_allowed_in_products_and_convolutions_alike(monkeypatch, allowed, products):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    before = torch.get_float32_matmul_precision()
    try:
        devices.set_tf32(allowed)
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_format_of_each_kind_of_network():
    assert devices.memory_format(CPU, 2) == devices.memory_format(CUDA, 2) == torch.channels_last
    assert devices.memory_format(CPU, 3) == torch.channels_last_3d
    assert devices.memory_format(CUDA, 3) == torch.contiguous_format


def test_autocast_is_off_for_float32():
    layer, image = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with devices.autocast(torch.float32, torch.device("cpu")):
        assert layer(image).dtype == torch.float32
    with devices.autocast(torch.bfloat16, torch.device("cpu")):
        assert layer(image).dtype == torch.bfloat16


def test_channels_last_changes_layout_and_no_value():
    layer = torch.nn.Conv3d(2, 3, 3)
    before = layer.weight.detach().clone()
    moved = devices.to_fast_format(layer, CPU, 3)
    assert moved.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(moved.weight, before)
    assert devices.to_fast_format(layer, CUDA, 3).weight.is_contiguous()
    assert torch.equal(layer.weight, before)


def test_only_a_float16_that_nobody_asked_for_has_something_safer():
    assert devices.safer_precision("auto", torch.float16) == torch.bfloat16
    assert devices.safer_precision("float16", torch.float16) is None
    assert devices.safer_precision("auto", torch.bfloat16) is None


def test_auto_on_another_device_is_exact():
    assert devices.resolve_precision("auto", torch.device("mps"), 3) == torch.float32


def test_a_copy_of_a_tensor_on_the_host_is_the_tensor_itself():
    tensor = torch.arange(6)
    assert devices.HostCopy(tensor).tensor() is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tensor_is_copied_from_a_device():
    tensor = torch.arange(6, device="cuda")
    assert devices.HostCopy(tensor).tensor().tolist() == list(range(6))
