"""The U-Net: one implementation over any number of stages, for 2D and 3D."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.models.base import Model
from medseg.models.catalog import raise_for_axes
from medseg.models.layers.concatenate import can_upsample_into, upsample_into
from medseg.models.layers.convs import conv_nd
from medseg.models.layers.memory_format import (
    crop_to,
    match_memory_format,
    match_model_format,
    pad_to,
    round_up,
)
from medseg.models.layers.norms import num_groups
from medseg.models.layers.resample import Upsampler, resize
from medseg.models.unet.blocks import BlockSettings, ConvNormAct, ConvStage, initialise
from medseg.models.unet.config import ResUNetOptions, UNetOptions
from medseg.models.unet.network_config import ResUNetConfig, UNetConfig
from medseg.models.unet.stage import Stage, per_axis


class DecoderLevel(nn.Module):
    """One decoder level: upsample the coarser map, merge the skip, and apply the blocks of the level.

    `gate`, if set, is a module of (skip, lower) that returns the skip to merge.
    """

    def __init__(self, config: UNetConfig, level: int, stage: Stage, settings: BlockSettings) -> None:
        super().__init__()
        lower, up, skip = (
            widths[level] for widths in (config.lower_widths(), config.up_widths(), config.skip_widths())
        )
        self.concat = config.skip_merge == "concat"
        self.up = Upsampler(
            settings.dims,
            lower,
            up,
            config.encoder_stages[-1 - level].strides(settings.dims),
            mode=config.upsample,
            bias=config.bias is not False,
            align_corners=config.align_corners,
        )
        self.gate: nn.Module | None = None
        block = config.decoder_block or config.block
        self.stage = ConvStage(up + skip if self.concat else skip, stage, block, settings)

    def forward(self, lower: Tensor, skip: Tensor) -> Tensor:
        """Map lower (n c *spatial/stride) and skip (n s *spatial) to (n c' *spatial)."""
        if self.gate is not None:
            skip = self.gate(skip, lower)
        out: Tensor = self.stage(self._merged(lower, skip))
        return out

    def _merged(self, lower: Tensor, skip: Tensor) -> Tensor:
        """Return the upsampled coarser map, merged with the skip."""
        conv = self.up.conv
        if self.concat and self.up.mode == "transpose" and can_upsample_into(conv, lower, skip):
            return upsample_into(conv, lower, skip)  # type: ignore[arg-type]
        up: Tensor = self.up(lower)
        return match_memory_format(torch.cat([up, skip], dim=1), up) if self.concat else up + skip


class UNet(Model):
    """A U-Net for images of any size (Ronneberger et al. 2015; Çiçek et al. 2016; Isensee et al. 2021).

    Images whose sizes are not multiples of `divisor` are padded at the far end by repeating their last voxels, and the
    logits are cropped. Use `UNet2d` or `UNet3d`.

    Args:
        config: The architecture.
        spatial_dims: 2 or 3.

    Raises:
        ConfigError: The config has per-axis lists for another number of axes.
    """

    def __init__(self, config: UNetConfig, spatial_dims: int) -> None:
        raise_for_axes(config, spatial_dims, type(self).__name__)
        strides = [stage.strides(spatial_dims) for stage in config.encoder_stages]
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=config.in_channels,
            num_classes=config.out_channels,
            divisor=tuple(prod(axis) for axis in zip(*strides, strict=True)),
        )
        self.config = config
        settings = block_settings(config, spatial_dims)
        width = config.in_channels
        self.stem: ConvNormAct | None = None
        if config.stem_channels is not None:
            kernel = config.encoder_stages[0].kernel(spatial_dims)
            self.stem = ConvNormAct(width, config.stem_channels, settings, kernel_size=kernel)
            width = config.stem_channels
        widths = [width, *(stage.channels for stage in config.encoder_stages)]
        self.encoder = nn.ModuleList(
            ConvStage(w, stage, config.block, settings)
            for w, stage in zip(widths, config.encoder_stages, strict=False)
        )
        bottom = config.bottom()
        self.bottleneck = None if bottom is None else ConvStage(widths[-1], bottom, config.block, settings)
        decoder = config.decoder()
        self.decoder = nn.ModuleList(
            DecoderLevel(config, level, stage, settings) for level, stage in enumerate(decoder)
        )
        # Element 0 is the full resolution. A head with weight zero would have parameters without gradients.
        self.head_weights = supervision_weights(len(decoder)) if config.deep_supervision else (1.0,)
        self.head = make_head(config, decoder[-1].channels, spatial_dims)
        self.aux_heads = nn.ModuleList(
            make_head(config, decoder[-1 - i].channels, spatial_dims)
            for i in range(1, len(self.head_weights))
        )
        self.layer_prefixes = (
            "stem",
            *(f"encoder.{stage}" for stage in range(len(self.encoder))),
            "bottleneck",
            *(f"decoder.{level}" for level in range(len(self.decoder))),
        )
        initialise(self, settings)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of an image.

        Args:
            image: Images (n c *spatial).

        Returns:
            Logits (n k *spatial).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        return self._logits(self.features(image)[-1], tuple(image.shape[2:]))

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the maps of all decoder levels, deepest first, on the grid of the padded image."""
        self.check_image(image)
        x = pad_to(match_model_format(image, self), round_up(tuple(image.shape[2:]), self.divisor))
        if self.stem is not None:
            x = self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        if self.bottleneck is not None:
            x = self.bottleneck(x)
        maps = []
        for level in self.decoder:
            x = level(x, skips.pop())
            maps.append(x)
        return maps

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the value of the criterion; with deep supervision, its weighted sum over the heads.

        Args:
            image: Images (n c *spatial).
            label: Class indices (n 1 *spatial), int64; auxiliary heads use the central voxel of each cell.
            instances: Ignored.

        Returns:
            One entry, ``loss``.

        Raises:
            ModelError: No criterion is set, or shapes do not fit.
        """
        self.require_criterion()
        self.check_label(image, label)
        return {"loss": self._supervised(self.features(image), image, label)}

    def _supervised(self, maps: list[Tensor], image: Tensor, label: Tensor) -> Tensor:
        """Return the criterion of the logits of all heads, weighted."""
        criterion = self.require_criterion()
        total = (
            criterion(self._logits(maps[-1], tuple(image.shape[2:])).float(), label) * self.head_weights[0]
        )
        factor = self.config.encoder_stages[0].strides(self.spatial_dims)
        for i, head in enumerate(self.aux_heads, start=1):
            step = self.config.encoder_stages[i].strides(self.spatial_dims)
            factor = tuple(f * s for f, s in zip(factor, step, strict=True))
            logits = head(maps[-1 - i])
            small = shrink_label(label, factor, tuple(logits.shape[2:]))
            total = total + criterion(logits.float(), small) * self.head_weights[i]
        return total

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` if the image does not fit, or if a norm would see a single value per channel."""
        super().check_image(image)
        size = tuple(image.shape[2:])
        deepest = tuple(n // d for n, d in zip(round_up(size, self.divisor), self.divisor, strict=True))
        norm, width = self.config.norm, self.config.encoder_stages[-1].channels
        values = prod(deepest)
        if norm == "batch":
            values = values * image.shape[0] if self.training else 2
        elif norm == "group":
            values *= width // num_groups(width)
        elif norm != "instance":
            return
        if values == 1:
            expected = f"more than {self.divisor} along at least one axis"
            what = f"{norm} norm would see a single value on the deepest map: image size"
            fix = "Use a larger image or patch, fewer stages, or norm: layer"
            raise ModelError(error_message(type(self).__name__, what, found=size, expected=expected, fix=fix))

    def _logits(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return self._on_image(self.head(x), size)

    def _on_image(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return what a head computes, on the grid of the image."""
        # If the first stage has a stride, the decoder's last grid is coarser than the image's.
        first = self.config.encoder_stages[0].strides(self.spatial_dims)
        full = tuple(n * s for n, s in zip(values.shape[2:], first, strict=True))
        return crop_to(resize(values, full, align_corners=self.config.align_corners), size)


class UNet2d(UNet):
    """U-Net for images (n c x y); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import UNet2d, UNetConfig
        >>> UNet2d(UNetConfig.from_channels(1, 3, channels=(4, 8)))(torch.zeros(1, 1, 17, 20)).shape
        torch.Size([1, 3, 17, 20])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, 2)


class UNet3d(UNet):
    """U-Net for volumes (n c x y z); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import UNet3d, UNetConfig
        >>> UNet3d(UNetConfig.from_channels(1, 3, channels=(4, 8)))(torch.zeros(1, 1, 9, 8, 8)).shape
        torch.Size([1, 3, 9, 8, 8])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, 3)


class ResUNet2d(UNet):
    """U-Net of residual blocks for images (n c x y); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import ResUNet2d, ResUNetConfig
        >>> ResUNet2d(ResUNetConfig.from_channels(1, 3, channels=(4, 8)))(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, config: ResUNetConfig) -> None:
        super().__init__(config, 2)


class ResUNet3d(UNet):
    """U-Net of residual blocks for volumes (n c x y z); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import ResUNet3d, ResUNetConfig
        >>> ResUNet3d(ResUNetConfig.from_channels(1, 3, channels=(4, 8)))(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 3, 8, 8, 8])
    """

    def __init__(self, config: ResUNetConfig) -> None:
        super().__init__(config, 3)


def block_settings(config: UNetConfig, spatial_dims: int) -> BlockSettings:
    """Return the settings that all blocks of a network share."""
    return BlockSettings(
        dims=spatial_dims,
        norm=config.norm,
        act=config.act,
        negative_slope=config.negative_slope,
        bias=config.conv_bias(),
        residual_downsample=config.residual_downsample,
        downsample=config.downsample,
    )


def make_head(config: UNetConfig, channels: int, spatial_dims: int) -> nn.Module:
    """Return the convolution from the channels of a decoder level to logits."""
    kernel = per_axis(config.final_kernel_size, spatial_dims)
    return conv_nd(spatial_dims, channels, config.out_channels, kernel)


def supervision_weights(levels: int) -> tuple[float, ...]:
    """Return the loss weights of the decoder levels, full resolution first, with sum 1.

    The weights are 1/2^i without the coarsest level (nnU-Net, Isensee et al. 2021). With fewer than three levels all are
    kept, because the rule would leave a single head.
    """
    raw = [0.5**i for i in range(levels if levels < 3 else levels - 1)]
    return tuple(weight / sum(raw) for weight in raw)


def shrink_label(label: Tensor, factor: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Return the voxel of `label` at the centre of each cell of `factor` voxels.

    This is the interpolation ``nearest-exact``. Cells beyond the label, where the image was padded, repeat its last voxel.

    Args:
        label: Class indices (n 1 *spatial).
        factor: Size of a cell, per axis.
        size: Number of cells, per axis.

    Returns:
        Class indices (n 1 *size).
    """
    for axis, (step, n) in enumerate(zip(factor, size, strict=True), start=2):
        index = torch.arange(n, device=label.device) * step + step // 2
        label = label.index_select(axis, index.clamp(max=label.shape[axis] - 1))
    return label


def build_unet(options: UNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int) -> UNet:
    """Build a U-Net with fresh weights."""
    config = UNetConfig(in_channels=in_channels, out_channels=num_classes, **dict(options))
    return UNet2d(config) if spatial_dims == 2 else UNet3d(config)


def build_resunet(options: ResUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int) -> UNet:
    """Build a residual U-Net with fresh weights."""
    config = ResUNetConfig(in_channels=in_channels, out_channels=num_classes, **dict(options))
    return ResUNet2d(config) if spatial_dims == 2 else ResUNet3d(config)
