"""Every name at its real size, on tensors without storage: its parameters are the published ones."""

from __future__ import annotations

import pytest
import torch

from medseg.models import MODELS, build_model, list_models

PUBLISHED = {
    ("fcn_resnet_50", 21): 35_322_218,
    ("fcn_resnet_101", 21): 54_314_346,
    ("maskformer_resnet_18", 150): 24_700_119,
    ("maskformer_resnet_34", 150): 34_808_279,
    ("maskformer_resnet_50", 150): 41_307_863,
    ("maskformer_resnet_101", 150): 60_299_991,
    ("mask2former_resnet_18", 150): 30_972_567,
    ("mask2former_resnet_34", 150): 41_080_727,
    ("mask2former_resnet_50", 150): 44_041_367,
    ("mask2former_resnet_101", 150): 63_033_495,
    ("mask2former_swin_tiny", 150): 47_439_633,
    ("mask2former_swin_small", 150): 68_757_537,
    ("mask2former_swin_base", 150): 106_922_191,
    ("mask2former_swin_large", 150): 215_488_779,
}

UNUSED_CLASSIFIER = 2048 * 1000 + 1000
WITH_CLASSIFIER = {("mask_rcnn_resnet_50_fpn", 3): 46_037_607, ("mask_rcnn_resnet_101_fpn", 21): 65_126_611}

MILLIONS = {
    "mask_rcnn_vit_tiny_fpn": (26.07, 26),
    "mask_rcnn_vit_adapter_tiny_fpn": (28.06, 28),
    "mask_rcnn_vit_small_fpn": (43.74, None),  # the published 42 M does not fit its own configuration
    "mask_rcnn_vit_adapter_small_fpn": (47.79, 48),
    "mask_rcnn_vit_adapter_small": (45.43, 45),
    "mask_rcnn_vit_base_fpn": (113.58, 114),
    "mask_rcnn_vit_adapter_base_fpn": (120.17, 120),
    "mask_rcnn_vit_large_fpn": (337.24, 337),
    "mask_rcnn_vit_adapter_large_fpn": (347.88, 348),
}


def count(name, in_channels, num_classes):
    with torch.device("meta"):
        model = build_model(name, in_channels=in_channels, num_classes=num_classes)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_catalog_size_equals_the_model(name):
    size = MODELS.get(name).size
    assert size is not None
    assert count(name, size.in_channels, size.num_classes) == size.parameters


def catalogued(name):
    size = MODELS.get(name).size
    assert size.in_channels == 3
    return size.parameters, size.num_classes


@pytest.mark.parametrize("key", PUBLISHED, ids=lambda key: key[0])
def test_sizes_equal_published_ones(key):
    assert catalogued(key[0]) == (PUBLISHED[key], key[1])


@pytest.mark.parametrize("key", WITH_CLASSIFIER, ids=lambda key: key[0])
def test_sizes_equal_published_ones_without_classifier(key):
    assert catalogued(key[0]) == (WITH_CLASSIFIER[key] - UNUSED_CLASSIFIER, key[1])


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_round_to_published_millions(name):
    computed, published = MILLIONS[name]
    parameters, classes = catalogued(name)
    assert classes == 81
    assert round(parameters / 1e6, 2) == computed
    assert published in (None, round(parameters / 1e6))


@pytest.mark.parametrize(
    ("name", "body"), [("mask_rcnn_resnet_50_c4", 23_508_032), ("mask_rcnn_resnet_101_c4", 42_500_160)]
)
def test_parts_of_c4_sum_to_the_total(name, body):
    proposals = (1024 * 1024 * 9 + 1024) + (1024 + 1) * 15 + (1024 + 1) * 60
    boxes = (2048 + 1) * 81 + (2048 + 1) * 81 * 4
    masks = (2048 * 256 * 4 + 256) + (256 + 1) * 81
    assert catalogued(name) == (body + proposals + boxes + masks, 81)


@pytest.mark.parametrize(
    ("name", "body"), [("mask_rcnn_resnet_50_dc5", 23_508_032), ("mask_rcnn_resnet_101_dc5", 42_500_160)]
)
def test_parts_of_dc5_sum_to_the_total(name, body):
    proposals = (2048 * 2048 * 9 + 2048) + (2048 + 1) * 15 + (2048 + 1) * 60
    boxes = (2048 * 49 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 81 * 5
    masks = (2048 * 9 + 1) * 256 + 3 * (256 * 9 + 1) * 256 + (256 * 4 + 1) * 256 + (256 + 1) * 81
    assert catalogued(name) == (body + proposals + boxes + masks, 81)


def test_resnext_size_equals_torchvision():
    from torchvision.models import resnext101_32x8d

    with torch.device("meta"):
        body = resnext101_32x8d()
    body.fc = torch.nn.Identity()
    difference = sum(p.numel() for p in body.parameters()) - 23_508_032
    detectron2 = 44_408_403 - (256 + 1) * 6 * 5  # ResNet-50 with 81 classes, and one anchor size, not three
    assert catalogued("mask_rcnn_resnext_101_32x8d_fpn") == (detectron2 + difference, 81)
