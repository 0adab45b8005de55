"""Mask R-CNN of ViT-Adapter's model zoo (Chen et al. 2023, https://github.com/czczup/ViT-Adapter), trained with MMDetection."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medseg.models.pretrained.zoos.class_names import BACKGROUND, known_classes
from medseg.models.pretrained.zoos.mask_rcnn_widths import mask_rcnn_widths
from medseg.models.pretrained.zoos.published_model import (
    IMAGENET,
    NameTable,
    PixelStatistics,
    PublishedModel,
    count_in,
)

ZOO = "ViT-Adapter"

_VIT = "backbone.body.vit."
_LEVELS, _POINTS = 3, 4  # maps of the prior that an injector sees, and sampling points per head and map
_HEAD_WIDTH = 64  # of the attention of every published vision transformer
_PATCH = 16
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
_AUGREG = PixelStatistics((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_AUGREG_WIDTH = (
    1024  # the large transformers start from AugReg, whose pixels are scaled to -1 to 1; the others from DeiT
)

_PARTS = {"feat_norm": "feature_norm", "attn": "attention", "ffn_norm": "feed_norm"}
_FEED = {"fc1": "fc1", "dwconv.dwconv": "depthwise", "fc2": "fc2"}


def _extractor(group: str, index: int, rest: str) -> str:
    feed = re.fullmatch(r"ffn\.(fc1|dwconv\.dwconv|fc2)\.(\w+)", rest)
    if feed is not None:
        return f"backbone.body.extractors.{group}.{index}.feed.{_FEED[feed[1]]}.{feed[2]}"
    part, _, tail = rest.partition(".")
    return f"backbone.body.extractors.{group}.{index}.{_PARTS.get(part, part)}.{tail}"


def _injector(group: str, rest: str) -> str:
    part, dot, tail = rest.partition(".")
    return f"backbone.body.injectors.{group}.{_PARTS.get(part, part)}{dot}{tail}"


_ATTENTION = r"attn\.(?:sampling_offsets|attention_weights|value_proj|output_proj)\.\w+"
_EXTRACTOR = rf"((?:query_norm|feat_norm|ffn_norm)\.\w+|{_ATTENTION}|ffn\.(?:fc1|dwconv\.dwconv|fc2)\.\w+)"
_INJECTOR = rf"(gamma|(?:query_norm|feat_norm)\.\w+|{_ATTENTION})"

NAMES = NameTable(
    renames=(
        (r"backbone\.(pos_embed|patch_embed\.proj\.\w+)", rf"{_VIT}\1"),
        (
            r"backbone\.(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.\w+)",
            rf"{_VIT}\1",
        ),
        (r"backbone\.(blocks\.\d+\.gamma[12])", rf"{_VIT}\1"),
        (r"backbone\.(level_embed|up\.\w+)", r"backbone.body.\1"),
        (
            r"backbone\.spm\.stem\.(\d)\.(\w+)",
            lambda m: f"backbone.body.prior.stem.{int(m[1]) // 3}.{int(m[1]) % 3}.{m[2]}",
        ),
        (
            r"backbone\.spm\.conv([234])\.([01])\.(\w+)",
            lambda m: f"backbone.body.prior.stages.{int(m[1]) - 2}.{m[2]}.{m[3]}",
        ),
        (
            r"backbone\.spm\.fc([1-4])\.(\w+)",
            lambda m: f"backbone.body.prior.projections.{int(m[1]) - 1}.{m[2]}",
        ),
        (rf"backbone\.interactions\.(\d+)\.injector\.{_INJECTOR}", lambda m: _injector(m[1], m[2])),
        (rf"backbone\.interactions\.(\d+)\.extractor\.{_EXTRACTOR}", lambda m: _extractor(m[1], 0, m[2])),
        (
            rf"backbone\.interactions\.(\d+)\.extra_extractors\.(\d+)\.{_EXTRACTOR}",
            lambda m: _extractor(m[1], int(m[2]) + 1, m[3]),
        ),
        (r"backbone\.norm([1-4])\.(\w+)", lambda m: f"backbone.body.norms.{int(m[1]) - 1}.{m[2]}"),
        (r"backbone\.up1\.(\d)\.(\w+)", r"backbone.body.resizes.0.\1.\2"),
        (r"backbone\.up2\.(\w+)", r"backbone.body.resizes.1.\1"),
        (
            r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(\w+)",
            lambda m: f"backbone.neck.{'inner' if m[1] == 'lateral' else 'layer'}_blocks.{m[2]}.0.{m[3]}",
        ),
        (r"neck\.convs\.(\d+)\.conv\.(\w+)", r"backbone.neck.projections.\1.\2"),
        (r"rpn_head\.rpn_conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
        (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (
            r"roi_head\.bbox_head\.shared_fcs\.([01])\.(\w+)",
            lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}.{m[2]}",
        ),
        (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
        (r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(\w+)", r"roi_heads.mask_head.\1.0.\2"),
        (r"roi_head\.mask_head\.upsample\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_head\.mask_head\.conv_logits\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    ),
)


def is_vit_adapter(names: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of a Mask R-CNN of MMDetection on a vision transformer."""
    return {"rpn_head.rpn_conv.weight", "backbone.patch_embed.proj.weight"} <= names.keys()


