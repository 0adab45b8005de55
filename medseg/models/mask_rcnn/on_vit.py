"""Mask R-CNN on a vision transformer, plain or with an adapter."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from medseg.models.backbones.vit import ViTPyramid
from medseg.models.backbones.vit_adapter import ViTAdapter
from medseg.models.mask_rcnn.config import ViTMaskRCNNOptions
from medseg.models.mask_rcnn.heads import make_foreground_heads
from medseg.models.mask_rcnn.network import MaskRCNN
from medseg.models.pretrained.loading import WeightMapping, load_pretrained

WEIGHT_MAPPING = WeightMapping(
    prefixes=(("", ""), ("", "backbone.body.vit.")),
    heads=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
    stems=("patch_embed.proj.weight", "prior.stem.0.0.weight"),
)


class ChannelMapper(nn.Module):
    """A separate projection of each map, followed by ReLU; the coarsest is also pooled into a fifth map, as in ViT-Adapter."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(4))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the projected maps under their names, and the pooled map as ``pool``."""
        pairs = zip(self.projections, maps.items(), strict=True)
        projected = {name: project(x).relu() for project, (name, x) in pairs}
        last = next(reversed(projected.values()))
        smallest = min(last.shape[2:]) == 1  # a map of one cell can only be kept
        return projected | {"pool": F.max_pool2d(last, 2, 2, ceil_mode=smallest)}


class ViTBackbone(nn.Module):
    """A transformer with five named maps of stride 4 to 64, each with `out_channels` channels."""

    def __init__(self, body: nn.Module, width: int, out_channels: int, *, pyramid: bool) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.neck: nn.Module
        if pyramid:
            self.neck = FeaturePyramidNetwork([width] * 4, out_channels, extra_blocks=LastLevelMaxPool())
        else:
            self.neck = ChannelMapper(width, out_channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps ``0`` to ``3``, finest first, and ``pool``."""
        maps = OrderedDict((str(i), x) for i, x in enumerate(self.body(image)))
        named: dict[str, Tensor] = self.neck(maps)
        return named


def vit_mask_rcnn(config: ViTMaskRCNNOptions, in_channels: int, num_classes: int) -> MaskRCNN:
    """Return the model with fresh weights."""
    body = ViTAdapter(config, in_channels) if config.adapter else ViTPyramid(config, in_channels)
    channels = config.feature_channels
    model = MaskRCNN(
        config,
        ViTBackbone(body, config.width, channels, pyramid=config.feature_pyramid),
        make_foreground_heads(config, channels, ("0", "1", "2", "3"), num_classes),
        in_channels=in_channels,
        num_classes=num_classes,
        stride=32,
        norm_stride=32 if config.adapter else None,
    )
    model.pretrained_part = "backbone.body.vit"  # without the layers of the adapter or the pyramid
    return model


def build(options: ViTMaskRCNNOptions, *, in_channels: int, num_classes: int, spatial_dims: int) -> MaskRCNN:
    """Build Mask R-CNN on a vision transformer, with pretrained weights where the options name some."""
    return load_pretrained(vit_mask_rcnn(options, in_channels, num_classes), options, WEIGHT_MAPPING)
