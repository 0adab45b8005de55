from __future__ import annotations

import pytest
import torch

from medseg.errors import ConfigError
from medseg.models import build_model
from tests.helpers.networks import cross_entropy


@pytest.fixture(scope="module")
def pair():
    """torchvision's FCN, and ours with its weights."""
    from torchvision.models.segmentation import fcn_resnet50

    torch.manual_seed(0)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True).eval()
    ours = build_model("fcn_resnet_50", in_channels=3, num_classes=4).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def test_logits_equal_torchvision(pair):
    theirs, ours = pair
    image = torch.randn(2, 3, 64, 48)
    assert (ours(image) - theirs(image)["out"]).abs().max() < 1e-5


@torch.no_grad()
def test_loss_sums_both_outputs(pair):
    theirs, ours = pair
    ours.criterion = cross_entropy
    image, label = torch.randn(2, 3, 64, 48), torch.randint(0, 4, (2, 1, 64, 48))
    losses, out = ours.losses(image, label), theirs(image)
    assert losses["loss"].item() == pytest.approx(cross_entropy(out["out"], label).item(), abs=1e-5)
    assert losses["auxiliary"].item() == pytest.approx(
        0.5 * cross_entropy(out["aux"], label).item(), abs=1e-5
    )


@torch.no_grad()
def test_other_sizes_are_padded_and_cropped_back(pair):
    _, ours = pair
    image = torch.randn(1, 3, 41, 48)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 7, -1)], dim=2)
    assert torch.equal(ours(image), ours(padded)[:, :, :41])


def test_auxiliary_head_can_be_disabled(toy):
    model = toy("fcn_resnet_50", auxiliary_head=False)
    model.criterion = cross_entropy
    losses = model.losses(torch.randn(2, 2, 16, 16), torch.zeros(2, 1, 16, 16, dtype=torch.long))
    assert list(losses) == ["loss"]
    assert model.aux_classifier is None


@pytest.mark.parametrize(("norm", "layer"), [("frozen", "FrozenBatchNorm2d"), ("group", "GroupNorm")])
def test_norm_of_the_backbone_follows_the_options(toy, norm, layer):
    model = toy("fcn_resnet_50", norm=norm)
    kinds = {type(module).__name__ for module in model.backbone.modules()}
    assert layer in kinds
    assert "BatchNorm2d" not in kinds


def test_basic_block_raises():
    with pytest.raises(ConfigError, match="block 'basic' cannot be dilated"):
        build_model("fcn_resnet_50", in_channels=1, num_classes=2, block="basic")
