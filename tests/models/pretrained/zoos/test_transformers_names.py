"""MaskFormer and Mask2Former as repositories of the hub store them: names of classes, statistics and logits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import ModelError
from medseg.models import build_model
from medseg.models.pretrained.zoos.published_model import IMAGENET
from medseg.models.pretrained.zoos.read_published import is_published, read_published
from tests.helpers.networks import randomise, toy_options
from tests.models.pretrained.zoos.write_tables import hub_name

MODELS = ("maskformer_resnet_18", "mask2former_resnet_18", "mask2former_swin_tiny")


def toy(name):
    torch.manual_seed(1)
    return randomise(build_model(name, in_channels=3, num_classes=3, **toy_options(name))).eval()


def repository(path, network, *, labels=None, mean=None, older=True):
    """Write a folder as the hub has it, with names of older releases."""
    path.mkdir()
    state = {hub_name(key) if older else key: tensor.clone() for key, tensor in network.state_dict().items()}
    save_file(state, path / "model.safetensors")
    heads = network.config.to_dict().get("num_attention_heads", 8)
    config = {
        "auto_map": {"AutoModel": "evil.Model"},
        "id2label": {str(i): name for i, name in enumerate(labels or [])},
        "num_attention_heads": heads,
    }
    if "decoder_config" in network.config.to_dict():
        del config["num_attention_heads"]
        config["decoder_config"] = {
            "decoder_attention_heads": network.config.decoder_config.decoder_attention_heads
        }
    (path / "config.json").write_text(json.dumps(config))
    if mean is not None:
        (path / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": mean, "image_std": [0.5, 0.5, 0.5]})
        )
    return path


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_repository_gives_the_logits_of_transformers(tmp_path, name, older):
    theirs = toy(name).network
    path = repository(tmp_path / "repository", theirs, labels=["wall", "sky", "tree"], older=older)
    assert is_published(path)
    published = read_published(path)
    assert published.model.rpartition("_")[0] == name.rpartition("_")[0]
    assert (published.classes, published.has_background) == (("wall", "sky", "tree"), False)
    ours = build_model(name, in_channels=3, num_classes=3, weights=str(path), **toy_options(name)).eval()
    assert ours.loaded_weights.fresh == ()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours.network(image), theirs(image)
    for key in ("class_queries_logits", "masks_queries_logits"):
        wanted = expected[key]
        assert (found[key] - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["maskformer_resnet_18", "mask2former_resnet_18"])
def test_another_number_of_heads_is_refused(tmp_path, name):
    """It does not follow from the tensors, and other heads compute other logits."""
    path = repository(tmp_path / "repository", toy(name).network)
    options = toy_options(name) | {"attention_heads": 4}
    with pytest.raises(ModelError, match=r"model\.attention_heads: found 4, expected 2"):
        build_model(name, in_channels=3, num_classes=3, weights=str(path), **options)
    (path / "config.json").write_text("{}")
    assert read_published(path).options["attention_heads"] == 8


def test_statistics_of_images_are_those_of_the_repository(tmp_path):
    network = toy("maskformer_resnet_18").network
    plain = repository(tmp_path / "plain", network)
    assert read_published(plain).statistics == IMAGENET
    assert read_published(plain).classes is None
    usual = repository(
        tmp_path / "usual", network, mean=[0.48500001430511475, 0.4560000002384186, 0.4059999883174896]
    )
    assert read_published(usual).statistics.mean == pytest.approx(IMAGENET.mean, abs=1e-4)
    other = repository(tmp_path / "other", network, mean=[0.5, 0.5, 0.5])
    found = read_published(other).statistics
    assert (found.mean, found.std) == ((127.5,) * 3, (127.5,) * 3)


def test_buffers_that_are_computed_are_left(tmp_path):
    network = toy("mask2former_swin_tiny").network
    path = repository(tmp_path / "repository", network)
    state = {hub_name(key): tensor.clone() for key, tensor in network.state_dict().items()}
    index = (
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    )
    state[index] = torch.zeros(16, 16, dtype=torch.int64)
    save_file(state, path / "model.safetensors")
    assert read_published(path).left == {index: "computed from model.window_size"}


def test_what_medseg_does_not_offer_is_refused(tmp_path):
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerSwinConfig,
    )

    swin = MaskFormerSwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    decoder = DetrConfig(
        d_model=64, num_queries=3, decoder_layers=1, decoder_ffn_dim=8, decoder_attention_heads=2
    )
    network = MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=swin, decoder_config=decoder, fpn_feature_size=64, mask_feature_size=64
        )
    )
    path = repository(tmp_path / "repository", network)
    with pytest.raises(
        ModelError, match=r"repository: found a MaskFormer on a Swin transformer, expected one on a ResNet"
    ):
        read_published(path)


def test_a_damaged_configuration_is_named(tmp_path):
    path = repository(tmp_path / "repository", toy("maskformer_resnet_18").network)
    (path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not readable as JSON"):
        read_published(path)
    (path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"model\.safetensors: not readable"):
        is_published(path)
