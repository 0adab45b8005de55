from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.models import (
    AttentionUNet2d,
    AttentionUNet3d,
    AttentionUNetConfig,
    GateOptions,
    UNet2d,
    UNetConfig,
)
from medseg.models.layers.memory_format import channels_last_format, is_channels_last
from medseg.models.unet.attention import AttentionGate

WIDTHS = (4, 8, 12, 16)


def config(**gate) -> AttentionUNetConfig:
    torch.manual_seed(0)
    return AttentionUNetConfig.from_channels(1, 2, WIDTHS, num_blocks=1, gate=GateOptions(**gate))


def gated(model) -> list[bool]:
    return [level.gate is not None for level in model.decoder]


def image(dims: int = 2) -> torch.Tensor:
    return torch.randn(2, 1, *(19, 21, 18)[:dims], generator=torch.Generator().manual_seed(0))


def test_all_skips_except_the_shallowest_are_gated():
    assert gated(AttentionUNet2d(config())) == [True, True, False]
    assert gated(AttentionUNet2d(config(include_shallowest=True))) == [True, True, True]
    assert gated(AttentionUNet2d(config(enabled=(False, True, True)))) == [False, True, True]
    assert gated(AttentionUNet2d(config(enabled=(False, False, False)))) == [False, False, False]


def test_inter_channels_follow_the_options():
    def inner(model):
        return [level.gate.theta.out_channels for level in model.decoder if level.gate is not None]

    assert inner(AttentionUNet2d(config(include_shallowest=True))) == [6, 4, 2]
    assert inner(AttentionUNet2d(config(inter_channels=3))) == [3, 3]
    assert inner(AttentionUNet2d(config(inter_channels=(5, 7, 9), include_shallowest=True))) == [5, 7, 9]


@pytest.mark.parametrize("resample", ["linear", "nearest"])
@pytest.mark.parametrize("coefficients", [1, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_size_gradients_and_memory_format_are_kept(dims, coefficients, resample):
    options = config(num_coefficients=coefficients, resample=resample, include_shallowest=True)
    model = (AttentionUNet2d if dims == 2 else AttentionUNet3d)(options)
    model.to(memory_format=channels_last_format(dims))
    layouts = []
    for level in model.decoder:
        level.gate.register_forward_hook(lambda m, args, out: layouts.append(is_channels_last(out)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    logits = model(image(dims))
    assert logits.shape == (2, 2, *image(dims).shape[2:])
    assert layouts == [True, True, True]
    model.criterion = lambda logits, label: logits.pow(2).mean()
    label = torch.zeros(image(dims).shape, dtype=torch.long)
    model.losses(image(dims), label)["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_open_gates_give_the_plain_unet():
    gates = AttentionUNet2d(config(pass_through=True, include_shallowest=True)).eval()
    fields = {"downsample": "maxpool", "upsample": "linear", "deep_supervision": True}
    plain = UNet2d(UNetConfig.from_channels(1, 2, WIDTHS, num_blocks=1, **fields)).eval()
    missing, unexpected = plain.load_state_dict(gates.state_dict(), strict=False)
    assert missing == []
    assert all(".gate." in key for key in unexpected)
    found, wanted = gates(image()), plain(image())
    assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()
    for level in gates.decoder:
        level.gate.psi.bias.data.fill_(100.0)  # a sigmoid of exactly 1 in float32
    assert torch.equal(gates(image()), wanted)


def test_closed_gates_remove_the_skip():
    model = AttentionUNet2d(config(enabled=(False, False, True))).eval()
    top = model.decoder[2]
    lower, skip = torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)
    before = top(lower, skip)
    top.gate.open()
    top.gate.psi.bias.data.fill_(-200.0)
    assert torch.equal(top.gate(skip, lower), torch.zeros_like(skip))
    assert torch.equal(top(lower, skip), top(lower, torch.randn_like(skip)))
    assert not torch.equal(top(lower, skip), before)


@pytest.mark.parametrize("stride", [(2, 2), (1, 4)])
def test_gate_equals_the_formula_of_the_paper(stride):
    gate = AttentionGate(2, 4, 6, 3, stride, GateOptions(resample="nearest", num_coefficients=2))
    skip, lower = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8 // stride[0], 8 // stride[1])
    inner = gate.theta(skip) + gate.phi(lower)
    wanted = torch.sigmoid(gate.psi(inner.relu()))
    for axis, step in enumerate(stride, start=2):
        wanted = wanted.repeat_interleave(step, dim=axis)
    assert torch.allclose(gate.coefficients(skip, lower), wanted)
    shares = torch.cat([skip[:, :2] * wanted[:, :1], skip[:, 2:] * wanted[:, 1:]], dim=1)
    assert torch.allclose(gate(skip, lower), shares)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"enabled": [True]}, "gate.enabled has 1 entries, expected 3"),
        ({"inter_channels": [4, 4]}, "gate.inter_channels has 2 entries, expected 3"),
        ({"num_coefficients": 5}, "gate.num_coefficients is 5, expected a divisor of the skip's 12 channels"),
        (
            {"enabled": [True, True, True], "include_shallowest": True},
            "include_shallowest and enabled are both given",
        ),
        ({"enable": [True]}, "Did you mean 'enabled'?"),
    ],
)
def test_invalid_options_raise(gate, words):
    with pytest.raises(ConfigError) as caught:
        AttentionUNetConfig.from_channels(1, 2, WIDTHS, gate=gate)
    assert words in str(caught.value)
