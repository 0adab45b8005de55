"""torchvision's ResNets as feature extractors, for any number of channels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from medseg.models.backbones.resnet_config import ResNetFields
from medseg.models.layers.norms import num_groups

Dilated = tuple[bool, bool, bool]

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda width: nn.GroupNorm(num_groups(width), width),
}


def resnet(config: ResNetFields, in_channels: int, *, dilated: Dilated = (False, False, False)) -> ResNet:
    """Return a ResNet (He et al. 2016; ResNeXt, Xie et al. 2017) with fresh weights and without its classifier.

    Args:
        config: Blocks, groups, widths and norm.
        in_channels: Channels of the image.
        dilated: Whether each of the last three stages uses dilated kernels instead of a stride.

    Returns:
        The network; its classifier is the identity.
    """
    network = ResNet(
        Bottleneck if config.block == "bottleneck" else BasicBlock,
        list(config.depths),
        num_classes=1,
        groups=config.groups,
        width_per_group=config.width_per_group,
        replace_stride_with_dilation=list(dilated),
        norm_layer=_NORMS[config.norm],
    )
    network.fc = nn.Identity()
    if config.strided_kernel == "1x1":
        _stride_in_first_kernel(network)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def _stride_in_first_kernel(network: ResNet) -> None:
    """Move the strides of bottlenecks from their 3×3 to their first 1×1 convolution."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def stage_widths(config: ResNetFields) -> tuple[int, int, int, int]:
    """Return the output channels of the four stages."""
    growth = 4 if config.block == "bottleneck" else 1
    return (64 * growth, 128 * growth, 256 * growth, 512 * growth)
