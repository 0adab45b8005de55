"""Options of Mask R-CNN on ResNets and vision transformers, and their names in the catalog. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.backbones.resnet_config import RESNETS, ResNetFields
from medseg.models.backbones.vit_config import ViTFields
from medseg.models.catalog import ModelSize, register
from medseg.models.pretrained.config import PretrainedOptions

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Anchors = tuple[tuple[PositiveInt, ...], ...]

_PAPER = "He et al. 2017, Mask R-CNN, arXiv:1703.06870"
_VIT = "Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, arXiv:2010.11929"
_ADAPTER = "Chen et al. 2023, Vision Transformer Adapter, arXiv:2205.08534"

COARSE_ANCHORS: Anchors = ((128, 256, 512),) * 5
"""Three sizes on each of the five levels of a pyramid."""

DETECTRON2_ANCHORS: Anchors = ((32,), (64,), (128,), (256,), (512,))
"""One size per level of a pyramid (Lin et al. 2017, Feature Pyramid Networks)."""

SINGLE_LEVEL_ANCHORS: Anchors = ((32, 64, 128, 256, 512),)
"""All sizes on the one level of C4 and DC5."""


class MaskRCNNFields(PretrainedOptions):
    """The options that all forms of Mask R-CNN share: anchors, proposals, heads, and thresholds.

    Attributes:
        anchor_sizes: Edge lengths of the anchors in voxels, one list per feature map, finest first.
        aspect_ratios: Height divided by width of the anchors.
        feature_channels: Channels of the feature maps of the pyramid.
        box_head_width: Width of the two linear layers of the box head.
        mask_head_widths: Widths of the convolutions of the mask head.
        proposals_before_nms_train: Proposals kept per feature map before non-maximum suppression, in training.
        proposals_before_nms_test: The same in prediction.
        proposals_train: Proposals kept after non-maximum suppression, in training.
        proposals_test: The same in prediction.
        sampled_anchors_per_image: Anchors per image that enter the losses of the proposal network.
        sampled_proposals_per_image: Proposals per image that enter the losses of the heads; at most a quarter of them
            contain an instance.
        nms_threshold: Intersection over union above which the weaker of two boxes of one class is removed.
        score_threshold: Minimum score of a detection.
        max_detections: Maximum number of detections per image.
        mask_threshold: Probability above which a voxel belongs to the mask of an instance.
        box_convention: How boxes relate to the voxels of a map. ``torchvision`` rounds anchors to whole voxels and samples 2×2
            points of each cell of a region, half a voxel off. ``detectron2``, for weights of Detectron2 and MMDetection, does
            not round, and samples as many points as a cell has voxels, at their true positions.
    """

    anchor_sizes: Annotated[Anchors, Field(min_length=1)] = COARSE_ANCHORS
    aspect_ratios: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (
        0.5,
        1.0,
        2.0,
    )
    feature_channels: PositiveInt = 256
    box_head_width: PositiveInt = 1024
    mask_head_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (256, 256, 256, 256)
    proposals_before_nms_train: PositiveInt = 2000
    proposals_before_nms_test: PositiveInt = 1000
    proposals_train: PositiveInt = 2000
    proposals_test: PositiveInt = 1000
    sampled_anchors_per_image: PositiveInt = 256
    sampled_proposals_per_image: PositiveInt = 512
    nms_threshold: Fraction = 0.5
    score_threshold: Fraction = 0.05
    max_detections: PositiveInt = 100
    mask_threshold: Fraction = 0.5
    box_convention: Literal["torchvision", "detectron2"] = "torchvision"

    @property
    def levels(self) -> int:
        """The number of feature maps that carry anchors."""
        return 5

    @model_validator(mode="after")
    def _check_anchors(self) -> Self:
        if len(self.anchor_sizes) != self.levels:
            raise ValueError(
                f"anchor_sizes has {len(self.anchor_sizes)} lists, expected {self.levels}: one per level"
            )
        if len({len(sizes) for sizes in self.anchor_sizes}) != 1 or not self.anchor_sizes[0]:
            raise ValueError("anchor_sizes must list the same number of sizes for every level, at least one")
        return self


@register(
    "mask_rcnn_resnext_101_32x8d_fpn",
    spatial_dims=2,
    summary="Mask R-CNN on a ResNeXt-101 32x8d with a feature pyramid",
    reference=_PAPER,
    preset=RESNETS["resnext_101_32x8d"] | {"anchor_sizes": DETECTRON2_ANCHORS},
    size=ModelSize(107_634_997, in_channels=3, num_classes=81),
)
@register(
    "mask_rcnn_resnet_101_fpn",
    spatial_dims=2,
    summary="Mask R-CNN on a ResNet-101 with a feature pyramid",
    reference=_PAPER,
    preset=RESNETS["resnet_101"],
    size=ModelSize(63_077_611, in_channels=3, num_classes=21),
)
@register(
    "mask_rcnn_resnet_50_fpn",
    spatial_dims=2,
    summary="Mask R-CNN on a ResNet-50 with a feature pyramid",
    reference=_PAPER,
    preset=RESNETS["resnet_50"],
    size=ModelSize(43_988_607, in_channels=3, num_classes=3),
)
class MaskRCNNOptions(ResNetFields, MaskRCNNFields):
    """The options of Mask R-CNN with a feature pyramid of five maps (Lin et al. 2017).

    The network is built from torchvision's parts.

    Examples:
        >>> from medseg.models import MaskRCNNOptions
        >>> options = MaskRCNNOptions(block="basic", depths=(2, 2, 2, 2), anchor_sizes=((8,), (16,), (32,), (64,), (128,)))
        >>> options.levels, options.max_detections
        (5, 100)
    """

    builder: ClassVar[str] = "medseg.models.mask_rcnn.on_resnet:build_pyramid"


@register(
    "mask_rcnn_resnet_101_dc5",
    spatial_dims=2,
    summary="Mask R-CNN on the dilated fifth stage of a ResNet-101",
    reference=_PAPER,
    preset=RESNETS["resnet_101"] | {"feature_map": "dc5"},
    size=ModelSize(191_403_121, in_channels=3, num_classes=81),
)
@register(
    "mask_rcnn_resnet_50_dc5",
    spatial_dims=2,
    summary="Mask R-CNN on the dilated fifth stage of a ResNet-50",
    reference=_PAPER,
    preset=RESNETS["resnet_50"] | {"feature_map": "dc5"},
    size=ModelSize(172_410_993, in_channels=3, num_classes=81),
)
@register(
    "mask_rcnn_resnet_101_c4",
    spatial_dims=2,
    summary="Mask R-CNN on the fourth stage of a ResNet-101",
    reference=_PAPER,
    preset=RESNETS["resnet_101"] | {"feature_map": "c4"},
    size=ModelSize(54_963_313, in_channels=3, num_classes=81),
)
@register(
    "mask_rcnn_resnet_50_c4",
    spatial_dims=2,
    summary="Mask R-CNN on the fourth stage of a ResNet-50",
    reference=_PAPER,
    preset=RESNETS["resnet_50"] | {"feature_map": "c4"},
    size=ModelSize(35_971_185, in_channels=3, num_classes=81),
)
class SingleLevelMaskRCNNOptions(ResNetFields, MaskRCNNFields):
    """The options of Mask R-CNN on a single feature map of stride 16, in the two forms of Detectron2.

    Attributes:
        feature_map: ``c4`` detects instances on the fourth stage of the ResNet, and boxes and masks share the fifth
            stage as their head; box_head_width is then unused, and only the last entry of mask_head_widths counts.
            ``dc5`` keeps the fifth stage at stride 16 by dilation and has the same heads as the feature pyramid.
        dilate_first_block: Whether with ``dc5`` the first block of the fifth stage is dilated like the others, as in the
            weights of Detectron2; in torchvision it is not.

    Examples:
        >>> from medseg.models import SingleLevelMaskRCNNOptions
        >>> options = SingleLevelMaskRCNNOptions(feature_map="dc5")
        >>> options.levels, options.anchor_sizes
        (1, ((32, 64, 128, 256, 512),))
    """

    builder: ClassVar[str] = "medseg.models.mask_rcnn.on_resnet:build_single_level"

    feature_map: Literal["c4", "dc5"] = "c4"
    dilate_first_block: bool = False
    anchor_sizes: Annotated[Anchors, Field(min_length=1)] = SINGLE_LEVEL_ANCHORS
    proposals_before_nms_train: PositiveInt = 12000
    proposals_before_nms_test: PositiveInt = 6000

    @property
    def levels(self) -> int:
        """The number of feature maps that carry anchors: one, C4 or DC5."""
        return 1

    @model_validator(mode="after")
    def _check_feature_map(self) -> Self:
        if self.feature_map == "dc5" and self.block == "basic":
            raise ValueError(
                "block 'basic' cannot be dilated, as feature_map 'dc5' requires; set block: bottleneck, or feature_map: c4"
            )
        return self


_VIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "attention_heads": 3, "drop_path": 0.1},
    "small": {"width": 384, "attention_heads": 6, "drop_path": 0.2, "deform_heads": 6},
    "base": {"width": 768, "attention_heads": 12, "drop_path": 0.3, "deform_heads": 12, "deform_ratio": 0.5},
    "large": {
        "width": 1024,
        "depth": 24,
        "attention_heads": 16,
        "drop_path": 0.4,
        "pretrain_size": 384,
        "deform_heads": 16,
        "deform_ratio": 0.5,
    },
}


def _register_on_vit(
    name: str, size: str, parameters: int, *, adapter: bool = False, pyramid: bool = True
) -> Any:
    what = f"{'ViT-Adapter' if adapter else 'ViT'}-{size.capitalize()}"
    return register(
        f"mask_rcnn_{name}",
        spatial_dims=2,
        summary=f"Mask R-CNN on a {what}{' with a feature pyramid' if pyramid else ''}",
        reference=_ADAPTER if adapter else _VIT,
        preset=_VIT_SIZES[size] | {"adapter": adapter, "feature_pyramid": pyramid},
        size=ModelSize(parameters, in_channels=3, num_classes=81),
    )


@_register_on_vit("vit_adapter_large_fpn", "large", 347_877_296, adapter=True)
@_register_on_vit("vit_large_fpn", "large", 337_236_720)
@_register_on_vit("vit_adapter_base_fpn", "base", 120_167_888, adapter=True)
@_register_on_vit("vit_base_fpn", "base", 113_575_152)
@_register_on_vit("vit_adapter_small", "small", 45_432_448, adapter=True, pyramid=False)
@_register_on_vit("vit_adapter_small_fpn", "small", 47_792_768, adapter=True)
@_register_on_vit("vit_small_fpn", "small", 43_737_072)
@_register_on_vit("vit_adapter_tiny_fpn", "tiny", 28_063_712, adapter=True)
@_register_on_vit("vit_tiny_fpn", "tiny", 26_070_384)
class ViTMaskRCNNOptions(ViTFields, MaskRCNNFields):
    """The options of Mask R-CNN on a vision transformer, which can start from timm's weights.

    Examples:
        >>> from medseg.models import ViTMaskRCNNOptions
        >>> options = ViTMaskRCNNOptions(adapter=True)
        >>> options.width, options.depth, options.attention_heads, options.attention_window
        (192, 12, 3, 14)
    """

    builder: ClassVar[str] = "medseg.models.mask_rcnn.on_vit:build"

    anchor_sizes: Annotated[Anchors, Field(min_length=1)] = DETECTRON2_ANCHORS
