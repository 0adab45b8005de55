"""The widths of a Mask R-CNN, read from its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medseg.models.pretrained.zoos.published_model import count_in


def mask_rcnn_widths(tensors: Mapping[str, Tensor], first_of_pyramid: str | None) -> dict[str, Any]:
    """Return the options of a Mask R-CNN with two linear layers for boxes and convolutions for masks.

    Args:
        tensors: Tensors by the names of medseg.
        first_of_pyramid: Module that projects the finest map; None for a single map.

    Returns:
        Widths of the feature maps and of the heads.
    """
    masks = count_in(tensors, r"roi_heads\.mask_head\.(\d+)\.")
    options: dict[str, Any] = {
        "box_head_width": len(tensors["roi_heads.box_head.fc6.bias"]),
        "mask_head_widths": tuple(len(tensors[f"roi_heads.mask_head.{i}.0.bias"]) for i in range(masks)),
    }
    if first_of_pyramid is not None:
        options["feature_channels"] = len(tensors[f"{first_of_pyramid}.bias"])
    return options
