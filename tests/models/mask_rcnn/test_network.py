from __future__ import annotations

import pytest
import torch

from medseg.errors import ConfigError, ModelError
from medseg.models import build_model, parse_options
from medseg.models.detections import instance_targets

DETECTRON2 = [[32], [64], [128], [256], [512]]


@pytest.fixture(scope="module")
def pair():
    """torchvision's Mask R-CNN, told neither to resize nor to normalise, and ours with its weights."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=96,
        max_size=128,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=60,
        _skip_resize=True,  # which draws a random number while training
    )
    for parameter in theirs.backbone.parameters():
        parameter.requires_grad_(True)
    options = {"anchor_sizes": DETECTRON2, "proposals_train": 200, "proposals_test": 60}
    ours = build_model("mask_rcnn_resnet_50_fpn", in_channels=3, num_classes=4, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.slow
@torch.no_grad()
def test_instances_equal_torchvision(pair):
    theirs, ours = (model.eval() for model in pair)
    image = torch.randn(2, 3, 96, 128)
    for wanted, found in zip(theirs(list(image)), ours.instances(image), strict=True):
        assert len(wanted["scores"]) == len(found) > 0
        assert (wanted["scores"] - found.scores).abs().max() < 1e-5
        assert torch.equal(wanted["labels"], found.classes)
        # Their first coordinate runs along the last axis, ours along the first.
        assert (wanted["boxes"] - found.boxes[:, [1, 0, 3, 2]]).abs().max() < 1e-3
        assert torch.equal(wanted["masks"][:, 0] > 0.5, found.masks)


@pytest.mark.slow
@torch.no_grad()
def test_semantic_map_weights_instances_by_score(pair):
    theirs, ours = (model.eval() for model in pair)
    image = torch.randn(1, 3, 96, 128)
    (wanted,) = theirs(list(image))
    evidence = torch.zeros(4, 96, 128)
    for score, label, mask in zip(wanted["scores"], wanted["labels"], wanted["masks"], strict=True):
        evidence[label] = torch.maximum(evidence[label], score * mask[0])
    evidence[0] = 1 - evidence[1:].amax(dim=0)
    expected = evidence.clamp(min=1e-6)
    expected = expected / expected.sum(dim=0)
    assert (ours(image)[0].exp() - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_losses_equal_torchvision(pair):
    theirs, ours = (model.train() for model in pair)
    image, label = torch.randn(2, 3, 96, 128), torch.zeros(2, 1, 96, 128, dtype=torch.long)
    label[0, 0, 10:60, 20:110] = 2
    label[1, 0, 30:95, 5:40] = 3
    targets = [
        {
            "boxes": target.boxes[:, [1, 0, 3, 2]],
            "labels": target.classes,
            "masks": target.masks.byte(),
        }
        for target in instance_targets(label, num_classes=4, limit=9)
    ]
    torch.manual_seed(1)
    wanted = theirs(list(image), targets)
    torch.manual_seed(1)
    found = ours.losses(image, label)
    assert {f"loss_{name}" for name in found if name not in ("rpn_box_reg", "objectness")} <= set(wanted)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(wanted[f"loss_{name}"].item(), abs=1e-5)


@torch.no_grad()
def test_boxes_are_clipped_to_the_image_without_padding(pair):
    """Boxes are clipped to the image, not to its padded size."""
    ours = pair[1].eval()
    (found,) = ours.instances(torch.randn(1, 3, 71, 67))
    assert found.masks.shape[1:] == (71, 67)
    assert (found.boxes.amax(dim=0) <= torch.tensor([71, 67, 71, 67])).all()
    assert found.boxes[:, 3].max() > 60


def test_losses_and_forward_do_not_depend_on_the_mode(toy):
    model = toy("mask_rcnn_vit_tiny_fpn", drop_path=0.0)
    image, label = torch.randn(1, 2, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.long)
    label[..., 10:40, 10:50] = 1

    def told():
        torch.manual_seed(2)
        return [loss.item() for loss in model.losses(image, label).values()], model(image)

    (losses, logits), (losses_eval, logits_eval) = (told() for model.training in (True, False))
    assert losses == losses_eval
    assert torch.equal(logits, logits_eval)
    assert model.rpn.training
    assert model.roi_heads.training


def test_invalid_options_raise():
    with pytest.raises(ConfigError, match="anchor_sizes has 3 lists, expected 5"):
        parse_options("mask_rcnn_resnet_50_fpn", {"anchor_sizes": [[8], [16], [32]]})
    with pytest.raises(ConfigError, match="the same number of sizes for every level"):
        parse_options("mask_rcnn_resnet_50_fpn", {"anchor_sizes": [[8], [16], [32], [64], [64, 128]]})
    with pytest.raises(ConfigError, match="anchor_sizes has 5 lists, expected 1"):
        parse_options("mask_rcnn_resnet_50_c4", {"anchor_sizes": [[8]] * 5})
    with pytest.raises(ConfigError, match="cannot be dilated, as feature_map 'dc5' requires"):
        parse_options("mask_rcnn_resnet_50_dc5", {"block": "basic"})
    with pytest.raises(ModelError, match="classes: found 1, expected 2 or more"):
        build_model("mask_rcnn_resnet_50_c4", in_channels=1, num_classes=1, depths=[1] * 4, block="basic")


def test_c4_shares_its_fifth_stage(toy):
    model = toy("mask_rcnn_resnet_50_c4")
    stage = model.roi_heads.box_head.layer4
    names = [name for name in model.state_dict() if "layer4" in name]
    assert all(name.startswith("roi_heads.box_head.layer4.") for name in names)
    image, label = torch.randn(1, 2, 48, 48), torch.zeros(1, 1, 48, 48, dtype=torch.long)
    label[..., 8:30, 8:40] = 1
    model.losses(image, label)["mask"].backward()
    assert stage[0].conv1.weight.grad.abs().sum() > 0


def test_image_without_instances_keeps_c4_statistics_finite(toy):
    model = toy("mask_rcnn_resnet_50_c4")
    model.losses(torch.randn(1, 2, 48, 48), torch.zeros(1, 1, 48, 48, dtype=torch.long))
    assert all(buffer.isfinite().all() for buffer in model.buffers())
