"""Options of a ResNet. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt

from medseg.models.pretrained.config import PretrainedOptions

RESNETS: dict[str, dict[str, Any]] = {
    "resnet_18": {"depths": (2, 2, 2, 2), "block": "basic"},
    "resnet_34": {"depths": (3, 4, 6, 3), "block": "basic"},
    "resnet_50": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet_101": {"depths": (3, 4, 23, 3), "block": "bottleneck"},
    "resnext_101_32x8d": {"depths": (3, 4, 23, 3), "block": "bottleneck", "groups": 32, "width_per_group": 8},
}
"""What each published name stands for."""


class ResNetFields(PretrainedOptions):
    """A ResNet (He et al. 2016, arXiv:1512.03385) or ResNeXt (Xie et al. 2017, arXiv:1611.05431) backbone.

    Args:
        depths: blocks of the four stages.
        block: ``bottleneck`` (1×1, 3×3, 1×1) or ``basic`` (3×3, 3×3).
        groups: of the 3×3 convolution of a bottleneck.
        width_per_group: 64 for a ResNet; the width inside a bottleneck is scaled with it.
        norm: ``batch``; ``frozen``, a batch norm that keeps the statistics and factors it was loaded with;
            ``group``, for batches too small for statistics.
    """

    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: PositiveInt = 1
    width_per_group: PositiveInt = 64
    norm: Literal["batch", "frozen", "group"] = "batch"
