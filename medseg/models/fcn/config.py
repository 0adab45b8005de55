"""Options of the FCN, and its names in the catalog. Free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from medseg.models.backbones.resnet_config import RESNETS, ResNetFields
from medseg.models.catalog import ModelSize, register

_PAPER = "Long et al. 2015, Fully Convolutional Networks, arXiv:1411.4038"


@register(
    "fcn_resnet_101",
    spatial_dims=2,
    summary="FCN on a dilated ResNet-101",
    reference=_PAPER,
    preset=RESNETS["resnet_101"],
    size=ModelSize(54_314_346, in_channels=3, num_classes=21),
)
@register(
    "fcn_resnet_50",
    spatial_dims=2,
    summary="FCN on a dilated ResNet-50",
    reference=_PAPER,
    preset=RESNETS["resnet_50"],
    size=ModelSize(35_322_218, in_channels=3, num_classes=21),
)
class FCNOptions(ResNetFields):
    """The options of torchvision's FCN: a ResNet whose last two stages are dilated, and a head of two convolutions.

    Attributes:
        auxiliary_head: Whether a second head on the third stage contributes to the loss; predictions do not use it.
        auxiliary_weight: Weight of the loss of the second head.

    Examples:
        >>> from medseg.models import FCNOptions
        >>> options = FCNOptions(depths=(3, 4, 23, 3), norm="group")
        >>> options.block, options.auxiliary_head, options.auxiliary_weight
        ('bottleneck', True, 0.5)
    """

    builder: ClassVar[str] = "medseg.models.fcn.network:build"

    auxiliary_head: bool = True
    auxiliary_weight: Annotated[float, Field(gt=0.0)] = 0.5

    @model_validator(mode="after")
    def _check_block(self) -> Self:
        if self.block == "basic":
            raise ValueError("block 'basic' cannot be dilated, as an FCN requires; set block: bottleneck")
        return self
