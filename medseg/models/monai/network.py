"""MONAI's ``UNet`` and ``AttentionUnet`` as models: images of any size in, logits on the same grid out."""

from __future__ import annotations

from math import prod
from typing import Any

from monai.networks.nets import AttentionUnet, UNet
from torch import Tensor, nn

from medseg.errors import ModelError, error_message
from medseg.models.base import Model
from medseg.models.layers.memory_format import crop_to, match_model_format, pad_to, round_up
from medseg.models.monai.config import MonaiAttentionUNetOptions, MonaiUNetOptions


class MonaiNetwork(Model):
    """A network of MONAI for images of any size.

    Images whose sizes are not multiples of `divisor` are padded by repeating their last voxels, and the logits are
    cropped.

    Args:
        network: Network of MONAI, from (n c *spatial) to (n k *spatial).
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        divisor: Divisor of the sizes of the input of `network`, one number per axis.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        divisor: tuple[int, ...],
    ) -> None:
        super().__init__(
            spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes, divisor=divisor
        )
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of an image.

        Args:
            image: Images (n c *spatial).

        Returns:
            Logits (n k *spatial).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        self.check_image(image)
        size = tuple(image.shape[2:])
        padded = pad_to(match_model_format(image, self), round_up(size, self.divisor))
        return crop_to(self.network(padded), size)


class MonaiUNet(MonaiNetwork):
    """MONAI's residual ``UNet`` (Kerfoot et al. 2018); see `MonaiUNetOptions`."""

    def __init__(
        self, options: MonaiUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
    ) -> None:
        network = UNet(
            spatial_dims,
            in_channels,
            num_classes,
            options.channels,
            options.steps(),
            options.kernel_size,
            options.up_kernel_size,
            num_res_units=options.num_res_units,
            act=_act(options),
            norm=_norm(options),
            dropout=options.dropout,
            bias=options.bias,
            adn_ordering=options.adn_ordering,
        )
        super().__init__(
            network,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            divisor=options.divisor(spatial_dims),
        )
        self.norm = options.norm

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` if the image does not fit, or if instance norm would see a single value per channel."""
        super().check_image(image)
        size = tuple(image.shape[2:])
        grown = round_up(size, self.divisor)
        if self.norm == "instance" and prod(grown) == prod(self.divisor):
            expected = f"more than {self.divisor} along at least one axis"
            what = "instance norm would see a single value on the deepest map: image size"
            fix = "Use a larger image or patch"
            raise ModelError(error_message(type(self).__name__, what, found=size, expected=expected, fix=fix))


class MonaiAttentionUNet(MonaiNetwork):
    """MONAI's ``AttentionUnet`` (Oktay et al. 2018); see `MonaiAttentionUNetOptions`."""

    def __init__(
        self, options: MonaiAttentionUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
    ) -> None:
        network = AttentionUnet(
            spatial_dims,
            in_channels,
            num_classes,
            options.channels,
            options.steps(),
            options.kernel_size,
            options.up_kernel_size,
            options.dropout,
        )
        super().__init__(
            network,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            divisor=options.divisor(spatial_dims),
        )


def _act(options: MonaiUNetOptions) -> Any:
    """Return the activation as an argument of MONAI."""
    if options.act == "leakyrelu":
        return ("leakyrelu", {"negative_slope": options.negative_slope})
    return options.act


def _norm(options: MonaiUNetOptions) -> Any:
    """Return the norm as an argument of MONAI."""
    if options.norm == "none":
        return None
    return options.norm if options.affine is None else (options.norm, {"affine": options.affine})


def build_unet(
    options: MonaiUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MonaiUNet:
    """Build MONAI's UNet with fresh weights."""
    return MonaiUNet(options, in_channels=in_channels, num_classes=num_classes, spatial_dims=spatial_dims)


def build_attention_unet(
    options: MonaiAttentionUNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MonaiAttentionUNet:
    """Build MONAI's AttentionUnet with fresh weights."""
    return MonaiAttentionUNet(
        options, in_channels=in_channels, num_classes=num_classes, spatial_dims=spatial_dims
    )
