"""Options of MaskFormer and Mask2Former, and their names in the catalog. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from medseg.models.catalog import ModelSize, register
from medseg.models.pretrained.config import PretrainedOptions

FourCounts = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

_MASKFORMER = "Cheng et al. 2021, Per-Pixel Classification Is Not All You Need, arXiv:2107.06278"
_MASK2FORMER = "Cheng et al. 2022, Masked-attention Mask Transformer, arXiv:2112.01527"

_BASIC = {"block": "basic", "widths": (64, 128, 256, 512)}
_BOTTLENECK = {"block": "bottleneck", "widths": (256, 512, 1024, 2048)}
_RESNETS: dict[str, dict[str, Any]] = {
    "18": {"depths": (2, 2, 2, 2)} | _BASIC,
    "34": {"depths": (3, 4, 6, 3)} | _BASIC,
    "50": {"depths": (3, 4, 6, 3)} | _BOTTLENECK,
    "101": {"depths": (3, 4, 23, 3)} | _BOTTLENECK,
}


def _swin(embed: int, third: int, heads: int, window: int) -> dict[str, Any]:
    """Return the preset of a Swin transformer from its first width, third depth, first heads and window size."""
    return {
        "backbone": "swin",
        "depths": (2, 2, third, 2),
        "widths": tuple(embed * 2**i for i in range(4)),
        "swin_heads": tuple(heads * 2**i for i in range(4)),
        "window_size": window,
    }


class MaskTransformerFields(PretrainedOptions):
    """The options that MaskFormer and Mask2Former share; each query predicts one class and one mask.

    Attributes:
        backbone: ``resnet`` (He et al. 2016) or, for Mask2Former only, ``swin`` (Liu et al. 2021, arXiv:2103.14030).
        depths: Blocks in each of the four stages of the backbone.
        widths: Channels of the four stages; in a Swin transformer they double from stage to stage.
        block: Kind of ResNet block, ``bottleneck`` or ``basic``.
        stem_channels: Channels of the stem of a ResNet.
        swin_heads: Attention heads in each stage of a Swin transformer.
        window_size: Edge length of the attention windows of a Swin transformer, in patches of 4 voxels.
        drop_path: Rate of stochastic depth of a Swin transformer.
        num_queries: Maximum number of instances and regions per image.
        hidden_channels: Width of queries and masks; a multiple of 32, at least 64.
        decoder_layers: Layers of the transformer decoder that updates the queries.
        decoder_width: Inner width of the decoder's feed-forward layers.
        attention_heads: Attention heads of the transformer decoder.
        auxiliary_losses: Whether the losses are computed on every decoder layer instead of on the last one only.
        no_object_weight: Weight of the class "no object" in the classification loss.
        class_weight: Weight of the classification loss, in the sum of losses and in the cost of matching.
        mask_weight: Weight of the per-voxel mask loss, in the sum of losses and in the cost of matching.
        dice_weight: Weight of the Dice loss of the masks, in the sum of losses and in the cost of matching.
        target_masks: What one target mask is: with ``components`` each connected component of a foreground class,
            with ``classes`` all voxels of a class. Instance maps take precedence. The background is always one
            target.
        score_threshold: Minimum score of an instance or a region.
        mask_threshold: Probability above which a voxel belongs to a mask.
        overlap_threshold: Minimum fraction of a mask that must remain where masks overlap, in panoptic maps.
        fused_classes: Classes whose regions are merged into one region in panoptic maps.
    """

    backbone: Literal["resnet", "swin"] = "resnet"
    depths: FourCounts = (3, 4, 6, 3)
    widths: FourCounts = (256, 512, 1024, 2048)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    stem_channels: PositiveInt = 64
    swin_heads: FourCounts = (3, 6, 12, 24)
    window_size: PositiveInt = 7
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    num_queries: PositiveInt = 100
    hidden_channels: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    decoder_layers: PositiveInt = 6
    decoder_width: PositiveInt = 2048
    attention_heads: PositiveInt = 8
    auxiliary_losses: bool = True
    no_object_weight: NonNegativeFloat = 0.1
    class_weight: NonNegativeFloat = 1.0
    mask_weight: NonNegativeFloat = 20.0
    dice_weight: NonNegativeFloat = 1.0
    target_masks: Literal["components", "classes"] = "components"
    score_threshold: Fraction = 0.5
    mask_threshold: Fraction = 0.5
    overlap_threshold: Fraction = 0.8
    fused_classes: tuple[Annotated[int, Field(ge=0)], ...] = (0,)

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.hidden_channels % self.attention_heads:
            raise ValueError(
                f"hidden_channels {self.hidden_channels} is not a multiple of attention_heads {self.attention_heads}"
            )
        if self.backbone == "swin":
            doubled = tuple(self.widths[0] * 2**i for i in range(4))
            if self.widths != doubled:
                raise ValueError(
                    f"the widths of a Swin transformer double from stage to stage, expected {list(doubled)}"
                )
            if any(width % heads for width, heads in zip(self.widths, self.swin_heads, strict=True)):
                raise ValueError("every entry of widths must be a multiple of the same entry of swin_heads")
        return self


@register(
    "maskformer_resnet_101",
    spatial_dims=2,
    summary="MaskFormer on a ResNet-101",
    reference=_MASKFORMER,
    preset=_RESNETS["101"],
    size=ModelSize(60_299_991, in_channels=3, num_classes=150),
)
@register(
    "maskformer_resnet_50",
    spatial_dims=2,
    summary="MaskFormer on a ResNet-50",
    reference=_MASKFORMER,
    preset=_RESNETS["50"],
    size=ModelSize(41_307_863, in_channels=3, num_classes=150),
)
@register(
    "maskformer_resnet_34",
    spatial_dims=2,
    summary="MaskFormer on a ResNet-34",
    reference=_MASKFORMER,
    preset=_RESNETS["34"],
    size=ModelSize(34_808_279, in_channels=3, num_classes=150),
)
@register(
    "maskformer_resnet_18",
    spatial_dims=2,
    summary="MaskFormer on a ResNet-18",
    reference=_MASKFORMER,
    preset=_RESNETS["18"],
    size=ModelSize(24_700_119, in_channels=3, num_classes=150),
)
class MaskFormerOptions(MaskTransformerFields):
    """The options of MaskFormer.

    A feature pyramid predicts voxel embeddings, and a transformer decoder predicts masks and classes.

    Attributes:
        dropout: Dropout in the decoder. The paper's 0.1 suits large datasets; on small ones it delays the point at
            which the queries specialise.

    Examples:
        >>> from medseg.models import MaskFormerOptions
        >>> options = MaskFormerOptions(num_queries=12, dropout=0.0)
        >>> options.num_queries, options.decoder_layers, options.target_masks
        (12, 6, 'components')
    """

    builder: ClassVar[str] = "medseg.models.maskformer.network:build_maskformer"

    backbone: Literal["resnet"] = "resnet"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


def _register_mask2former(name: str, summary: str, preset: dict[str, Any], parameters: int) -> Any:
    return register(
        f"mask2former_{name}",
        spatial_dims=2,
        summary=f"Mask2Former on a {summary}",
        reference=_MASK2FORMER,
        preset=preset,
        size=ModelSize(parameters, in_channels=3, num_classes=150),
    )


@_register_mask2former("swin_large", "Swin-L, window 12", _swin(192, 18, 6, 12), 215_488_779)
@_register_mask2former("swin_base", "Swin-B, window 12", _swin(128, 18, 4, 12), 106_922_191)
@_register_mask2former("swin_small", "Swin-S, window 7", _swin(96, 18, 3, 7), 68_757_537)
@_register_mask2former("swin_tiny", "Swin-T, window 7", _swin(96, 6, 3, 7), 47_439_633)
@_register_mask2former("resnet_101", "ResNet-101", _RESNETS["101"], 63_033_495)
@_register_mask2former("resnet_50", "ResNet-50", _RESNETS["50"], 44_041_367)
@_register_mask2former("resnet_34", "ResNet-34", _RESNETS["34"], 41_080_727)
@_register_mask2former("resnet_18", "ResNet-18", _RESNETS["18"], 30_972_567)
class Mask2FormerOptions(MaskTransformerFields):
    """The options of Mask2Former: deformable attention over three scales and a decoder with masked attention.

    Attributes:
        encoder_layers: Layers of deformable attention.
        encoder_width: Inner width of the encoder's feed-forward layers.
        num_points: Voxels at which the mask losses are sampled.

    Examples:
        >>> from medseg.models import Mask2FormerOptions
        >>> options = Mask2FormerOptions(num_queries=12, num_points=1024)
        >>> options.num_queries, options.encoder_layers, options.decoder_layers
        (12, 6, 10)
    """

    builder: ClassVar[str] = "medseg.models.maskformer.network:build_mask2former"

    decoder_layers: Annotated[int, Field(ge=2)] = 10
    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0
    dice_weight: NonNegativeFloat = 5.0
    encoder_layers: PositiveInt = 6
    encoder_width: PositiveInt = 1024
    num_points: PositiveInt = 12544
