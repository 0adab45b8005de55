"""Options of the U-Net family, and their names in the catalog. Free of torch.

A network is a list of encoder stages, from the full resolution down. Every list over *decoder levels* (decoder
stages, upsampled widths, gates) runs in order of computation, **from the deepest level to the shallowest**.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.catalog import ModelOptions, ModelSize, register
from medseg.models.layers.layer_names import Act, Downsample, Norm, Upsample
from medseg.models.unet.gate import GateOptions
from medseg.models.unet.stage import (
    SHORT_FORM,
    Block,
    Bottleneck,
    Counts,
    Kernel,
    Kernels,
    Probability,
    ResidualDownsample,
    SkipMerge,
    Stage,
    Strides,
    expand_encoder,
    mirrored,
    per_axis,
    with_num_blocks,
)

# The short form is read, expanded into stages, and then cleared, so that both ways of writing the same network
# compare equal and the resolved config shows one of them.
_Short = Field(default=None, exclude=True)


@register(
    "unet_3d",
    spatial_dims=3,
    summary="3D U-Net, every stage configurable",
    reference="Çiçek et al. 2016, 3D U-Net, arXiv:1606.06650",
    size=ModelSize(5_601_154, in_channels=1, num_classes=2),
)
@register(
    "unet_2d",
    spatial_dims=2,
    summary="2D U-Net, every stage configurable",
    reference="Ronneberger et al. 2015, U-Net, arXiv:1505.04597",
    size=ModelSize(1_926_466, in_channels=1, num_classes=2),
)
class UNetOptions(ModelOptions):
    """Every choice about a U-Net but the numbers of channels and classes, which the data tell.

    Either `encoder_stages`, or the short form `channels` (one width per stage, default 32, 64, 128, 256) with

    - `num_blocks`, one for all or a list (default 2);
    - `kernel_size`, one for all or a list with one per stage, each a number or one per axis (default 3, and 7
      when `block` is ``convnext``, as in Liu et al. 2022, "A ConvNet for the 2020s");
    - `strides`, a list with one per stage, or one for all stages but the first, whose stride is 1 (default 2);
    - `dropout`, one for all.

    Args:
        decoder_stages: from the deepest level to the shallowest; None mirrors the encoder without its deepest
            stage.
        decoder_num_blocks: number of blocks of the mirrored decoder, where it differs.
        bottleneck: a stage after the deepest encoder stage, on the same grid; ``infer`` copies the deepest
            stage; None adds nothing, so that the deepest encoder stage is the bottom, as in nnU-Net.
        block: ``basic`` (convolution, norm, activation), ``res`` (He et al. 2016, two convolutions and a sum),
            ``convnext`` (depthwise convolution, norm, inverted bottleneck of 4 times the width).
        decoder_block: block of the decoder, None for the same; nnU-Net's residual encoder has a plain decoder.
        norm: ``instance``, ``batch``, ``group`` (the largest divisor of the width up to 32 groups), ``layer``
            (over the channels of each voxel), ``none``.
        act: None is GELU for ``convnext`` and leaky ReLU for the others.
        negative_slope: of the leaky ReLU.
        skip_merge: ``concat`` (upsampled first, then the skip) or ``add``, which needs equal widths.
        downsample: ``conv`` strides the first convolution of a stage; the others pool in front of it.
        upsample: ``transpose`` (kernel = stride), ``linear``, ``nearest``, ``pixelshuffle`` (Shi et al. 2016).
        upsample_channels: width of each level's upsampled map, deepest first. None is the skip's width for
            ``transpose`` and ``pixelshuffle``; the other two keep the width that comes from below, and get a
            1×1 convolution in front only where a list asks for another.
        residual_downsample: shortcut of a strided residual block: ``avgpool`` then 1×1 convolution (He et al.
            2019, nnU-Net), or ``conv``, a strided 1×1 convolution (He et al. 2016, MONAI).
        stem_channels: width of a convolution in front of the first stage; None for no stem.
        final_kernel_size: kernel of the convolution that makes logits.
        align_corners: of linear upsampling.
        bias: None means: convolutions have a bias unless a batch or instance norm, which subtracts it again,
            follows; upsampling convolutions always have one.
        deep_supervision: auxiliary heads on the intermediate decoder levels, which only the loss sees.
    """

    builder: ClassVar[str] = "medseg.models.unet.network:build_unet"

    channels: Annotated[tuple[PositiveInt, ...] | None, _Short] = None
    num_blocks: Annotated[Counts | None, _Short] = None
    kernel_size: Annotated[Kernels | None, _Short] = None
    strides: Annotated[Strides | None, _Short] = None
    dropout: Annotated[Probability | None, _Short] = None
    decoder_num_blocks: Annotated[Counts | None, _Short] = None

    encoder_stages: tuple[Stage, ...] = ()
    decoder_stages: tuple[Stage, ...] | None = None
    bottleneck: Bottleneck = None
    block: Block = "basic"
    decoder_block: Block | None = None
    norm: Norm = "instance"
    act: Act | None = None
    negative_slope: Annotated[float, Field(ge=0.0)] = 0.01
    skip_merge: SkipMerge = "concat"
    downsample: Downsample = "conv"
    upsample: Upsample = "transpose"
    upsample_channels: tuple[PositiveInt, ...] | None = None
    residual_downsample: ResidualDownsample = "avgpool"
    stem_channels: PositiveInt | None = None
    final_kernel_size: Kernel = 1
    align_corners: bool = False
    bias: bool | None = None
    deep_supervision: bool = False

    @model_validator(mode="after")
    def _expand_short_form(self) -> Self:
        given = [key for key in SHORT_FORM if getattr(self, key) is not None]
        if self.encoder_stages and given:
            raise ValueError(
                f"encoder_stages and the short form ({', '.join(given)}) are both given; keep one of them"
            )
        if not self.encoder_stages:
            stages = expand_encoder(
                channels=self.channels,
                num_blocks=self.num_blocks,
                kernel_size=self.kernel_size,
                strides=self.strides,
                dropout=self.dropout,
                default_kernel=7 if self.block == "convnext" else 3,
            )
            _set(self, "encoder_stages", stages)
        if len(self.encoder_stages) < 2:
            raise ValueError(f"found {len(self.encoder_stages)} encoder stage, expected at least 2")
        if self.decoder_num_blocks is not None:
            if self.decoder_stages is not None:
                raise ValueError("decoder_stages and decoder_num_blocks are both given; keep one of them")
            stages = with_num_blocks(mirrored(self.encoder_stages), self.decoder_num_blocks)
            _set(self, "decoder_stages", stages)
        for key in (*SHORT_FORM, "decoder_num_blocks"):
            _set(self, key, None)
        return self

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = self.num_levels
        lists: dict[str, tuple[Any, ...] | None] = {
            "decoder_stages": self.decoder_stages,
            "upsample_channels": self.upsample_channels,
        }
        for key, values in lists.items():
            if values is not None and len(values) != levels:
                raise ValueError(
                    f"{key} has {len(values)} entries, expected {levels}: one per decoder level, deepest first"
                )
        for stage in (*self.decoder(), *([bottom] if (bottom := self.bottom()) else [])):
            if any(number != 1 for number in per_axis(stage.stride, 3)):
                raise ValueError(
                    f"a decoder or bottleneck stage has stride {stage.stride}, expected 1; "
                    "strides belong to encoder_stages"
                )
        return self

    @model_validator(mode="after")
    def _check_addition(self) -> Self:
        if self.skip_merge == "add":
            for level, (width, skip) in enumerate(zip(self.up_widths(), self.skip_widths(), strict=True)):
                if width != skip:
                    raise ValueError(
                        f"skip_merge 'add' needs equal widths, but decoder level {level} (0 is the deepest) "
                        f"adds {width} upsampled channels to {skip}; set upsample_channels to "
                        f"{list(self.skip_widths())}, or use concat"
                    )
        return self

    @property
    def num_levels(self) -> int:
        """Number of decoder levels: one less than encoder stages."""
        return len(self.encoder_stages) - 1

    def decoder(self) -> tuple[Stage, ...]:
        """The decoder's stages, deepest first, mirrored where none are given."""
        return mirrored(self.encoder_stages) if self.decoder_stages is None else self.decoder_stages

    def bottom(self) -> Stage | None:
        """The bottleneck stage, or None."""
        if self.bottleneck == "infer":
            return self.encoder_stages[-1].replace(stride=1)
        return self.bottleneck

    def skip_widths(self) -> tuple[int, ...]:
        """Channels of the skip of each decoder level, deepest first."""
        return tuple(stage.channels for stage in reversed(self.encoder_stages[:-1]))

    def lower_widths(self) -> tuple[int, ...]:
        """Channels that come up from below into each decoder level, deepest first."""
        bottom = self.bottom() or self.encoder_stages[-1]
        return (bottom.channels, *(stage.channels for stage in self.decoder()[:-1]))

    def up_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level's upsampled map, deepest first."""
        if self.upsample_channels is not None:
            return self.upsample_channels
        return self.skip_widths() if self.upsample in ("transpose", "pixelshuffle") else self.lower_widths()

    def conv_bias(self) -> bool:
        """Whether the blocks' convolutions have a bias."""
        return self.norm not in ("batch", "instance") if self.bias is None else self.bias

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Sentences about per-axis lists that do not have `spatial_dims` entries."""
        named = [(f"encoder_stages.{i}", stage) for i, stage in enumerate(self.encoder_stages)]
        named += [(f"decoder_stages.{i}", stage) for i, stage in enumerate(self.decoder_stages or ())]
        if isinstance(self.bottleneck, Stage):
            named.append(("bottleneck", self.bottleneck))
        found = [problem for where, stage in named for problem in stage.axis_errors(where, spatial_dims)]
        kernel = self.final_kernel_size
        if isinstance(kernel, tuple) and len(kernel) != spatial_dims:
            found.append(
                f"final_kernel_size: found {list(kernel)}, expected one number or {spatial_dims}, one per axis."
            )
        return found


@register(
    "resunet_3d",
    spatial_dims=3,
    summary="3D U-Net of residual blocks",
    reference="Zhang, Liu, Wang 2018, Deep Residual U-Net, arXiv:1711.10684",
    size=ModelSize(11_552_802, in_channels=1, num_classes=2),
)
@register(
    "resunet_2d",
    spatial_dims=2,
    summary="2D U-Net of residual blocks",
    reference="Zhang, Liu, Wang 2018, Deep Residual U-Net, arXiv:1711.10684",
    size=ModelSize(3_970_530, in_channels=1, num_classes=2),
)
class ResUNetOptions(UNetOptions):
    """A U-Net of residual blocks, in the order convolution, norm, activation.

    Zhang et al. put norm and activation in front of each convolution; the order here is that of nnU-Net's
    residual encoder and MONAI's DynUNet, so that their weights fit.
    """

    builder: ClassVar[str] = "medseg.models.unet.network:build_resunet"

    block: Block = "res"


@register(
    "attention_unet_3d",
    spatial_dims=3,
    summary="3D U-Net with attention gates on the skips",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    size=ModelSize(5_940_198, in_channels=1, num_classes=2),
)
@register(
    "attention_unet_2d",
    spatial_dims=2,
    summary="2D U-Net with attention gates on the skips",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    size=ModelSize(2_009_510, in_channels=1, num_classes=2),
)
class AttentionUNetOptions(UNetOptions):
    """A U-Net whose skips pass additive attention gates; the defaults are the paper's."""

    builder: ClassVar[str] = "medseg.models.unet.attention:build"

    downsample: Downsample = "maxpool"
    upsample: Upsample = "linear"
    deep_supervision: bool = True
    gate: GateOptions = GateOptions()

    @model_validator(mode="after")
    def _check_gates(self) -> Self:
        self.gate.check(self.skip_widths())
        return self


def _set(options: UNetOptions, key: str, value: object) -> None:
    # A frozen pydantic object is still ours to complete while it is being validated.
    object.__setattr__(options, key, value)
