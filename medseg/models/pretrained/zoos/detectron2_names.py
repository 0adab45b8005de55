"""Mask R-CNN of Detectron2's model zoo (Wu et al. 2019, https://github.com/facebookresearch/detectron2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medseg.models.pretrained.zoos.class_names import known_classes
from medseg.models.pretrained.zoos.mask_rcnn_widths import mask_rcnn_widths
from medseg.models.pretrained.zoos.published_model import (
    IMAGENET,
    NameTable,
    PixelStatistics,
    PublishedModel,
    count_in,
)

ZOO = "Detectron2"

_BODY = r"backbone\.(?:bottom_up\.)?"
_RATIOS = 3  # aspect ratios of the anchors
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
_SINGLE_LEVEL_ANCHORS = ((32, 64, 128, 256, 512),)
_CAFFE = PixelStatistics(IMAGENET.mean, (1.0, 1.0, 1.0))


def _in_block(place: str, block: str, parts: re.Match[str]) -> str:
    """Return the name of a tensor of a residual block from the groups ``layer`` and ``rest``."""
    layer, rest = parts["layer"], parts["rest"]
    norm = rest.removeprefix("norm.") if rest.startswith("norm.") else None
    if layer == "shortcut":
        return f"{place}{block}.downsample.{'0.' + rest if norm is None else '1.' + norm}"
    number = layer.removeprefix("conv")
    return f"{place}{block}.{f'conv{number}.{rest}' if norm is None else f'bn{number}.{norm}'}"


_LAYER = r"(?P<layer>conv[123]|shortcut)\.(?P<rest>weight|norm\.\w+)"

NAMES = NameTable(
    renames=(
        (rf"{_BODY}stem\.conv1\.weight", "backbone.body.conv1.weight"),
        (rf"{_BODY}stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
        (
            rf"{_BODY}res(?P<stage>[2-5])\.(?P<block>\d+)\.{_LAYER}",
            lambda m: _in_block("backbone.body.", f"layer{int(m['stage']) - 1}.{m['block']}", m),
        ),
        (
            rf"roi_heads\.res5\.(?P<block>\d+)\.{_LAYER}",
            lambda m: _in_block("roi_heads.box_head.", f"layer4.{m['block']}", m),
        ),
        (
            r"backbone\.fpn_(lateral|output)([2-5])\.(weight|bias)",
            lambda m: (
                f"backbone.fpn.{'inner' if m[1] == 'lateral' else 'layer'}_blocks.{int(m[2]) - 2}.0.{m[3]}"
            ),
        ),
        (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (
            r"roi_heads\.box_head\.fc([12])\.(\w+)",
            lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}",
        ),
        (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
        (
            r"roi_heads\.mask_head\.mask_fcn(\d+)\.(\w+)",
            lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
        ),
        (r"roi_heads\.mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_heads\.mask_head\.predictor\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    ),
    dropped=(
        (r"pixel_(mean|std)", "part of the preprocessing"),
        (r"proposal_generator\.anchor_generator\.cell_anchors\.\d+", "computed from model.anchor_sizes"),
    ),
)


def is_detectron2(names: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of a detector of Detectron2."""
    return "proposal_generator.rpn_head.conv.weight" in names and any(
        re.fullmatch(rf"{_BODY}stem\.conv1\.weight", name) for name in names
    )


def from_detectron2(state: Mapping[str, Tensor]) -> PublishedModel:
    """Return Mask R-CNN of Detectron2 by the names of medseg.

    Colours are stored in the order blue, green, red; the last class is the background, which has no box and no mask; and the
    anchors of one level are ordered by size, then ratio. The published ResNets, but not the ResNeXt, have their strides in
    the 1×1 convolutions and are normalised by the mean alone.

    Args:
        state: Tensors by the names of Detectron2.

    Returns:
        The model.

    Raises:
        ModelError: A tensor has no counterpart in medseg.
    """
    tensors, left = NAMES.rename(state, ZOO)
    single = not any(name.startswith("backbone.fpn.") for name in tensors)
    c4 = "roi_heads.box_head.layer4.0.conv1.weight" in tensors
    inner = tensors["backbone.body.layer1.0.conv2.weight"]
    groups = inner.shape[0] // inner.shape[1]
    classes = len(tensors["roi_heads.box_predictor.cls_score.weight"])
    _order_classes(tensors)
    _order_anchors(tensors)
    stem = "backbone.body.conv1.weight"
    tensors[stem] = tensors[stem].flip(1)
    options: dict[str, Any] = {
        "block": "bottleneck",
        "depths": _depths(tensors, c4=c4),
        "groups": groups,
        "width_per_group": inner.shape[0] // groups,
        "strided_kernel": "1x1" if groups == 1 else "3x3",
        "box_convention": "detectron2",
        "anchor_sizes": _SINGLE_LEVEL_ANCHORS if single else _PYRAMID_ANCHORS,
    }
    if not c4:
        options |= mask_rcnn_widths(tensors, None if single else "backbone.fpn.inner_blocks.0.0")
    if single:
        options["feature_map"] = "c4" if c4 else "dc5"
        if not c4:
            options["dilate_first_block"] = True
    return PublishedModel(
        zoo=ZOO,
        model=_registered(options, single),
        options=options,
        advice={"norm": "frozen"} | ({} if single else {"proposals_train": 1000}),
        tensors=tensors,
        stems=(stem,),
        statistics=_CAFFE if groups == 1 else IMAGENET,
        classes=known_classes(classes - 1),
        left=left,
    )


def _registered(options: Mapping[str, Any], single: bool) -> str:
    kind = "resnext_101_32x8d" if options["groups"] > 1 else "resnet_50"
    if options["groups"] == 1 and options["depths"][2] > 6:  # more blocks than a ResNet-50
        kind = "resnet_101"
    return f"mask_rcnn_{kind}_{options['feature_map'] if single else 'fpn'}"


def _depths(tensors: Mapping[str, Tensor], *, c4: bool) -> tuple[int, ...]:
    last = r"roi_heads\.box_head\.layer4" if c4 else r"backbone\.body\.layer4"
    stages = [rf"backbone\.body\.layer{number}" for number in (1, 2, 3)]
    return tuple(count_in(tensors, rf"{stage}\.(\d+)\.") for stage in (*stages, last))


def _order_classes(tensors: dict[str, Tensor]) -> None:
    """Move the background to the front, and give it boxes and masks of zeros, which are never used."""
    for kind in ("weight", "bias"):
        name = f"roi_heads.box_predictor.cls_score.{kind}"
        tensors[name] = tensors[name].roll(1, dims=0)
        for name, rows in (
            (f"roi_heads.box_predictor.bbox_pred.{kind}", 4),
            (f"roi_heads.mask_predictor.mask_fcn_logits.{kind}", 1),
        ):
            found = tensors[name]
            tensors[name] = torch.cat([found.new_zeros((rows, *found.shape[1:])), found])


def _order_anchors(tensors: dict[str, Tensor]) -> None:
    """Order the anchors of a level by ratio, then size, instead of by size, then ratio."""
    sizes = len(tensors["rpn.head.cls_logits.weight"]) // _RATIOS
    for part, values in (("cls_logits", 1), ("bbox_pred", 4)):
        for kind in ("weight", "bias"):
            name = f"rpn.head.{part}.{kind}"
            by_size = tensors[name].unflatten(0, (sizes, _RATIOS, values))
            tensors[name] = by_size.transpose(0, 1).flatten(0, 2)
