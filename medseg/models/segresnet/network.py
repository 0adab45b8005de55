"""MONAI's ``SegResNet`` as a model: images of any size in, logits on the same grid out."""

from __future__ import annotations

from monai.networks.nets import SegResNet

from medseg.models.monai.network import MonaiNetwork
from medseg.models.segresnet.config import SegResNetOptions


def build(
    options: SegResNetOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MonaiNetwork:
    """Build MONAI's ``SegResNet`` (Myronenko 2018) with fresh weights; see `SegResNetOptions`."""
    network = SegResNet(
        spatial_dims,
        options.init_filters,
        in_channels,
        num_classes,
        dropout_prob=options.dropout or None,
        blocks_down=options.blocks_down,
        blocks_up=options.blocks_up,
    )
    divisor = (2 ** len(options.blocks_up),) * spatial_dims
    return MonaiNetwork(
        network, spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes, divisor=divisor
    )
