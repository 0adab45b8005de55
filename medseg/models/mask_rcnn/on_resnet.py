"""Mask R-CNN on ResNets: with a feature pyramid, or on a single map of stride 16."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from medseg.models.backbones.resnet import resnet, stage_widths
from medseg.models.mask_rcnn.config import MaskRCNNOptions, SingleLevelMaskRCNNOptions
from medseg.models.mask_rcnn.heads import make_heads, make_stage_heads
from medseg.models.mask_rcnn.network import MaskRCNN
from medseg.models.pretrained.loading import WeightMapping, load_pretrained

WEIGHT_MAPPING = WeightMapping(
    prefixes=(("", ""), ("", "backbone.body.")),
    heads=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    stems=("conv1.weight",),
)

C4_WEIGHT_MAPPING = WeightMapping(
    prefixes=WEIGHT_MAPPING.prefixes,
    heads=WEIGHT_MAPPING.heads,
    stems=WEIGHT_MAPPING.stems,
    renames=((r"^backbone\.body\.layer4\.", "roi_heads.box_head.layer4."),),
)
"""The weights of a ResNet's fifth stage go to the heads, which use that stage."""


class SingleMap(nn.Module):
    """A ResNet up to one stage, whose map is named ``0``: (n c x y) to (n w x/16 y/16)."""

    def __init__(self, body: nn.Module, stage: str, out_channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, return_layers={stage: "0"})
        self.out_channels = out_channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the stage's map under the name ``0``."""
        maps: dict[str, Tensor] = self.body(image)
        return maps


def pyramid_mask_rcnn(config: MaskRCNNOptions, in_channels: int, num_classes: int) -> MaskRCNN:
    """Return Mask R-CNN on levels of stride 4, 8, 16, 32 and, for proposals only, 64."""
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    body = resnet(config, in_channels)
    backbone = BackboneWithFPN(body, layers, list(stage_widths(config)), config.feature_channels)
    heads = make_heads(config, config.feature_channels, ("0", "1", "2", "3"), num_classes)
    return MaskRCNN(
        config,
        backbone,
        heads,
        in_channels=in_channels,
        num_classes=num_classes,
        stride=32,
        norm_stride=32 if config.norm == "batch" else None,
    )


def single_level_mask_rcnn(
    config: SingleLevelMaskRCNNOptions, in_channels: int, num_classes: int
) -> MaskRCNN:
    """Return Mask R-CNN on the fourth stage (C4) or on the dilated fifth stage (DC5)."""
    _, _, third, fourth = stage_widths(config)
    if config.feature_map == "c4":
        body = resnet(config, in_channels)
        heads = make_stage_heads(config, body.layer4, fourth, num_classes)
        backbone = SingleMap(body, "layer3", third)
    else:
        body = resnet(config, in_channels, dilated=(False, False, True))
        if config.dilate_first_block:
            first = body.layer4[0].conv2
            first.dilation = first.padding = (2, 2)
        heads = make_heads(config, fourth, ("0",), num_classes)
        backbone = SingleMap(body, "layer4", fourth)
    return MaskRCNN(
        config,
        backbone,
        heads,
        in_channels=in_channels,
        num_classes=num_classes,
        stride=16,
        norm_stride=16 if config.norm == "batch" else None,
    )


def build_pyramid(
    options: MaskRCNNOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MaskRCNN:
    """Build Mask R-CNN with a feature pyramid, with pretrained weights where the options name some."""
    return load_pretrained(pyramid_mask_rcnn(options, in_channels, num_classes), options, WEIGHT_MAPPING)


def build_single_level(
    options: SingleLevelMaskRCNNOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MaskRCNN:
    """Build Mask R-CNN on a single map (C4 or DC5), with pretrained weights where the options name some."""
    mapping = C4_WEIGHT_MAPPING if options.feature_map == "c4" else WEIGHT_MAPPING
    return load_pretrained(single_level_mask_rcnn(options, in_channels, num_classes), options, mapping)
