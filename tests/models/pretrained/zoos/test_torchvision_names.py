"""Models of torchvision: the same weights in its files give its logits."""

from __future__ import annotations

import pytest
import torch
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import FCN as TheirFCN
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FrozenBatchNorm2d

from medseg.errors import ModelError
from medseg.models import build_model
from medseg.models.pretrained.zoos.class_names import COCO, coco_by_number
from medseg.models.pretrained.zoos.published_model import IMAGENET
from medseg.models.pretrained.zoos.read_published import find_published_file, read_published
from tests.helpers.networks import randomise
from tests.helpers.zoo_files import to_first_torchvision

ANCHORS = [[32], [64], [128], [256], [512]]
OPTIONS = {
    "depths": [1, 1, 1, 1],
    "width_per_group": 4,
    "feature_channels": 16,
    "anchor_sizes": ANCHORS,
    "norm": "frozen",
}


def published_network():
    """Mask R-CNN of torchvision with the norms of its published weights, which add nothing to the variance."""
    torch.manual_seed(0)
    body = ResNet(
        Bottleneck,
        [1, 1, 1, 1],
        width_per_group=4,
        norm_layer=lambda width: FrozenBatchNorm2d(width, eps=0.0),
    )
    del body.fc
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 16)
    model = TheirMaskRCNN(backbone, num_classes=91, min_size=64, max_size=128)
    return randomise(model).eval()


def test_mask_rcnn_gives_torchvisions_logits_and_detections(tmp_path):
    theirs = published_network()
    state = to_first_torchvision(theirs.state_dict())
    assert "roi_heads.mask_head.mask_fcn1.weight" in state
    path = tmp_path / "maskrcnn_resnet50_fpn_coco.pth"
    torch.save(state, path)
    published = read_published(path)
    assert (published.model, published.statistics, published.left) == (
        "mask_rcnn_resnet_50_fpn",
        IMAGENET,
        {},
    )
    ours = build_model(
        "mask_rcnn_resnet_50_fpn", in_channels=3, num_classes=91, weights=str(path), **OPTIONS
    ).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = theirs.backbone(image)
        for name, found in ours.backbone(image).items():
            scale = maps[name].abs().max().clamp(min=1)
            assert (found - maps[name]).abs().max() <= 1e-5 * scale
        features = list(maps.values())
        pooled, cut = torch.randn(3, 16, 7, 7), torch.randn(3, 16, 14, 14)
        for module, given in (
            ("rpn.head", (features,)),
            ("roi_heads.box_head", (pooled,)),
            ("roi_heads.mask_head", (cut,)),
            ("roi_heads.box_predictor", (torch.randn(3, 1024),)),
            ("roi_heads.mask_predictor", (torch.randn(3, 256, 14, 14),)),
        ):
            wanted = flat(theirs.get_submodule(module)(*given))
            for one, other in zip(flat(ours.get_submodule(module)(*given)), wanted, strict=True):
                assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1), module


def flat(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in found for tensor in flat(part)]


def test_numbers_of_coco_have_gaps():
    names = coco_by_number()
    assert len(names) == 91
    assert (names[0], names[1], names[12], names[13], names[90]) == (
        "background",
        "person",
        "unused 12",
        "stop sign",
        "toothbrush",
    )
    assert [name for name in names[1:] if not name.startswith("unused")] == list(COCO)


def test_coco_and_voc_are_those_of_torchvision():
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    from medseg.models.pretrained.zoos.class_names import VOC

    theirs = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert [name for name in theirs if name != "N/A"] == ["__background__", *COCO]
    assert [name == "N/A" for name in theirs] == [name.startswith("unused") for name in coco_by_number()]
    assert FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"] == ["__background__", *VOC]
    transform = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.transforms()
    assert [255 * number for number in transform.mean] == pytest.approx(IMAGENET.mean)
    assert [255 * number for number in transform.std] == pytest.approx(IMAGENET.std)


def test_fcn_gives_torchvisions_logits(tmp_path):
    torch.manual_seed(0)
    body = ResNet(
        Bottleneck, [1, 1, 1, 1], width_per_group=4, replace_stride_with_dilation=[False, True, True]
    )
    layers = IntermediateLayerGetter(body, {"layer4": "out", "layer3": "aux"})
    theirs = randomise(TheirFCN(layers, FCNHead(2048, 21), FCNHead(1024, 21))).eval()
    path = tmp_path / "fcn_resnet50_coco.pth"
    torch.save(theirs.state_dict(), path)
    published = read_published(path)
    assert published.model == "fcn_resnet_50"
    assert (published.classes[1], published.classes[20]) == ("aeroplane", "tvmonitor")
    small = {"depths": [1, 1, 1, 1], "width_per_group": 4}
    ours = build_model("fcn_resnet_50", in_channels=3, num_classes=21, weights=str(path), **small).eval()
    image = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        expected = theirs(image)["out"]
        assert (ours(image) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


def test_version_2_is_refused(tmp_path):
    state = to_first_torchvision(published_network().state_dict())
    state["rpn.head.conv.1.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "v2.pth")
    with pytest.raises(ModelError, match=r"version 2 of torchvision's Mask R-CNN.*COCO_V1"):
        read_published(tmp_path / "v2.pth")


def test_names_of_backbones_are_no_whole_models(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert find_published_file("ResNet50_Weights.IMAGENET1K_V2", download=False) is None
    assert find_published_file("deit_small_patch16_224", download=False) is None
    assert find_published_file("no_such_file.pth", download=False) is None
    with pytest.raises(ModelError, match="not on this machine"):
        find_published_file("MaskRCNN_ResNet50_FPN_Weights.COCO_V1", download=False)
