"""Mask R-CNN of Detectron2: a random model that is stored by Detectron2's names comes back, and gives torchvision's logits."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from medseg.errors import ModelError
from medseg.models import build_model
from medseg.models.pretrained.zoos.class_names import COCO
from medseg.models.pretrained.zoos.published_model import IMAGENET
from medseg.models.pretrained.zoos.read_published import read_published
from tests.helpers.networks import randomise
from tests.helpers.zoo_files import to_detectron2, write_detectron2

TOY = {
    "depths": [1, 2, 1, 1],
    "width_per_group": 4,
    "norm": "frozen",
    "strided_kernel": "1x1",
    "box_convention": "detectron2",
    "mask_head_widths": [8] * 4,
    "box_head_width": 16,
}
PYRAMID = {"feature_channels": 16, "anchor_sizes": [[32], [64], [128], [256], [512]]}
FORMS = {
    "mask_rcnn_resnet_50_fpn": TOY | PYRAMID,
    "mask_rcnn_resnext_101_32x8d_fpn": TOY | PYRAMID | {"groups": 2, "strided_kernel": "3x3"},
    "mask_rcnn_resnet_50_c4": TOY,
}
NEVER_USED = {  # boxes and masks of the background
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}


def toy(name, classes=81, seed=1, **options):
    torch.manual_seed(seed)
    model = build_model(name, in_channels=3, num_classes=classes, **(FORMS[name] | options))
    return randomise(model, kernels=True).eval()


SLOW = {"mask_rcnn_resnet_50_c4"}  # its proposal network has 1024 channels at any width of the toy


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FORMS]
)
def test_a_model_by_detectron2s_names_comes_back(tmp_path, name):
    expected = toy(name)
    stored = to_detectron2(expected.state_dict())
    published = read_published(write_detectron2(tmp_path / "model_final.pkl", stored))
    assert published.model == name
    assert published.classes == ("background", *COCO)
    assert published.left == {}
    assert published.tensors.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        part = key.rpartition(".")[0]
        unused = NEVER_USED.get(part, 0)
        assert torch.equal(published.tensors[key][unused:], tensor[unused:]), key
        assert not published.tensors[key][:unused].any()
    published.require_options(expected, "model_final.pkl")
    statistics = published.statistics
    assert statistics.mean == (123.675, 116.28, 103.53)
    assert statistics.std == ((58.395, 57.12, 57.375) if "resnext" in name else (1, 1, 1))
    assert statistics.unit_variance_factor == (1 if statistics == IMAGENET else pytest.approx(57.63))


def test_names_of_whole_checkpoints_are_known(tmp_path):
    """Files that Detectron2 writes in training are torch files, and older ones contain what is computed from the settings."""
    expected = toy("mask_rcnn_resnet_50_fpn", classes=4)
    stored = to_detectron2(expected.state_dict())
    stored["pixel_mean"] = torch.zeros(3, 1, 1)
    stored["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    path = tmp_path / "model_0009999.pth"
    torch.save({"model": stored, "iteration": 9999}, path)
    published = read_published(path)
    assert published.classes is None
    assert published.left == {
        "pixel_mean": "part of the preprocessing",
        "proposal_generator.anchor_generator.cell_anchors.0": "computed from model.anchor_sizes",
    }


def test_norms_that_were_trained_keep_their_counters(tmp_path):
    """Models with synchronised norms store the number of batches, an array without axes."""
    name = "mask_rcnn_resnet_50_fpn"
    expected = toy(name, norm="batch")
    expected.backbone.body.bn1.num_batches_tracked.fill_(7)
    stored = to_detectron2(expected.state_dict())
    stored["backbone.bottom_up.stem.conv1.norm.num_batches_tracked"] = torch.tensor(7)
    path = write_detectron2(tmp_path / "model_final.pkl", stored)
    options = FORMS[name] | {"norm": "batch"}
    found = build_model(name, in_channels=3, num_classes=81, weights=str(path), **options)
    assert found.backbone.body.bn1.num_batches_tracked == 7
    assert torch.equal(found.backbone.body.bn1.running_var, expected.backbone.body.bn1.running_var)


def test_tensors_that_are_left_over_or_missing_are_named(tmp_path):
    stored = to_detectron2(toy("mask_rcnn_resnet_50_fpn").state_dict())
    path = write_detectron2(
        tmp_path / "more.pkl", stored | {"roi_heads.box_head.conv1.weight": torch.zeros(1)}
    )
    with pytest.raises(
        ModelError, match=r"found roi_heads\.box_head\.conv1\.weight in the weights, expected only"
    ):
        read_published(path)
    without = {key: value for key, value in stored.items() if key != "roi_heads.box_head.fc2.bias"}
    path = write_detectron2(tmp_path / "less.pkl", without)
    with pytest.raises(ModelError, match=r"no such tensor, expected|roi_heads\.box_head\.fc7\.bias"):
        build_model(
            "mask_rcnn_resnet_50_fpn",
            in_channels=3,
            num_classes=81,
            weights=str(path),
            **FORMS["mask_rcnn_resnet_50_fpn"],
        )
    write_detectron2(tmp_path / "none.pkl", {"a": torch.zeros(2)})
    with pytest.raises(ModelError, match="found 1 tensors such as a, expected a Mask R-CNN of Detectron2"):
        read_published(tmp_path / "none.pkl")


def test_other_options_are_refused_by_name(tmp_path):
    name = "mask_rcnn_resnet_50_fpn"
    path = write_detectron2(tmp_path / "model_final.pkl", to_detectron2(toy(name).state_dict()))
    with pytest.raises(ModelError) as caught:
        toy(name, weights=str(path), strided_kernel="3x3", box_convention="torchvision")
    assert "model.strided_kernel: found 3x3, expected 1x1" in str(caught.value)
    assert "model.box_convention: found torchvision, expected detectron2" in str(caught.value)
    assert "medseg plan DATASET --from" in str(caught.value)
    with pytest.raises(ModelError, match=f"found the weights of {name} .Detectron2. for FCN"):
        build_model("fcn_resnet_50", in_channels=3, num_classes=3, weights=str(path))


def test_build_model_takes_the_file(tmp_path):
    """Also for images of other channels, whose kernels are scaled to intensities of standard deviation 1."""
    name = "mask_rcnn_resnet_50_fpn"
    expected = toy(name)
    path = write_detectron2(tmp_path / "model_final.pkl", to_detectron2(expected.state_dict()))
    found = build_model(name, in_channels=3, num_classes=81, weights=str(path), **FORMS[name])
    assert torch.equal(found.backbone.body.conv1.weight, expected.backbone.body.conv1.weight)
    assert found.loaded_weights.fresh == ()
    grey = build_model(name, in_channels=1, num_classes=81, weights=str(path), **FORMS[name])
    summed = expected.backbone.body.conv1.weight.sum(dim=1, keepdim=True)
    assert torch.allclose(grey.backbone.body.conv1.weight, summed * 57.63, rtol=1e-4, atol=1e-4)


def torchvision_parts(seed):
    """The parts of a Mask R-CNN of torchvision with the sizes of the toy ResNeXt."""
    torch.manual_seed(seed)
    body = ResNet(Bottleneck, [1, 2, 1, 1], groups=2, width_per_group=4, norm_layer=FrozenBatchNorm2d)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    parts = torch.nn.ModuleDict(
        {
            "backbone": BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 16),
            "rpn": torch.nn.ModuleDict({"head": RPNHead(16, 3)}),
            "roi_heads": torch.nn.ModuleDict(
                {
                    "box_head": TwoMLPHead(16 * 49, 16),
                    "box_predictor": FastRCNNPredictor(16, 81),
                    "mask_head": MaskRCNNHeads(16, [8] * 4, 1),
                    "mask_predictor": MaskRCNNPredictor(8, 8, 81),
                }
            ),
        }
    )
    return randomise(parts, kernels=False).eval()


def logits(parts, image, boxes, masks):
    heads = parts["roi_heads"] if isinstance(parts, torch.nn.ModuleDict) else parts.roi_heads
    get = heads.__getitem__ if isinstance(heads, torch.nn.ModuleDict) else lambda key: getattr(heads, key)
    backbone, rpn = (
        (parts["backbone"], parts["rpn"]["head"])
        if isinstance(parts, torch.nn.ModuleDict)
        else (
            parts.backbone,
            parts.rpn.head,
        )
    )
    with torch.no_grad():
        objectness, deltas = rpn(list(backbone(image).values()))
        scores, offsets = get("box_predictor")(get("box_head")(boxes))
        shapes = get("mask_predictor")(get("mask_head")(masks))
    return [*objectness, *deltas, scores, offsets[:, 4:], shapes[:, 1:]]


def test_torchvisions_weights_by_detectron2s_names_give_its_logits(tmp_path):
    name = "mask_rcnn_resnext_101_32x8d_fpn"
    theirs = torchvision_parts(3)
    path = write_detectron2(tmp_path / "model_final.pkl", to_detectron2(theirs.state_dict()))
    ours = build_model(name, in_channels=3, num_classes=81, weights=str(path), **FORMS[name]).eval()
    image, boxes, masks = torch.randn(1, 3, 64, 96), torch.randn(4, 16, 7, 7), torch.randn(4, 16, 14, 14)
    for found, expected in zip(
        logits(ours, image, boxes, masks), logits(theirs, image, boxes, masks), strict=True
    ):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
