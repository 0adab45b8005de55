"""Options of Mask R-CNN on vision transformers, and their names in the catalog. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from medseg.models.backbones.vit_config import ViTFields
from medseg.models.catalog import ModelSize, register
from medseg.models.mask_rcnn.config import DETECTRON2_ANCHORS, Anchors, MaskRCNNFields

_VIT = "Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, arXiv:2010.11929"
_ADAPTER = "Chen et al. 2023, Vision Transformer Adapter, arXiv:2205.08534"


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
        size=ModelSize(parameters, in_channels=3, num_classes=81),
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
class ViTMaskRCNNOptions(ViTFields, MaskRCNNFields):
    """Mask R-CNN on a vision transformer, whose weights may start from timm's names."""

    builder: ClassVar[str] = "medseg.models.mask_rcnn.on_vit:build"

    anchor_sizes: Annotated[Anchors, Field(min_length=1)] = DETECTRON2_ANCHORS
