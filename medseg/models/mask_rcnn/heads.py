"""The heads of Mask R-CNN, which predict boxes, classes and masks from pooled regions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from medseg.models.mask_rcnn.box_convention import region_pool
from medseg.models.mask_rcnn.config import MaskRCNNFields

BOX_SIZE, MASK_SIZE = 7, 14
"""Edge lengths of the pooled regions, in samples."""


@dataclass(frozen=True)
class Heads:
    """The six modules that torchvision's Mask R-CNN takes as arguments.

    Attributes:
        box_pool: Pools the regions of boxes from the feature maps.
        box_head: Maps pooled regions (r c 7 7) to features (r w).
        box_predictor: Maps features (r w) to class logits (r k) and box offsets (r 4k).
        mask_pool: Pools the regions of masks from the feature maps.
        mask_head: Maps pooled regions (r c 14 14) to features (r w 14 14).
        mask_predictor: Maps features to mask logits (r k 28 28).
    """

    box_pool: MultiScaleRoIAlign
    box_head: nn.Module
    box_predictor: nn.Module
    mask_pool: MultiScaleRoIAlign
    mask_head: nn.Module
    mask_predictor: nn.Module


def make_heads(config: MaskRCNNFields, channels: int, maps: tuple[str, ...], num_classes: int) -> Heads:
    """Return heads with two linear layers for boxes and convolutions for masks (He et al. 2017, figure 4 right).

    Args:
        config: Widths of the heads.
        channels: Channels of the feature maps.
        maps: Names of the feature maps from which regions are pooled.
        num_classes: Number of classes, background included.

    Returns:
        The heads with fresh weights.
    """
    last = config.mask_head_widths[-1]
    return Heads(
        box_pool=region_pool(config, maps, BOX_SIZE),
        box_head=TwoMLPHead(channels * BOX_SIZE**2, config.box_head_width),
        box_predictor=FastRCNNPredictor(config.box_head_width, num_classes),
        mask_pool=region_pool(config, maps, MASK_SIZE),
        mask_head=MaskRCNNHeads(channels, config.mask_head_widths, 1),
        mask_predictor=MaskRCNNPredictor(last, last, num_classes),
    )


def make_foreground_heads(
    config: MaskRCNNFields, channels: int, maps: tuple[str, ...], num_classes: int
) -> Heads:
    """Return the heads of `make_heads` without boxes and masks of the background, which are never used."""
    last = config.mask_head_widths[-1]
    return replace(
        make_heads(config, channels, maps, num_classes),
        box_predictor=ForegroundBoxPredictor(config.box_head_width, num_classes),
        mask_predictor=ForegroundMaskPredictor(last, num_classes),
    )


def make_stage_heads(config: MaskRCNNFields, stage: nn.Module, width: int, num_classes: int) -> Heads:
    """Return heads that share one ResNet stage for boxes and masks (He et al. 2017, figure 4 left).

    Args:
        config: Options; only the last of `mask_head_widths` is used, as the width of the mask predictor.
        stage: Stage that maps pooled regions of 14×14 samples to 7×7. Both heads contain this one module.
        width: Output channels of the stage.
        num_classes: Number of classes, background included.

    Returns:
        The heads.
    """
    last = config.mask_head_widths[-1]
    box_head = StageBoxHead(stage)
    return Heads(
        box_pool=region_pool(config, ("0",), MASK_SIZE),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(width, num_classes),
        mask_pool=region_pool(config, ("0",), MASK_SIZE),
        mask_head=StageMaskHead(box_head, width),
        mask_predictor=MaskRCNNPredictor(width, last, num_classes),
    )


class StageBoxHead(nn.Module):
    """A ResNet stage, named ``layer4`` as in a ResNet, followed by the mean over its map: (r c 14 14) to (r w)."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.layer4 = stage

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (r w) of the stage's map of each region."""
        mean: Tensor = self.layer4(x).mean(dim=(2, 3))
        return mean


class StageMaskHead(nn.Module):
    """The stage of a `StageBoxHead`, used again: (r c 14 14) to (r w 7 7)."""

    def __init__(self, shared: StageBoxHead, width: int) -> None:
        super().__init__()
        # The tuple keeps the shared stage from being a submodule here, so its weights are counted and saved once.
        self._shared = (shared,)
        self._width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's map; without regions an empty one, because batch norm would have no values."""
        if len(x) == 0:
            return x.new_zeros(0, self._width, x.shape[2] // 2, x.shape[3] // 2)
        out: Tensor = self._shared[0].layer4(x)
        return out


class ForegroundBoxPredictor(nn.Module):
    """Prediction of class logits (r k) and, for the foreground only, box offsets (r 4k) from features (r w)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, (num_classes - 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and the offsets with zeros for the background."""
        return self.cls_score(x), torch.cat([x.new_zeros(len(x), 4), self.bbox_pred(x)], dim=1)


class ForegroundMaskPredictor(nn.Module):
    """Prediction of mask logits, for the foreground only, on a grid twice as fine: (r w 14 14) to (r k 28 28)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(width, width, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(width, num_classes - 1, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, with zeros for the background."""
        logits = self.mask_fcn_logits(self.conv5_mask(x).relu())
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
