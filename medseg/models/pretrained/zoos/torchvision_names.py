"""Mask R-CNN and FCN of torchvision's model zoo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medseg.errors import ModelError
from medseg.models.pretrained.zoos.class_names import BACKGROUND, VOC, coco_by_number
from medseg.models.pretrained.zoos.mask_rcnn_widths import mask_rcnn_widths
from medseg.models.pretrained.zoos.published_model import IMAGENET, NameTable, PublishedModel, count_in

ZOO = "torchvision"

_NORM_EPSILON = 1e-5
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))

# The published file has the names of the first release with a Mask R-CNN, which torchvision converts when it loads them.
MASK_RCNN_NAMES = NameTable(
    renames=(
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (
            r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)",
            lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
        ),
        (
            r"(backbone\.body\.(?:conv1|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))\.\w+)",
            r"\1",
        ),
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+\.0\.(?:weight|bias))", r"\1"),
        (r"(rpn\.head\.(?:conv\.0\.0|cls_logits|bbox_pred)\.(?:weight|bias))", r"\1"),
        (r"(roi_heads\.box_head\.fc[67]\.(?:weight|bias))", r"\1"),
        (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.(?:weight|bias))", r"\1"),
        (r"(roi_heads\.mask_head\.\d+\.0\.(?:weight|bias))", r"\1"),
        (r"(roi_heads\.mask_predictor\.(?:conv5_mask|mask_fcn_logits)\.(?:weight|bias))", r"\1"),
    ),
)

FCN_NAMES = NameTable(
    renames=(
        (
            r"(backbone\.(?:conv1|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))\.\w+)",
            r"\1",
        ),
        (r"((?:aux_)?classifier\.[014]\.\w+)", r"\1"),
    ),
)


def is_torchvision_mask_rcnn(names: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of a Mask R-CNN of torchvision."""
    return {"backbone.body.conv1.weight", "roi_heads.mask_predictor.mask_fcn_logits.weight"} <= names.keys()


def is_torchvision_fcn(names: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of an FCN of torchvision."""
    return {"backbone.conv1.weight", "classifier.0.weight", "classifier.4.weight"} <= names.keys()


def from_torchvision_mask_rcnn(state: Mapping[str, Tensor]) -> PublishedModel:
    """Return Mask R-CNN of torchvision by the names of medseg.

    The published network divides by the square root of the variance, without the small number that batch norm adds to it
    since; it is therefore subtracted from the variances.

    Args:
        state: Tensors by the names of torchvision, of its first or of its present releases.

    Returns:
        The model.

    Raises:
        ModelError: A tensor has no counterpart in medseg, as in the second version of the network.
    """
    if any(name.startswith("rpn.head.conv.1.") for name in state):
        raise ModelError(
            "found version 2 of torchvision's Mask R-CNN, expected the first one, because medseg does not offer the other "
            "heads of version 2. Use MaskRCNN_ResNet50_FPN_Weights.COCO_V1."
        )
    tensors, left = MASK_RCNN_NAMES.rename(state, ZOO)
    if "rpn.head.conv.weight" in state:
        for name, tensor in tensors.items():
            if name.endswith(".running_var"):
                tensors[name] = tensor - _NORM_EPSILON
    classes = coco_by_number()
    known = len(tensors["roi_heads.box_predictor.cls_score.bias"]) == len(classes)
    options = _resnet_options(tensors, "backbone.body.") | {
        "strided_kernel": "3x3",
        "box_convention": "torchvision",
        "anchor_sizes": _PYRAMID_ANCHORS,
        **mask_rcnn_widths(tensors, "backbone.fpn.inner_blocks.0.0"),
    }
    return PublishedModel(
        zoo=ZOO,
        model="mask_rcnn_resnet_50_fpn",
        options=options,
        advice={"norm": "frozen"},
        tensors=tensors,
        stems=("backbone.body.conv1.weight",),
        statistics=IMAGENET,
        classes=classes if known else None,
        left=left,
    )


def from_torchvision_fcn(state: Mapping[str, Tensor]) -> PublishedModel:
    """Return an FCN of torchvision by the names of medseg, which are the same.

    Args:
        state: Tensors by the names of torchvision.

    Returns:
        The model.

    Raises:
        ModelError: A tensor has no counterpart in medseg.
    """
    tensors, left = FCN_NAMES.rename(state, ZOO)
    classes = (BACKGROUND, *VOC)
    options = _resnet_options(tensors, "backbone.")
    return PublishedModel(
        zoo=ZOO,
        model=f"fcn_resnet_{'101' if options['depths'][2] > 6 else '50'}",
        options=options | {"auxiliary_head": "aux_classifier.4.weight" in tensors},
        tensors=tensors,
        stems=("backbone.conv1.weight",),
        statistics=IMAGENET,
        classes=classes if len(tensors["classifier.4.bias"]) == len(classes) else None,
        left=left,
    )


def _resnet_options(tensors: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    bottleneck = f"{place}layer1.0.conv3.weight" in tensors
    inner = tensors[f"{place}layer1.0.conv2.weight"]
    groups = inner.shape[0] // inner.shape[1] if bottleneck else 1
    start = re.escape(place)
    return {
        "block": "bottleneck" if bottleneck else "basic",
        "depths": tuple(count_in(tensors, rf"{start}layer{number}\.(\d+)\.") for number in (1, 2, 3, 4)),
        "groups": groups,
        "width_per_group": inner.shape[0] // groups,
    }
