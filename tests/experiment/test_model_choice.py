"""The model of an experiment, as it is written into folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import ConfigError
from medseg.experiment.config import ModelChoice


@pytest.mark.parametrize(
    ("weights", "shared"),
    [
        ("/home/somebody/private/w.pth", "w.pth"),
        ("../w.safetensors", "w.safetensors"),
        ("hub:owner/name@0123", "hub:owner/name@0123"),
        ("ResNet50_Weights.IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2"),
        (None, None),
    ],
)
def test_a_shared_folder_names_only_the_file_of_published_weights(weights, shared):
    choice = ModelChoice.parse({"name": "fcn_resnet_50", "weights": weights})
    assert choice.to_plain()["weights"] == weights
    assert choice.to_shared()["weights"] == shared


def test_a_model_folder_holds_the_options_but_not_the_first_weights():
    choice = ModelChoice.parse({"name": "unet_3d", "channels": [4, 8], "weights": "/home/somebody/run"})
    assert choice.to_shared() == {"name": "unet_3d", **choice.options().to_plain()}
    assert choice.to_plain() == {
        **choice.to_shared(),
        "weights": "/home/somebody/run",
        "adapt": choice.adapt.to_plain(),
    }


def test_every_model_takes_weights_and_published_names_only_where_there_are_some(tmp_path):
    unet = ModelChoice.parse({"name": "unet_3d", "weights": "anything"})
    fcn = ModelChoice.parse({"name": "fcn_resnet_50", "weights": "ResNet50_Weights.IMAGENET1K_V2"})
    assert (unet.has_published_weights, fcn.has_published_weights) == (False, True)
    assert unet.trained_source == Path("anything")
    assert fcn.trained_source is None
    assert fcn.replace(weights=str(tmp_path)).trained_source == tmp_path
    assert fcn.with_fresh_weights().weights is None
    assert fcn.options().to_plain()["weights"] == "ResNet50_Weights.IMAGENET1K_V2"


def test_the_order_of_keys_and_defaults_do_not_make_another_choice():
    one = ModelChoice.parse({"channels": [4, 8], "name": "unet_3d", "adapt": {}})
    other = ModelChoice.parse({"name": "unet_3d", "channels": [4, 8], "weights": None})
    assert one == other == ModelChoice.parse(one.to_plain())
    with pytest.raises(ConfigError, match=r"adapt.inflate"):
        ModelChoice.parse({"name": "unet_3d", "adapt": {"inflate": "yes"}})
