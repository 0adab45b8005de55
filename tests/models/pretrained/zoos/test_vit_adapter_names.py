"""Mask R-CNN of ViT-Adapter: a random model that is stored by MMDetection's names comes back."""

from __future__ import annotations

import pytest
import torch

from medseg.models import build_model
from medseg.models.pretrained.zoos.class_names import COCO
from medseg.models.pretrained.zoos.read_published import read_published
from tests.helpers.networks import randomise
from tests.helpers.zoo_files import to_vit_adapter, write_mmdetection

TOY = {
    "width": 64,
    "depth": 4,
    "attention_heads": 1,
    "window_padding": "zeros",
    "pretrain_size": 64,
    "deform_heads": 2,
    "deform_ratio": 0.5,
    "prior_channels": 8,
    "feature_channels": 16,
    "box_head_width": 16,
    "mask_head_widths": [8] * 4,
    "box_convention": "detectron2",
}
FORMS = {
    "mask_rcnn_vit_tiny_fpn": {},
    "mask_rcnn_vit_adapter_tiny_fpn": {},
    "mask_rcnn_vit_adapter_small": {},
}


def toy(name, classes=81):
    torch.manual_seed(1)
    options = TOY | (
        {} if "adapter" in name else {"deform_heads": 6, "deform_ratio": 1.0, "prior_channels": 64}
    )
    model = build_model(name, in_channels=3, num_classes=classes, **options)
    return randomise(model, kernels=True).eval()


@pytest.mark.parametrize("name", FORMS)
def test_a_model_by_mmdetections_names_comes_back(tmp_path, name):
    expected = toy(name)
    stored = to_vit_adapter(expected.state_dict())
    published = read_published(write_mmdetection(tmp_path / "checkpoint.pth.tar", stored))
    assert published.model == name
    assert published.classes == ("background", *COCO)
    assert list(published.left) == ["backbone.pos_embed[:, :1]"]
    assert published.tensors.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(published.tensors[key], tensor), key
    published.require_options(expected, "checkpoint.pth.tar")


def test_the_checkpoint_names_the_classes(tmp_path):
    stored = to_vit_adapter(toy("mask_rcnn_vit_tiny_fpn", classes=3).state_dict())
    path = write_mmdetection(tmp_path / "checkpoint.pth", stored, classes=("cell", "gland"))
    assert read_published(path).classes == ("background", "cell", "gland")
    path = write_mmdetection(tmp_path / "checkpoint.pth", stored, classes=("cell",))
    assert read_published(path).classes is None


def test_scales_of_branches_are_multiplied_into_them(tmp_path):
    """A block with scales computes the same as the block whose last layers were multiplied by them."""
    name = "mask_rcnn_vit_tiny_fpn"
    expected = toy(name)
    stored = to_vit_adapter(expected.state_dict())
    torch.manual_seed(2)
    for block in range(4):
        for which in (1, 2):
            stored[f"backbone.blocks.{block}.gamma{which}"] = torch.rand(64) + 0.5
    published = read_published(write_mmdetection(tmp_path / "checkpoint.pth", stored))
    assert published.left["backbone.blocks.3.gamma2"] == "multiplied into backbone.body.vit.blocks.3.mlp.fc2"
    expected.load_state_dict(dict(published.tensors))
    tokens = torch.randn(1, 4, 4, 64)
    for number, block in enumerate(expected.backbone.body.vit.blocks):
        plain = toy(name).backbone.body.vit.blocks[number]
        first, second = (stored[f"backbone.blocks.{number}.gamma{which}"] for which in (1, 2))
        with torch.no_grad():
            middle = tokens + first * plain.attn(plain.norm1(tokens))
            wanted = middle + second * plain.mlp(plain.norm2(middle))
            assert (block(tokens) - wanted).abs().max() < 1e-4


def test_sampling_offsets_are_stored_column_first(tmp_path):
    """The fresh offsets of both implementations point in the same directions: the first head along the columns."""
    model = build_model("mask_rcnn_vit_adapter_tiny_fpn", in_channels=3, num_classes=81, **TOY)
    stored = to_vit_adapter(model.state_dict())
    bias = stored["backbone.interactions.0.injector.attn.sampling_offsets.bias"].view(2, 3, 4, 2)
    assert bias[0, 0, :, 0].tolist() == [1, 2, 3, 4]
    assert bias[0, 0, :, 1].abs().max() < 1e-6
    published = read_published(write_mmdetection(tmp_path / "checkpoint.pth", stored))
    name = "backbone.body.injectors.0.attention.sampling_offsets.bias"
    assert torch.equal(published.tensors[name], model.state_dict()[name])


def test_large_transformers_have_pixels_between_minus_1_and_1():
    from medseg.models.pretrained.zoos.vit_adapter_names import from_vit_adapter

    with torch.device("meta"):
        large = build_model("mask_rcnn_vit_large_fpn", in_channels=3, num_classes=81)
        small = build_model("mask_rcnn_vit_small_fpn", in_channels=3, num_classes=81)
        states = [to_vit_adapter(model.state_dict()) for model in (large, small)]
    statistics = [from_vit_adapter(state, None).statistics for state in states]
    assert (statistics[0].mean, statistics[0].std) == ((127.5,) * 3, (127.5,) * 3)
    assert statistics[1].mean == (123.675, 116.28, 103.53)
