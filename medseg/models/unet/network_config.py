"""Complete configurations of U-Nets, including channels and classes, for use in Python. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypedDict, Unpack

from pydantic import PositiveInt

from medseg.models.layers.layer_names import Act, Downsample, Norm, Upsample
from medseg.models.unet.config import AttentionUNetOptions, InstanceUNetOptions, ResUNetOptions, UNetOptions
from medseg.models.unet.gate import GateOptions
from medseg.models.unet.stage import Block, ResidualDownsample, SkipMerge, Stage


class UNetFields(TypedDict, total=False):
    """The keyword arguments of `UNetConfig.from_channels`; see `UNetOptions` for their meaning."""

    kernel_size: int | Sequence[int | Sequence[int]]
    strides: int | Sequence[int | Sequence[int]]
    dropout: float
    decoder_num_blocks: int | Sequence[int]
    decoder_stages: Sequence[Stage]
    bottleneck: Stage | Literal["infer"] | None
    block: Block
    decoder_block: Block | None
    norm: Norm
    act: Act | None
    negative_slope: float
    skip_merge: SkipMerge
    downsample: Downsample
    upsample: Upsample
    upsample_channels: Sequence[int] | None
    residual_downsample: ResidualDownsample
    stem_channels: int | None
    final_kernel_size: int | Sequence[int]
    align_corners: bool
    bias: bool | None
    deep_supervision: bool
    gate: GateOptions


class UNetConfig(UNetOptions):
    """The complete architecture of a U-Net.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Number of classes, background included.

    Examples:
        >>> from medseg.models import UNetConfig
        >>> config = UNetConfig.from_channels(1, 3, channels=(8, 16, 32), block="res")
        >>> [stage.channels for stage in config.encoder_stages]
        [8, 16, 32]
        >>> [stage.channels for stage in config.decoder()]
        [16, 8]
    """

    in_channels: PositiveInt
    out_channels: PositiveInt

    @classmethod
    def from_channels(
        cls,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_blocks: int | Sequence[int] = 2,
        **fields: Unpack[UNetFields],
    ) -> Self:
        """Build the config from one number of channels per stage, from the full resolution down.

        Args:
            in_channels: Channels of the image.
            out_channels: Number of classes, background included.
            channels: Channels of each encoder stage.
            num_blocks: Blocks per stage, one number or one per stage.
            **fields: Other fields of `UNetOptions`.

        Returns:
            The configuration.

        Raises:
            ConfigError: Values do not fit; all errors are listed at once.
        """
        values: dict[str, Any] = dict(fields)
        values |= {"in_channels": in_channels, "out_channels": out_channels}
        values |= {"channels": channels, "num_blocks": num_blocks}
        return cls.parse(values, source=cls.__name__)


class ResUNetConfig(ResUNetOptions, UNetConfig):
    """The complete architecture of a U-Net of residual blocks.

    Examples:
        >>> from medseg.models import ResUNetConfig
        >>> ResUNetConfig.from_channels(1, 2, channels=(8, 16)).block
        'res'
    """


class AttentionUNetConfig(AttentionUNetOptions, UNetConfig):
    """The complete architecture of an attention U-Net.

    Examples:
        >>> from medseg.models import AttentionUNetConfig
        >>> config = AttentionUNetConfig.from_channels(1, 2, channels=(8, 16, 32))
        >>> config.deep_supervision, config.gate.gated_levels(config.num_decoder_levels)
        (True, (True, False))
    """


class InstanceUNetConfig(InstanceUNetOptions, UNetConfig):
    """The complete architecture of a U-Net that finds instances.

    Examples:
        >>> from medseg.models import InstanceUNetConfig
        >>> InstanceUNetConfig.from_channels(1, 2, channels=(8, 16)).instance_loss_weight
        1.0
    """
