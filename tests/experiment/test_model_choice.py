"""The model of an experiment, as it is written into folders."""

from __future__ import annotations

import pytest

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


def test_a_model_without_published_weights_is_shared_unchanged():
    choice = ModelChoice.parse({"name": "unet_3d", "channels": [4, 8]})
    assert choice.to_shared() == choice.to_plain()
