"""Weights of medseg's models by the names and in the order of a model zoo, written as the zoo writes its files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_RATIOS = 3

_DETECTRON2 = (
    (r"backbone\.body\.conv1\.", r"BOTTOM.stem.conv1."),
    (r"backbone\.body\.bn1\.", r"BOTTOM.stem.conv1.norm."),
    (r"roi_heads\.box_head\.layer4\.", r"roi_heads.res5."),
    (r"backbone\.body\.layer1\.", r"BOTTOM.res2."),
    (r"backbone\.body\.layer2\.", r"BOTTOM.res3."),
    (r"backbone\.body\.layer3\.", r"BOTTOM.res4."),
    (r"backbone\.body\.layer4\.", r"BOTTOM.res5."),
    (r"\.downsample\.0\.", r".shortcut."),
    (r"\.downsample\.1\.", r".shortcut.norm."),
    (r"\.bn([123])\.", r".conv\1.norm."),
    (r"backbone\.fpn\.inner_blocks\.0\.0\.", "backbone.fpn_lateral2."),
    (r"backbone\.fpn\.inner_blocks\.1\.0\.", "backbone.fpn_lateral3."),
    (r"backbone\.fpn\.inner_blocks\.2\.0\.", "backbone.fpn_lateral4."),
    (r"backbone\.fpn\.inner_blocks\.3\.0\.", "backbone.fpn_lateral5."),
    (r"backbone\.fpn\.layer_blocks\.0\.0\.", "backbone.fpn_output2."),
    (r"backbone\.fpn\.layer_blocks\.1\.0\.", "backbone.fpn_output3."),
    (r"backbone\.fpn\.layer_blocks\.2\.0\.", "backbone.fpn_output4."),
    (r"backbone\.fpn\.layer_blocks\.3\.0\.", "backbone.fpn_output5."),
    (r"rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"roi_heads\.mask_head\.0\.0\.", "roi_heads.mask_head.mask_fcn1."),
    (r"roi_heads\.mask_head\.1\.0\.", "roi_heads.mask_head.mask_fcn2."),
    (r"roi_heads\.mask_head\.2\.0\.", "roi_heads.mask_head.mask_fcn3."),
    (r"roi_heads\.mask_head\.3\.0\.", "roi_heads.mask_head.mask_fcn4."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
)

_VIT_ADAPTER = (
    (r"^backbone\.body\.vit\.", "backbone."),
    (
        r"^backbone\.body\.prior\.stem\.(\d)\.([01])\.",
        lambda m: f"backbone.spm.stem.{3 * int(m[1]) + int(m[2])}.",
    ),
    (r"^backbone\.body\.prior\.stages\.(\d)\.", lambda m: f"backbone.spm.conv{int(m[1]) + 2}."),
    (r"^backbone\.body\.prior\.projections\.(\d)\.", lambda m: f"backbone.spm.fc{int(m[1]) + 1}."),
    (r"^backbone\.body\.injectors\.(\d)\.", r"backbone.interactions.\1.injector."),
    (r"^backbone\.body\.extractors\.(\d)\.0\.", r"backbone.interactions.\1.extractor."),
    (
        r"^backbone\.body\.extractors\.(\d)\.([12])\.",
        lambda m: f"backbone.interactions.{m[1]}.extra_extractors.{int(m[2]) - 1}.",
    ),
    (r"\.feature_norm\.", ".feat_norm."),
    (r"\.attention\.", ".attn."),
    (r"\.feed_norm\.", ".ffn_norm."),
    (r"\.feed\.depthwise\.", ".ffn.dwconv.dwconv."),
    (r"\.feed\.fc", ".ffn.fc"),
    (r"^backbone\.body\.norms\.(\d)\.", lambda m: f"backbone.norm{int(m[1]) + 1}."),
    (r"^backbone\.body\.resizes\.0\.", "backbone.up1."),
    (r"^backbone\.body\.resizes\.1\.", "backbone.up2."),
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.neck\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.neck\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^backbone\.neck\.projections\.(\d)\.", r"neck.convs.\1.conv."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
)


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a Mask R-CNN with frozen norms on a ResNet as Detectron2 stores them."""
    bottom = "backbone.bottom_up" if "backbone.fpn.inner_blocks.0.0.weight" in state else "backbone"
    result = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name == "backbone.body.conv1.weight":
            tensor = tensor[:, [2, 1, 0]]
        elif "cls_score" in name:
            tensor = torch.cat([tensor[1:], tensor[:1]])
        elif "box_predictor.bbox_pred" in name:
            tensor = tensor[4:]
        elif "mask_fcn_logits" in name:
            tensor = tensor[1:]
        elif name.startswith(("rpn.head.cls_logits", "rpn.head.bbox_pred")):
            tensor = _by_size(tensor, 1 if "cls" in name else 4)
        for pattern, replacement in _DETECTRON2:
            name = re.sub(pattern, replacement, name)
        result[name.replace("BOTTOM", bottom)] = tensor.clone()
    return result


def _by_size(tensor: Tensor, values: int) -> Tensor:
    """Order anchors by size, then ratio, one by one."""
    sizes = len(tensor) // values // _RATIOS
    rows = [
        tensor[(ratio * sizes + size) * values + value]
        for size in range(sizes)
        for ratio in range(_RATIOS)
        for value in range(values)
    ]
    return torch.stack(rows)


def write_detectron2(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a ``model_final.pkl`` as Detectron2's model zoo has them."""
    content = {
        "model": {name: np.asarray(tensor) for name, tensor in tensors.items()},
        "__author__": "Detectron2 Model Zoo",
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def to_vit_adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a Mask R-CNN on a vision transformer as MMDetection stores them, without scales of branches."""
    result = {}
    for name, tensor in state.items():
        if name.endswith("vit.pos_embed"):
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        elif "cls_score" in name:
            tensor = torch.cat([tensor[1:], tensor[:1]])
        elif ".attention.sampling_offsets." in name:
            places = torch.arange(len(tensor)).view(-1, 2)[:, [1, 0]].flatten()
            tensor = tensor[places]
        for pattern, replacement in _VIT_ADAPTER:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor.clone()
    return result


def write_mmdetection(
    path: Path, tensors: Mapping[str, Tensor], classes: tuple[str, ...] | None = None
) -> Path:
    """Write a checkpoint of MMDetection 2."""
    meta = {"mmdet_version": "2.22.0", "epoch": 36, "config": "model = dict()"}
    if classes is not None:
        meta["CLASSES"] = classes
    torch.save({"meta": meta, "state_dict": dict(tensors), "optimizer": {}}, path)
    return path


def to_first_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a Mask R-CNN by the names of torchvision's first release, as its published file has them."""
    result = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        result[name] = tensor.clone()
    return result


def read_table(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a table that `write_tables.py` wrote."""
    rows: dict[str, tuple[int, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        template, *sizes = line.split()
        shape = () if sizes == ["scalar"] else tuple(map(int, sizes))
        for name in _expanded(template):
            assert name not in rows, name
            rows[name] = shape
    return rows


def _expanded(template: str) -> list[str]:
    match = re.search(r"\{([^}]*)\}", template)
    if match is None:
        return [template]
    inside = match[1]
    if ".." in inside:
        first, last = map(int, inside.split(".."))
        values = [str(number) for number in range(first, last + 1)]
    else:
        values = inside.split(",")
    start, end = template[: match.start()], template[match.end() :]
    return [name for value in values for name in _expanded(start + value + end)]
