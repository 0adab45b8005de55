"""The attention U-Net: a U-Net whose skips are weighted by attention gates."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.convs import conv_nd, patch_conv_nd
from medseg.models.layers.memory_format import match_memory_format
from medseg.models.layers.resample import resize
from medseg.models.unet.blocks import BlockSettings, initialise
from medseg.models.unet.config import AttentionUNetOptions
from medseg.models.unet.gate import GateOptions
from medseg.models.unet.network import DecoderLevel, UNet, block_settings
from medseg.models.unet.network_config import AttentionUNetConfig

OPEN_BIAS = 10.0
"""Bias of the coefficients of an open gate: a sigmoid of 0.99995."""


class AttentionGate(nn.Module):
    """Additive attention on a grid (Oktay et al. 2018, equations 1 and 2).

    The coefficients ``sigmoid(psi(relu(theta(skip) + phi(lower))))`` are computed on the grid of `lower` and resized to
    the grid of the skip. The result is the skip times the coefficients.

    Args:
        spatial_dims: 2 or 3.
        skip_channels: Channels of the skip.
        lower_channels: Channels of the gating signal, the map of the coarser decoder level.
        inter_channels: Channels in which the two are added.
        stride: Size of the skip divided by the size of the gating signal, per axis.
        options: Number of coefficients and interpolation.
    """

    def __init__(
        self,
        spatial_dims: int,
        skip_channels: int,
        lower_channels: int,
        inter_channels: int,
        stride: tuple[int, ...],
        options: GateOptions,
    ) -> None:
        super().__init__()
        self.theta = patch_conv_nd(spatial_dims, skip_channels, inter_channels, stride, bias=False)
        self.phi = conv_nd(spatial_dims, lower_channels, inter_channels)
        self.psi = conv_nd(spatial_dims, inter_channels, options.num_coefficients)
        self.nearest = options.resample == "nearest"
        self.share = skip_channels // options.num_coefficients

    def coefficients(self, skip: Tensor, lower: Tensor) -> Tensor:
        """Return the attention (n a *spatial) in 0…1 on the grid of `skip`; a is the number of coefficients."""
        theta = self.theta(skip)
        phi = resize(self.phi(lower), tuple(theta.shape[2:]), nearest=self.nearest)
        attention = self.psi(F.relu(theta + phi)).sigmoid()
        return resize(attention, tuple(skip.shape[2:]), nearest=self.nearest)

    def forward(self, skip: Tensor, lower: Tensor) -> Tensor:
        """Return skip (n c *spatial) weighted by the attention computed from lower (n c' *spatial/stride)."""
        attention = self.coefficients(skip, lower)
        if attention.shape[1] > 1:
            attention = attention.repeat_interleave(self.share, dim=1)
        return match_memory_format(skip * attention, skip)

    def open(self) -> None:
        """Set the coefficients to 0.99995 everywhere, so that the gate passes the skip on."""
        for name, parameter in self.psi.named_parameters():
            nn.init.constant_(parameter, OPEN_BIAS if name == "bias" else 0.0)


class AttentionUNet(UNet):
    """A U-Net with a gate on each skip that ``config.gate`` enables; use `AttentionUNet2d` or `AttentionUNet3d`."""

    def __init__(self, config: AttentionUNetConfig, spatial_dims: int) -> None:
        super().__init__(config, spatial_dims)
        settings = block_settings(config, spatial_dims)
        for level, switched_on in enumerate(config.gate.gated_levels(config.num_decoder_levels)):
            decoder_level = self.decoder[level]
            if switched_on and isinstance(decoder_level, DecoderLevel):
                decoder_level.gate = make_gate(config, level, settings)


class AttentionUNet2d(AttentionUNet):
    """Attention U-Net for images (n c x y); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import AttentionUNet2d, AttentionUNetConfig
        >>> AttentionUNet2d(AttentionUNetConfig.from_channels(1, 3, channels=(4, 8, 8)))(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, config: AttentionUNetConfig) -> None:
        super().__init__(config, 2)


class AttentionUNet3d(AttentionUNet):
    """Attention U-Net for volumes (n c x y z); see `UNet`.

    Args:
        config: The architecture.

    Examples:
        >>> import torch
        >>> from medseg.models import AttentionUNet3d, AttentionUNetConfig
        >>> AttentionUNet3d(AttentionUNetConfig.from_channels(1, 3, channels=(4, 8, 8)))(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 3, 8, 8, 8])
    """

    def __init__(self, config: AttentionUNetConfig) -> None:
        super().__init__(config, 3)


def make_gate(config: AttentionUNetConfig, level: int, settings: BlockSettings) -> AttentionGate:
    """Return the gate of one decoder level (0 is the deepest) with fresh weights."""
    skips = config.skip_widths()
    gate = AttentionGate(
        settings.dims,
        skips[level],
        config.lower_widths()[level],
        config.gate.widths(skips)[level],
        config.encoder_stages[-1 - level].strides(settings.dims),
        config.gate,
    )
    initialise(gate, settings)
    if config.gate.pass_through:
        gate.open()
    return gate


def build(
    options: AttentionUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> AttentionUNet:
    """Build an Attention U-Net with fresh weights."""
    config = AttentionUNetConfig(in_channels=in_channels, out_channels=num_classes, **dict(options))
    return AttentionUNet2d(config) if spatial_dims == 2 else AttentionUNet3d(config)
