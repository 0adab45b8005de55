"""Options of MaskFormer and Mask2Former, and their names in the catalog. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from medseg.models.catalog import ModelSize, register
from medseg.models.pretrained.config import PretrainedOptions

FourCounts = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

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
    """A Swin transformer by its first width, the depth of its third stage, its first heads and its window."""
    return {
        "backbone": "swin",
        "depths": (2, 2, third, 2),
        "widths": tuple(embed * 2**i for i in range(4)),
        "heads": tuple(heads * 2**i for i in range(4)),
        "window_size": window,
    }


class MaskTransformerFields(PretrainedOptions):
    """What MaskFormer and Mask2Former share: queries, each of which gives a class and a mask.

    Args:
        backbone: ``resnet`` (He et al. 2016) or, in Mask2Former, ``swin`` (Liu et al. 2021, arXiv:2103.14030).
        depths: blocks of the four stages.
        widths: channels of the four stages; those of a Swin double from stage to stage.
        block: of a ResNet, ``bottleneck`` or ``basic``.
        stem_channels: of a ResNet.
        heads: attention heads of the stages of a Swin.
        window_size: of a Swin, in patches of 4.
        drop_path: rate of stochastic depth of a Swin.
        queries: most objects and regions that can be told apart.
        hidden_channels: width of queries and masks, a multiple of 32 from 64 on.
        decoder_layers: of the transformer that reads the queries.
        decoder_width: width inside its feed-forward layers.
        attention_heads: of the decoder.
        auxiliary: losses on every decoder layer, not on the last alone.
        no_object_weight: of the class "no object" in the loss.
        class_weight, mask_weight, dice_weight: of the three losses, and of the costs of matching.
        targets: with ``components`` each connected component of a foreground class is one target, with
            ``classes`` all voxels of a class are. An instance map given to `losses` goes before both. The
            background is always one target.
        score_threshold: least score of an object or a region that is found.
        mask_threshold: probability above which a voxel belongs to it.
        overlap_threshold: in panoptic maps, the least share of a mask that must be left where masks overlap.
        fuse: classes of which a panoptic map shows all regions as one.
    """

    backbone: Literal["resnet", "swin"] = "resnet"
    depths: FourCounts = (3, 4, 6, 3)
    widths: FourCounts = (256, 512, 1024, 2048)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    stem_channels: PositiveInt = 64
    heads: FourCounts = (3, 6, 12, 24)
    window_size: PositiveInt = 7
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    queries: PositiveInt = 100
    hidden_channels: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    decoder_layers: PositiveInt = 6
    decoder_width: PositiveInt = 2048
    attention_heads: PositiveInt = 8
    auxiliary: bool = True
    no_object_weight: NonNegativeFloat = 0.1
    class_weight: NonNegativeFloat = 1.0
    mask_weight: NonNegativeFloat = 20.0
    dice_weight: NonNegativeFloat = 1.0
    targets: Literal["components", "classes"] = "components"
    score_threshold: Share = 0.5
    mask_threshold: Share = 0.5
    overlap_threshold: Share = 0.8
    fuse: tuple[Annotated[int, Field(ge=0)], ...] = (0,)

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.hidden_channels % self.attention_heads:
            raise ValueError(
                f"hidden_channels {self.hidden_channels} is not a multiple of attention_heads {self.attention_heads}"
            )
        if self.backbone == "swin":
            doubled = tuple(self.widths[0] * 2**i for i in range(4))
            if self.widths != doubled:
                raise ValueError(f"widths of a swin double from stage to stage, expected {list(doubled)}")
            if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
                raise ValueError("widths must be multiples of heads, stage by stage")
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
    """MaskFormer: a pyramid gives features of the voxels, a transformer decoder the masks' and classes'.

    Args:
        dropout: in the decoder; the paper's 0.1 is for much data, and slows the queries' parting on little.
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
    """Mask2Former: deformable attention over three scales, and a decoder that looks only where a query's mask is.

    Args:
        encoder_layers: of the deformable attention.
        encoder_width: width inside its feed-forward layers.
        points: voxels at which the mask losses are sampled.
    """

    builder: ClassVar[str] = "medseg.models.maskformer.network:build_mask2former"

    decoder_layers: Annotated[int, Field(ge=2)] = 10
    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0
    dice_weight: NonNegativeFloat = 5.0
    encoder_layers: PositiveInt = 6
    encoder_width: PositiveInt = 1024
    points: PositiveInt = 12544
