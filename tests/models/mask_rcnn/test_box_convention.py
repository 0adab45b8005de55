"""Anchors and pooled regions in the convention of Detectron2."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from medseg.errors import ConfigError
from medseg.models import build_model, parse_options
from medseg.models.backbones.resnet import resnet
from medseg.models.mask_rcnn.box_convention import AlignedRoIAlign, ExactAnchors


def test_exact_anchors_have_the_area_and_ratio_that_they_are_named_after():
    anchors = ExactAnchors(((32, 64),), ((0.5, 1.0, 2.0),)).generate_anchors([32, 64], [0.5, 1.0, 2.0])
    corners = anchors.tolist()
    wanted = [(size, ratio) for ratio in (0.5, 1.0, 2.0) for size in (32, 64)]
    for (left, top, right, bottom), (size, ratio) in zip(corners, wanted, strict=True):
        width, height = right - left, bottom - top
        assert (width * height, height / width) == (pytest.approx(size**2), pytest.approx(ratio))
        assert (left, top) == (-right, -bottom)


def test_exact_anchors_are_as_far_apart_as_the_stride_of_their_map():
    """An image of 160 rows has 3 rows on the map of stride 64, which pooling rounded up."""
    generator = ExactAnchors(((32,), (64,)), ((1.0,),) * 2)
    maps = [torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 3, 2)]
    found = generator(ImageList(torch.zeros(2, 3, 160, 128), [(160, 128), (150, 128)]), maps)
    assert len(found) == 2
    centres = (found[0][:, :2] + found[0][:, 2:]) / 2
    assert centres[:20].view(5, 4, 2)[:, 0, 1].tolist() == [0, 32, 64, 96, 128]
    assert centres[20:].view(3, 2, 2).tolist() == [[[64 * x, 64 * y] for x in range(2)] for y in range(3)]


def test_a_region_is_the_mean_of_the_voxels_in_it():
    """On a map of stride 4 whose values are their own positions, each cell has the position of its centre."""
    rows = torch.arange(16.0)[:, None].expand(16, 16)
    pool = AlignedRoIAlign({"0": 4}, 2)
    box = torch.tensor([[8.0, 16.0, 40.0, 48.0]])  # columns 2 to 10, rows 4 to 12 of the map
    found = pool({"0": torch.stack([rows, rows.T])[None]}, [box], [(64, 64)])
    assert found[0, 0].tolist() == [[5.5, 5.5], [9.5, 9.5]]
    assert found[0, 1].tolist() == [[3.5, 7.5], [3.5, 7.5]]


def test_large_regions_are_pooled_from_coarse_maps():
    maps = {
        str(level): torch.full((2, 1, 64 // 2**level, 64 // 2**level), float(level)) for level in range(4)
    }
    pool = AlignedRoIAlign({"0": 4, "1": 8, "2": 16, "3": 32}, 3)
    sizes = [20.0, 111.0, 113.0, 223.0, 225.0, 450.0, 2000.0]
    boxes = torch.tensor([[0.0, 0.0, size, size] for size in sizes])
    found = pool(maps, [boxes, boxes[:1]], [(256, 256)] * 2)
    expected = [min(max(math.floor(4 + math.log2(size / 224)) - 2, 0), 3) for size in [*sizes, sizes[0]]]
    assert found.shape == (8, 1, 3, 3)
    assert found[:, 0, 1, 1].tolist()[:5] == expected[:5] == [0, 0, 1, 1, 2]
    assert found[7].unique().tolist() == [0]


def test_no_regions_are_pooled_to_none():
    pool = AlignedRoIAlign({"0": 16}, 7)
    assert pool({"0": torch.zeros(1, 4, 8, 8)}, [torch.zeros(0, 4)], [(128, 128)]).shape == (0, 4, 7, 7)


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_resnet_50_fpn",
        "mask_rcnn_vit_tiny_fpn",
        pytest.param("mask_rcnn_resnet_50_c4", marks=pytest.mark.slow),
    ],
)
def test_models_train_and_detect_in_this_convention(toy, name):
    model = toy(name, in_channels=1, box_convention="detectron2")
    label = torch.zeros(1, 1, 64, 64, dtype=torch.int64)
    label[0, 0, 10:40, 20:50] = 1
    losses = model.losses(torch.randn(1, 1, 64, 64), label)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 3, 64, 64)


def test_the_stride_is_in_the_chosen_kernel():
    for kernel, strides in (("3x3", (1, 2)), ("1x1", (2, 1))):
        options = parse_options("mask_rcnn_resnet_50_fpn", {"strided_kernel": kernel})
        with torch.device("meta"):
            network = resnet(options, 3)
        for stage in (network.layer2, network.layer3, network.layer4):
            assert (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) == strides
            assert stage[0].downsample[0].stride == (2, 2)
            assert (stage[1].conv1.stride, stage[1].conv2.stride) == ((1, 1), (1, 1))
    with pytest.raises(ConfigError, match="block 'basic' has no 1x1 kernel"):
        parse_options("fcn_resnet_50", {"block": "basic", "strided_kernel": "1x1"})


def test_the_first_block_of_dc5_is_dilated_on_request():
    small = {"depths": [1, 1, 1, 2], "width_per_group": 4}
    for dilated, expected in ((False, [1, 2]), (True, [2, 2])):
        with torch.device("meta"):
            model = build_model(
                "mask_rcnn_resnet_50_dc5", in_channels=1, num_classes=2, dilate_first_block=dilated, **small
            )
        kernels = [block.conv2 for block in model.backbone.body.layer4]
        assert [kernel.dilation[0] for kernel in kernels] == expected
        assert [kernel.padding for kernel in kernels] == [kernel.dilation for kernel in kernels]
        assert isinstance(kernels[0], nn.Conv2d)


@torch.no_grad()
@pytest.mark.parametrize("convention", ["torchvision", "detectron2"])
def test_a_small_first_image_does_not_change_the_strides(toy, convention):
    """40 x 40 voxels are padded to 64 x 64, so the strides do not follow from the sizes of image and map."""
    model, other = (
        toy("mask_rcnn_resnet_50_fpn", in_channels=1, box_convention=convention).eval() for _ in range(2)
    )
    image = torch.randn(1, 1, 128, 128)
    expected = other(image)
    model(torch.randn(1, 1, 40, 40))
    assert torch.equal(model(image), expected)
    assert (expected - expected.mean(dim=(2, 3), keepdim=True)).abs().max() > 0  # something was found
