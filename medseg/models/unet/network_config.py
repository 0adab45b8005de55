"""The whole architecture of a U-Net, with channels and classes, for use in Python. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypedDict, Unpack

from pydantic import PositiveInt

from medseg.models.layers.layer_names import Act, Downsample, Norm, Upsample
from medseg.models.unet.config import AttentionUNetOptions, ResUNetOptions, UNetOptions
from medseg.models.unet.gate import GateOptions
from medseg.models.unet.stage import Block, ResidualDownsample, SkipMerge, Stage


class UNetFields(TypedDict, total=False):
    """The fields that `UNetConfig.from_channels` takes besides the widths; see `UNetOptions`."""

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
    """The whole architecture of a U-Net.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background counted.
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
        """Build the config from one width per stage, from the full resolution down.

        Raises:
            ConfigError: values do not fit; all mistakes are listed at once.
        """
        values: dict[str, Any] = dict(fields)
        values |= {"in_channels": in_channels, "out_channels": out_channels}
        values |= {"channels": channels, "num_blocks": num_blocks}
        return cls.parse(values, source=cls.__name__)


class ResUNetConfig(ResUNetOptions, UNetConfig):
    """The whole architecture of a U-Net of residual blocks."""


class AttentionUNetConfig(AttentionUNetOptions, UNetConfig):
    """The whole architecture of an attention U-Net."""
