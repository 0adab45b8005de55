"""The instance U-Net: its maps, its losses, and that it learns to separate what touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.models import InstanceUNet2d, InstanceUNetConfig, UNet2d, UNetConfig, build_model
from medseg.models.unet.instance_unet import voting_slices
from tests.helpers.networks import cross_entropy

CONFIG = InstanceUNetConfig.from_channels(1, 3, channels=(8, 16), norm="group")


def blocks(n=1):
    """Images of two blocks of different classes that touch, and their maps."""
    image = torch.zeros(n, 1, 24, 28)
    ids = torch.zeros(n, 1, 24, 28, dtype=torch.long)
    ids[:, :, 4:18, 4:13], ids[:, :, 4:18, 13:24] = 5, 9
    image[ids == 5], image[ids == 9] = 0.7, 1.0
    return image, (ids > 0).long() + (ids == 9), ids


def test_logits_are_the_first_maps_and_weights_are_those_of_a_unet():
    model = InstanceUNet2d(CONFIG).eval()
    image = torch.randn(2, 1, 21, 30)
    with torch.no_grad():
        maps = model.maps(image)
        assert maps.shape == (2, 6, 21, 30)
        assert torch.equal(maps[:, :3], model(image))
        plain = UNet2d(UNetConfig.from_channels(1, 3, channels=(8, 16), norm="group")).eval()
        shared = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
        plain.load_state_dict(shared)
        assert torch.equal(plain(image), model(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_every_head_gets_gradients_also_with_deep_supervision(dims):
    model = build_model(
        f"instance_unet_{dims}d", in_channels=1, num_classes=2, channels=[4, 8, 8, 8], deep_supervision=True
    )
    model.criterion = cross_entropy
    size = (16, 16, 8)[:dims]
    label = torch.zeros(2, 1, *size).long()
    label[0, 0, 2:6, 2:9] = 1
    losses = model.losses(torch.randn(2, 1, *size), label)
    assert set(losses) == {"classes", "distance", "offsets"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.instance_head.weight.grad.abs().sum() > 0


def test_the_weight_scales_the_losses_of_instances_alone():
    image, label, ids = blocks()
    found = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        model = InstanceUNet2d(CONFIG.replace(instance_loss_weight=weight))
        model.criterion = cross_entropy
        found.append({name: loss.item() for name, loss in model.losses(image, label, ids).items()})
    one, three = found
    assert three == pytest.approx({k: v * (1 if k == "classes" else 3) for k, v in one.items()})


def test_touching_instances_are_learnt():
    torch.manual_seed(0)
    image, label, ids = blocks()
    label = label.clamp(max=1)
    model = InstanceUNet2d(InstanceUNetConfig.from_channels(1, 2, channels=(8, 16), norm="group"))
    model.criterion = cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        sum(model.losses(image, label, ids).values()).backward()
        optimizer.step()
    (found,) = model.eval().instances(image)
    assert len(found) == 2
    assert sorted(found.areas.tolist()) == pytest.approx([126, 154], abs=8)
    assert found.scores.min() > 0.8


def test_voting_slices_order_the_offsets_like_the_axes():
    maps = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 4)
    slices = voting_slices(maps, 2, (2, 0, 1))
    assert slices.offsets[:, 0, 0, 0].tolist() == [5, 3, 4]
    assert (slices.classes == 1).all()
    assert (slices.weights == 2).all()
    assert slices.scores.ravel() == pytest.approx(np.full(24, np.e / (1 + np.e)))
