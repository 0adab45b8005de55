"""Options of a ResNet. Free of torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from medseg.models.pretrained.config import PretrainedOptions

RESNETS: dict[str, dict[str, Any]] = {
    "resnet_18": {"depths": (2, 2, 2, 2), "block": "basic"},
    "resnet_34": {"depths": (3, 4, 6, 3), "block": "basic"},
    "resnet_50": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet_101": {"depths": (3, 4, 23, 3), "block": "bottleneck"},
    "resnext_101_32x8d": {"depths": (3, 4, 23, 3), "block": "bottleneck", "groups": 32, "width_per_group": 8},
}
"""Options of each published architecture, by name."""


class ResNetFields(PretrainedOptions):
    """The options of a ResNet or ResNeXt backbone.

    See He et al. 2016 (arXiv:1512.03385) and Xie et al. 2017 (arXiv:1611.05431).

    Attributes:
        depths: Blocks in each of the four stages.
        block: ``bottleneck`` (1×1, 3×3 and 1×1 convolutions) or ``basic`` (two 3×3 convolutions).
        groups: Groups of the 3×3 convolution of a bottleneck.
        width_per_group: Scales the inner width of a bottleneck; 64 for a ResNet.
        strided_kernel: The kernel of a bottleneck that halves the resolution: ``3x3``, as in torchvision, or ``1x1``, the first
            one, as in the original networks and in the weights of Detectron2.
        norm: ``batch``, ``frozen`` (batch norm with constant statistics and factors, for pretrained weights) or
            ``group`` (for batches too small for batch statistics).
    """

    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: PositiveInt = 1
    width_per_group: PositiveInt = 64
    strided_kernel: Literal["3x3", "1x1"] = "3x3"
    norm: Literal["batch", "frozen", "group"] = "batch"

    @model_validator(mode="after")
    def _check_strided_kernel(self) -> Self:
        if self.strided_kernel == "1x1" and self.block == "basic":
            raise ValueError(
                "block 'basic' has no 1x1 kernel, as strided_kernel '1x1' requires; set block: bottleneck, or strided_kernel: 3x3"
            )
        return self
