"""Options of the U-Net family, and their names in the catalog. Free of torch.

The encoder is a list of stages, from the full resolution down. Every list over *decoder levels* (decoder stages,
upsampled widths, gates) follows the order of computation, **from the deepest level to the shallowest**.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from medseg.models.catalog import ModelOptions, ModelSize, register, register_2d_and_3d
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
    """The options of a U-Net; the numbers of channels and classes come from the data.

    Define the encoder either by `encoder_stages` or by the short form: `channels`, with `num_blocks`, `kernel_size`,
    `strides` and `dropout`. The short form is expanded into stages, so the resolved configuration shows only those.

    Attributes:
        channels: Channels of each encoder stage, from the full resolution down (default 32, 64, 128, 256). Short
            form.
        num_blocks: Blocks per stage, one number or one per stage (default 2). Short form.
        kernel_size: Kernel size, one for all stages or a list with one per stage, each a number or one number per
            axis (default 3; 7 if block is ``convnext``, as in Liu et al. 2022, arXiv:2201.03545). Short form.
        strides: A list with one stride per stage, or one stride for all stages except the first, which has stride 1
            (default 2). Short form.
        dropout: Dropout probability of all stages (default 0). Short form.
        decoder_num_blocks: Blocks of the mirrored decoder, one number or one per level, where they differ from the
            encoder's. Short form.
        encoder_stages: Stages of the encoder, from the full resolution down.
        decoder_stages: Stages of the decoder, from the deepest level to the shallowest; None mirrors the encoder
            without its deepest stage.
        bottleneck: A stage after the deepest encoder stage, on the same grid; ``infer`` copies the deepest stage;
            None adds nothing, so the deepest encoder stage is the bottom, as in nnU-Net.
        block: ``basic`` (convolution, norm, activation), ``res`` (two convolutions with a residual sum, He et al.
            2016) or ``convnext`` (depthwise convolution, norm, inverted bottleneck of four times the width).
        decoder_block: Kind of block in the decoder; None for the same as the encoder. nnU-Net's residual encoder has
            a ``basic`` decoder.
        norm: ``instance``, ``batch``, ``group`` (the largest number of groups up to 32 that divides the channels),
            ``layer`` (over the channels of each voxel) or ``none``.
        act: ``relu``, ``leaky_relu``, ``gelu`` or ``silu``; None is GELU for ``convnext`` and leaky ReLU otherwise.
        negative_slope: Negative slope of the leaky ReLU.
        skip_merge: ``concat`` (upsampled map first, then the skip) or ``add``, which requires equal numbers of
            channels.
        downsample: ``conv`` uses a stride in the first convolution of a stage; ``maxpool`` and ``avgpool`` pool
            before it.
        upsample: ``transpose`` (transposed convolution with kernel = stride), ``linear``, ``nearest`` or
            ``pixelshuffle`` (Shi et al. 2016, arXiv:1609.05158).
        upsample_channels: Channels of the upsampled map of each level, deepest first. None uses the channels of the
            skip for ``transpose`` and ``pixelshuffle``. The other two keep the channels of the coarser level and add
            a 1×1 convolution only where a list asks for another number.
        residual_downsample: Shortcut of a strided residual block: ``avgpool`` followed by a 1×1 convolution (He et
            al. 2019, nnU-Net), or ``conv``, a strided 1×1 convolution (He et al. 2016, MONAI).
        stem_channels: Channels of a convolution before the first stage; None for no stem.
        final_kernel_size: Kernel size of the convolution that computes the logits.
        align_corners: Whether linear upsampling aligns the corner voxels.
        bias: Whether convolutions have a bias. None adds one unless a batch or instance norm follows, which would
            remove it again; upsampling convolutions then always have one.
        deep_supervision: Whether auxiliary heads on the intermediate decoder levels contribute to the loss;
            predictions do not use them.

    Examples:
        >>> from medseg.models import UNetOptions
        >>> options = UNetOptions(channels=(8, 16, 32), norm="group")
        >>> options.num_decoder_levels, options.skip_widths()
        (2, (16, 8))
        >>> options.encoder_stages[1].stride
        2
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
        levels = self.num_decoder_levels
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
    def num_decoder_levels(self) -> int:
        """The number of decoder levels, one less than the number of encoder stages."""
        return len(self.encoder_stages) - 1

    def decoder(self) -> tuple[Stage, ...]:
        """Return the decoder stages, deepest first, mirrored from the encoder where none are given."""
        return mirrored(self.encoder_stages) if self.decoder_stages is None else self.decoder_stages

    def bottom(self) -> Stage | None:
        """Return the bottleneck stage, or None."""
        if self.bottleneck == "infer":
            return self.encoder_stages[-1].replace(stride=1)
        return self.bottleneck

    def skip_widths(self) -> tuple[int, ...]:
        """Return the channels of the skip of each decoder level, deepest first."""
        return tuple(stage.channels for stage in reversed(self.encoder_stages[:-1]))

    def lower_widths(self) -> tuple[int, ...]:
        """Return the channels that each decoder level receives from the coarser level, deepest first."""
        bottom = self.bottom() or self.encoder_stages[-1]
        return (bottom.channels, *(stage.channels for stage in self.decoder()[:-1]))

    def up_widths(self) -> tuple[int, ...]:
        """Return the channels of the upsampled map of each decoder level, deepest first."""
        if self.upsample_channels is not None:
            return self.upsample_channels
        return self.skip_widths() if self.upsample in ("transpose", "pixelshuffle") else self.lower_widths()

    def conv_bias(self) -> bool:
        """Return whether the convolutions of the blocks have a bias."""
        return self.norm not in ("batch", "instance") if self.bias is None else self.bias

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Return one sentence per per-axis list that does not have `spatial_dims` entries."""
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


@register_2d_and_3d(
    "resunet",
    summary="{} U-Net of residual blocks",
    reference="Zhang, Liu, Wang 2018, Deep Residual U-Net, arXiv:1711.10684",
    parameters=(3_970_530, 11_552_802),
)
class ResUNetOptions(UNetOptions):
    """The options of a U-Net of residual blocks, in the order convolution, norm, activation.

    Zhang et al. place norm and activation before each convolution. The order used here is that of nnU-Net's residual
    encoder and MONAI's DynUNet, so that their weights can be imported.

    Examples:
        >>> from medseg.models import ResUNetOptions
        >>> ResUNetOptions(channels=(8, 16)).block
        'res'
    """

    builder: ClassVar[str] = "medseg.models.unet.network:build_resunet"

    block: Block = "res"


@register_2d_and_3d(
    "attention_unet",
    summary="{} U-Net with attention gates on the skips",
    reference="Oktay et al. 2018, Attention U-Net, arXiv:1804.03999",
    parameters=(2_009_510, 5_940_198),
)
class AttentionUNetOptions(UNetOptions):
    """The options of a U-Net with additive attention gates on the skips; the defaults follow Oktay et al. 2018.

    Attributes:
        gate: Options of the attention gates.

    Examples:
        >>> from medseg.models import AttentionUNetOptions
        >>> options = AttentionUNetOptions(channels=(8, 16, 32), gate={"include_shallowest": True})
        >>> options.downsample, options.upsample, options.gate.gated_levels(options.num_decoder_levels)
        ('maxpool', 'linear', (True, True))
    """

    builder: ClassVar[str] = "medseg.models.unet.attention:build"

    downsample: Downsample = "maxpool"
    upsample: Upsample = "linear"
    deep_supervision: bool = True
    gate: GateOptions = GateOptions()

    @model_validator(mode="after")
    def _check_gates(self) -> Self:
        self.gate.check(self.skip_widths())
        return self


@register_2d_and_3d(
    "instance_unet",
    summary="{} U-Net that finds instances: classes, distances to borders and offsets to centres",
    reference="Cheng et al. 2020, Panoptic-DeepLab, arXiv:1911.10194",
    parameters=(1_926_565, 5_601_286),
)
class InstanceUNetOptions(UNetOptions):
    """The options of a U-Net that also finds instances, such as nuclei or lesions that touch each other.

    Besides the logits of the classes, the network computes the distance of each voxel from the border of its instance and
    the offset to the centre of its instance, from the map of the shallowest decoder level. It learns both from instance maps;
    in a dataset without them, the connected components of the label maps are the instances.

    Attributes:
        instance_loss_weight: Weight of the losses of distances and offsets, relative to the loss of the classes.

    Examples:
        >>> from medseg.models import InstanceUNetOptions
        >>> InstanceUNetOptions(channels=(8, 16), instance_loss_weight=0.5).num_decoder_levels
        1
    """

    builder: ClassVar[str] = "medseg.models.unet.instance_unet:build"

    instance_loss_weight: Annotated[float, Field(gt=0)] = 1.0


def _set(options: UNetOptions, key: str, value: object) -> None:
    # The object is frozen, but validators may still complete it.
    object.__setattr__(options, key, value)
