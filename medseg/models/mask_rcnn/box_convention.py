"""The two conventions of boxes: torchvision's, and that of Detectron2 and MMDetection."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from medseg.models.mask_rcnn.config import MaskRCNNFields

_CANONICAL_SIZE, _CANONICAL_LEVEL = (
    224,
    4,
)  # equation 1 of Lin et al. 2017, Feature Pyramid Networks, arXiv:1612.03144
_SMALL = 1e-8
_AS_MANY_AS_VOXELS = 0  # points per cell
_PYRAMID, _SINGLE_LEVEL = (4, 8, 16, 32), (16,)  # strides of the maps from which regions are pooled
_PYRAMID, _SINGLE_LEVEL = (4, 8, 16, 32), (16,)  # strides of the maps from which regions are pooled


class ExactAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is not typed
    """Anchors whose corners are not rounded to whole voxels, nor their distances to the size of the image."""

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """Return the corners (a 4) of anchors around the origin, ordered by ratio, then size."""
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        widths = (sizes[None] / roots[:, None]).flatten() / 2
        heights = (sizes[None] * roots[:, None]).flatten() / 2
        return torch.stack([-widths, -heights, widths, heights], dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, whose distance on a map is the stride of the map, a power of two."""
        sizes = [x.shape[2:] for x in feature_maps]
        strides = [
            [
                torch.tensor(2 ** round(math.log2(whole / part)), device=feature_maps[0].device)
                for whole, part in zip(image_list.tensors.shape[2:], size, strict=True)
            ]
            for size in sizes
        ]
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors] * len(image_list.image_sizes)


class AlignedRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision is not typed
    """Regions of interest sampled at the true positions of voxels, with as many points per cell as it has voxels.

    Args:
        strides: Strides of the feature maps by their names, each twice that of the map before.
        output_size: Edge length of the pooled regions.
    """

    def __init__(self, strides: Mapping[str, int], output_size: int) -> None:
        super().__init__(list(strides), output_size, sampling_ratio=_AS_MANY_AS_VOXELS)
        self.strides = tuple(strides.values())

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return the pooled regions (r c s s) of the boxes of all images; large boxes are pooled from coarse maps."""
        maps = [x[name] for name in self.featmap_names]
        numbered = [
            torch.cat([box.new_full((len(box), 1), number), box], dim=1) for number, box in enumerate(boxes)
        ]
        regions = torch.cat(numbered)
        levels = self._levels(regions)
        size = (self.output_size[0], self.output_size[1])
        pooled = maps[0].new_zeros((len(regions), maps[0].shape[1], *size))
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.where(levels == level)[0]
            pooled[here] = roi_align(
                features,
                regions[here],
                size,
                spatial_scale=1 / stride,
                sampling_ratio=self.sampling_ratio,
                aligned=True,
            ).to(pooled.dtype)
        return pooled

    def _levels(self, regions: Tensor) -> Tensor:
        """Return the map of each region, by the square root of its area."""
        _, left, top, right, bottom = regions.unbind(dim=1)
        sizes = ((right - left) * (bottom - top)).clamp(min=0).sqrt()
        levels = torch.floor(_CANONICAL_LEVEL + torch.log2(sizes / _CANONICAL_SIZE + _SMALL))
        finest = self.strides[0].bit_length() - 1
        return (levels - finest).clamp(0, len(self.strides) - 1).to(torch.int64)


def anchor_generator(config: MaskRCNNFields) -> AnchorGenerator:
    """Return the generator of a model's anchors."""
    ratios = (config.aspect_ratios,) * len(config.anchor_sizes)
    kind = ExactAnchors if config.box_convention == "detectron2" else AnchorGenerator
    return kind(config.anchor_sizes, ratios)


def region_pool(config: MaskRCNNFields, maps: tuple[str, ...], size: int) -> MultiScaleRoIAlign:
    """Return the module that pools regions of `size` × `size` samples from named maps."""
    strides = _PYRAMID if len(maps) > 1 else _SINGLE_LEVEL
    if config.box_convention == "detectron2":
        return AlignedRoIAlign(dict(zip(maps, strides, strict=True)), size)
    pool = MultiScaleRoIAlign(list(maps), output_size=size, sampling_ratio=2)
    # Otherwise torchvision guesses the strides once, from the size of the first image before it is padded.
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return pool
