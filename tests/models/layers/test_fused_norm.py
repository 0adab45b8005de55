"""The fused instance norm, run by Triton's interpreter in a process of its own, and compiled for real devices."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from medseg.models.layers.fused_norm import can_fuse

pytest.importorskip("triton")

_NUMBERS = """
import torch, torch.nn.functional as F
from medseg.models.layers.fused_norm import can_fuse, instance_norm_act

torch.set_grad_enabled(False)
generator = torch.Generator().manual_seed(0)
tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
for shape in ((1, 1, 3, 5, 7), (2, 3, 9, 10, 11), (1, 2, 41, 33, 40), (2, 4, 17, 19)):
    weight, bias = torch.randn(2, shape[1], generator=generator)
    for dtype, offset, slope in (
        (torch.float32, 0, 0.01), (torch.float32, 1000, 1), (torch.float16, 20, 0), (torch.bfloat16, 3, 0.01)
    ):
        x = (torch.randn(shape, generator=generator) + offset).to(dtype)
        assert can_fuse(x)
        found = instance_norm_act(x, weight, bias, negative_slope=slope)
        exact = F.instance_norm(x.double(), weight=weight.double(), bias=bias.double())
        exact = F.leaky_relu(exact, slope)
        assert found.dtype == dtype
        worst = float((found.double() - exact).abs().max() / exact.abs().max())
        assert worst < tolerance[dtype], (shape, dtype, offset, slope, worst)
"""

_NETWORK = """
import torch, medseg
from medseg.models.layers import fused_norm
from medseg.models.unet import blocks

options = {"in_channels": 1, "num_classes": 3, "channels": [4, 8], "num_blocks": 1}
calls = []
def counted(*arguments, **settings):
    calls.append(settings["negative_slope"])
    return fused_norm.instance_norm_act(*arguments, **settings)
blocks.instance_norm_act = counted
for name in ("unet_3d", "resunet_3d"):
    model = medseg.build_model(name, **options).eval()
    image = torch.randn(1, 1, 8, 8, 8)
    expected = model(image).detach()  # gradients are wanted: not fused
    assert not calls
    with torch.inference_mode():
        found = model(image)
    assert {"unet_3d": {0.01}, "resunet_3d": {0.01, 1.0}}[name] == set(calls), calls
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    calls.clear()
"""


@pytest.mark.slow
def test_kernel_has_the_numbers_of_torch(measured_children):
    """For single maps, and in whole networks."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    script = _NETWORK + _NUMBERS
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_maps_on_a_processor_are_not_fused():
    with torch.inference_mode():
        assert not can_fuse(torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(75, "fp16"), (90, "bf16"), (90, "fp32")])
@pytest.mark.parametrize("parts", [1, 64])
def test_kernels_compile_for_devices(capability, dtype, parts, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from medseg.models.layers.norm_kernel import normalise, partial_moments

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    maps, floats, whole = f"*{dtype}", "*fp32", "i32"
    signatures = {
        partial_moments: {"x": maps, "moments": floats, "voxels": whole, "part": whole},
        normalise: {
            "x": maps,
            "moments": floats,
            "weight": floats,
            "bias": floats,
            "out": maps,
            **dict.fromkeys(("voxels", "part", "channels", "parts"), whole),
            "eps": "fp32",
            "slope": "fp32",
            "PARTS": "constexpr",
        },
    }
    for kernel, signature in signatures.items():
        constants = {"BLOCK": 2048, **({"PARTS": parts} if "PARTS" in signature else {})}
        if parts == 1 and "parts" in signature:  # as Triton specialises arguments that are 1
            signature, constants = {**signature, "parts": "constexpr"}, {**constants, "parts": 1}
        source = ASTSource(fn=kernel, signature={**signature, "BLOCK": "constexpr"}, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kernel_on_a_device(dtype):
    from torch.nn import functional

    from medseg.models.layers.fused_norm import instance_norm_act

    x = torch.randn(2, 32, 65, 64, 63, device="cuda").to(dtype)
    weight, bias = torch.randn(2, 32, device="cuda")
    with torch.inference_mode():
        assert can_fuse(x)
        found = instance_norm_act(x, weight, bias, negative_slope=0.01)
        exact = functional.instance_norm(x.double(), weight=weight.double(), bias=bias.double())
        exact = functional.leaky_relu(exact, 0.01)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < tolerance