def from_vit_adapter(state: Mapping[str, Tensor], classes: tuple[str, ...] | None) -> PublishedModel:
    """Return Mask R-CNN on a vision transformer by the names of medseg.

    The last class is the background; sampling offsets are stored column first; the scale of each residual branch
    (``gamma1``, ``gamma2``) is multiplied into the last linear layer of the branch; and the position of the class token,
    which the network does not use, is left.

    Args:
        state: Tensors by the names of MMDetection.
        classes: Names of the foreground classes, as the checkpoint lists them; None if it does not.

    Returns:
        The model.

    Raises:
        ModelError: A tensor has no counterpart in medseg.
    """
    tensors, left = NAMES.rename(state, ZOO)
    left |= _fold_scales(tensors)
    left |= _drop_class_token(tensors)
    for name, tensor in tensors.items():
        if ".attention.sampling_offsets." in name:
            tensors[name] = tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    for kind in ("weight", "bias"):
        name = f"roi_heads.box_predictor.cls_score.{kind}"
        tensors[name] = tensors[name].roll(1, dims=0)
    foreground = len(tensors["roi_heads.mask_predictor.mask_fcn_logits.bias"])
    names = (BACKGROUND, *classes) if classes and len(classes) == foreground else known_classes(foreground)
    options = _options(tensors)
    stems = [f"{_VIT}patch_embed.proj.weight"]
    stems += ["backbone.body.prior.stem.0.0.weight"] if options["adapter"] else []
    return PublishedModel(
        zoo=ZOO,
        model=_registered(options),
        options=options,
        advice={"proposals_train": 1000},
        tensors=tensors,
        stems=tuple(stems),
        statistics=_AUGREG if options["width"] == _AUGREG_WIDTH else IMAGENET,
        classes=names,
        left=left,
    )


def _fold_scales(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Multiply the scales of residual branches into their last linear layers, and return their names in the zoo."""
    folded = {}
    for name in [name for name in tensors if re.search(r"\.gamma[12]$", name) and _VIT in name]:
        scale = tensors.pop(name)
        block, _, which = name.rpartition(".")
        layer = f"{block}.{'attn.proj' if which == 'gamma1' else 'mlp.fc2'}"
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * scale[:, None]
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"] * scale
        folded[name.replace(_VIT, "backbone.")] = f"multiplied into {layer}"
    return folded


def _drop_class_token(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Leave the first position, that of the class token, if there is one."""
    name = f"{_VIT}pos_embed"
    count = tensors[name].shape[1]
    if math.isqrt(count) ** 2 == count:
        return {}
    tensors[name] = tensors[name][:, 1:]
    return {"backbone.pos_embed[:, :1]": "position of the class token, which the network does not use"}


def _options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width = tensors[f"{_VIT}patch_embed.proj.weight"].shape[0]
    adapter = "backbone.body.level_embed" in tensors
    pyramid = "backbone.neck.inner_blocks.0.0.weight" in tensors
    options: dict[str, Any] = {
        "width": width,
        "depth": count_in(tensors, rf"{re.escape(_VIT)}blocks\.(\d+)\."),
        "attention_heads": max(1, width // _HEAD_WIDTH),
        "attention_window": 14,
        "window_padding": "zeros",
        "pretrain_size": math.isqrt(tensors[f"{_VIT}pos_embed"].shape[1]) * _PATCH,
        "adapter": adapter,
        "feature_pyramid": pyramid,
        "box_convention": "detectron2",
        "anchor_sizes": _PYRAMID_ANCHORS,
    }
    first = "backbone.neck." + ("inner_blocks.0.0" if pyramid else "projections.0")
    options |= mask_rcnn_widths(tensors, first)
    if adapter:
        attention = "backbone.body.injectors.0.attention."
        weights = len(tensors[f"{attention}attention_weights.bias"])
        options["deform_heads"] = weights // (_LEVELS * _POINTS)
        options["deform_ratio"] = len(tensors[f"{attention}value_proj.bias"]) / width
        options["prior_channels"] = len(tensors["backbone.body.prior.stem.0.0.weight"])
    return options


def _registered(options: Mapping[str, Any]) -> str:
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
    size = sizes.get(options["width"], "tiny")
    kind = "vit_adapter" if options["adapter"] else "vit"
    pyramid = "_fpn" if options["feature_pyramid"] or not options["adapter"] else ""
    size = size if pyramid else "small"  # the only one without a pyramid
    return f"mask_rcnn_{kind}_{size}{pyramid}"
