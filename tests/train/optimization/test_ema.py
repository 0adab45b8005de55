"""The moving average of weights."""

from __future__ import annotations

import pytest
import torch

from medseg.models import build_model
from medseg.train.optimization.ema import EMA, lerp_unless


def test_ema_follows_by_its_decay_and_faster_at_first():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8], norm="batch")
    average = EMA(model, 0.5)
    expected = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(step))
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone().double()
    for name, tensor in average.model.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert decay == 0.5
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_ema_keeps_the_memory_format_of_the_weights():
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8])
    model = model.to(memory_format=torch.channels_last)
    for one, other in zip(EMA(model, 0.9).model.parameters(), model.parameters(), strict=True):
        assert one.stride() == other.stride()


@pytest.mark.parametrize("skipped", [False, True])
def test_a_skipped_step_leaves_the_average(skipped):
    model = build_model("unet_2d", in_channels=1, num_classes=2, channels=[4, 8], norm="batch")
    average = EMA(model, 0.9)
    before = {name: tensor.clone() for name, tensor in average.model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update(model, 50, torch.tensor(skipped))
    changed = [not torch.equal(tensor, before[name]) for name, tensor in average.model.state_dict().items()]
    assert any(changed) is not skipped


def test_a_flag_on_the_device_decides_like_the_host():
    kept, fresh = [torch.randn(3, 4), torch.randn(5)], [torch.randn(3, 4), torch.randn(5)]
    stays, moves = [[one.clone() for one in kept] for _ in range(2)]
    lerp_unless(torch.tensor(True), stays, fresh, 0.1)
    lerp_unless(torch.tensor(False), moves, fresh, 0.1)
    for before, same, after, target in zip(kept, stays, moves, fresh, strict=True):
        assert torch.equal(same, before)
        torch.testing.assert_close(after, before.lerp(target, 0.1))
