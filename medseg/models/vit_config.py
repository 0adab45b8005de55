"""Options of Mask R-CNN on vision transformers, and their names in the catalog. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.catalog import Size, register
from medseg.models.mask_rcnn_config import DETECTRON2_ANCHORS, Anchors, MaskRCNNFields

if TYPE_CHECKING:
    from medseg.models.base import Model

_VIT = "Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, arXiv:2010.11929"
_ADAPTER = "Chen et al. 2023, Vision Transformer Adapter, arXiv:2205.08534"


class ViTFields(MaskRCNNFields):
    """A vision transformer of patches of 16, plain or with an adapter.

    Args:
        width: of the tokens.
        depth: blocks, a multiple of 4. Of each three (up to a depth of 12) or six the last attends to the whole
            image, the others in windows.
        heads: of attention.
        window: edge length of the windows, in patches.
        pretrain_size: edge length of the images that the position table is for, in voxels; it is resized for others.
        drop_path: rate of stochastic depth of the last block; it rises from 0 at the first.
        adapter: put the ViT-Adapter beside the transformer; else its quarters are resized into a pyramid.
        deform_heads: of the adapter's deformable attention.
        deform_ratio: width of its values over the width of the tokens.
        prior_channels: of the adapter's first convolutions.
        pyramid: mix the maps by a feature pyramid; else each is projected for itself.
    """

    width: PositiveInt = 192
    depth: PositiveInt = 12
    heads: PositiveInt = 3
    window: PositiveInt = 14
    pretrain_size: Annotated[int, Field(gt=0, multiple_of=16)] = 224
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    adapter: bool = False
    deform_heads: PositiveInt = 6
    deform_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    prior_channels: PositiveInt = 64
    pyramid: bool = True
    anchor_sizes: Annotated[Anchors, Field(min_length=1)] = DETECTRON2_ANCHORS

    @model_validator(mode="after")
    def _check_transformer(self) -> Self:
        if self.depth % 4:
            raise ValueError(f"depth {self.depth} is not a multiple of 4")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.adapter and (self.width * self.deform_ratio / self.deform_heads) % 1:
            raise ValueError(
                f"width {self.width} times deform_ratio {self.deform_ratio} is not a multiple of "
                f"deform_heads {self.deform_heads}"
            )
        return self


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "heads": 3, "drop_path": 0.1},
    "small": {"width": 384, "heads": 6, "drop_path": 0.2, "deform_heads": 6},
    "base": {"width": 768, "heads": 12, "drop_path": 0.3, "deform_heads": 12, "deform_ratio": 0.5},
    "large": {
        "width": 1024,
        "depth": 24,
        "heads": 16,
        "drop_path": 0.4,
        "pretrain_size": 384,
        "deform_heads": 16,
        "deform_ratio": 0.5,
    },
}


def _register(name: str, size: str, parameters: int, *, adapter: bool = False, pyramid: bool = True) -> Any:
    what = f"{'ViT-Adapter' if adapter else 'ViT'}-{size.capitalize()}"
    return register(
        f"mask_rcnn_{name}",
        spatial_dims=2,
        summary=f"Mask R-CNN on a {what}{' with a feature pyramid' if pyramid else ''}",
        reference=_ADAPTER if adapter else _VIT,
        preset=_SIZES[size] | {"adapter": adapter, "pyramid": pyramid},
        size=Size(parameters, in_channels=3, num_classes=81),
    )


@_register("vit_adapter_large_fpn", "large", 347_877_296, adapter=True)
@_register("vit_large_fpn", "large", 337_236_720)
@_register("vit_adapter_base_fpn", "base", 120_167_888, adapter=True)
@_register("vit_base_fpn", "base", 113_575_152)
@_register("vit_adapter_small", "small", 45_432_448, adapter=True, pyramid=False)
@_register("vit_adapter_small_fpn", "small", 47_792_768, adapter=True)
@_register("vit_small_fpn", "small", 43_737_072)
@_register("vit_adapter_tiny_fpn", "tiny", 28_063_712, adapter=True)
@_register("vit_tiny_fpn", "tiny", 26_070_384)
class ViTMaskRCNNOptions(ViTFields):
    """Mask R-CNN on a vision transformer, whose weights may start from timm's names."""

    def build(self, *, in_channels: int, num_classes: int, spatial_dims: int) -> Model:
        """Make the model; imports torch and torchvision."""
        from medseg.models.mask_rcnn_vit import HOMES, vit_mask_rcnn
        from medseg.models.pretrained import with_weights

        return with_weights(vit_mask_rcnn(self, in_channels, num_classes), self, HOMES)
