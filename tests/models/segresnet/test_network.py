"""MONAI's SegResNet as a model of the catalog."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SegResNet

from medseg.errors import ConfigError
from medseg.models import parse_options


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_equal_monai(dims, toy):
    model = toy(f"segresnet_{dims}d", init_filters=16).eval()
    assert model.divisor == (4,) * dims
    other = SegResNet(dims, 16, in_channels=2, out_channels=3, blocks_down=(1, 1, 1), blocks_up=(1, 1)).eval()
    other.load_state_dict(model.network.state_dict())
    image = torch.randn(1, 2, *(8, 12, 4)[:dims])
    with torch.no_grad():
        assert torch.equal(model(image), other(image))


def test_dropout_is_applied_in_training_only(toy):
    model = toy("segresnet_2d", dropout=0.5)
    image = torch.randn(1, 2, 8, 8)
    assert not torch.equal(model(image), model(image))
    assert torch.equal(model.eval()(image), model(image))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks_down": [1, 1]}, "blocks_up has 3 entries, expected 1: one less than blocks_down"),
        ({"init_filters": 4}, "init_filters"),
        ({"init_filters": 12}, "multiple of 8"),
        ({"blocks_down": [1], "blocks_up": []}, "blocks_down"),
    ],
)
def test_invalid_options_raise(options, words):
    with pytest.raises(ConfigError, match=words):
        parse_options("segresnet_3d", options)
