"""The blocks of U-Net stages, for 2D and 3D."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.layers.convs import conv_nd, patch_conv_nd
from medseg.models.layers.fused_norm import can_fuse, instance_norm_act
from medseg.models.layers.layer_names import Act, Downsample, Norm
from medseg.models.layers.memory_format import match_memory_format
from medseg.models.layers.norms import InstanceNorm, LayerNorm, make_norm
from medseg.models.layers.resample import avg_pool, max_pool
from medseg.models.unet.stage import Block, ResidualDownsample, Stage

HEAD_WIDTH = 32
EXPANSION = 4


@dataclass(frozen=True)
class BlockSettings:
    """The settings that all blocks of a network share; see `UNetOptions` for their meaning."""

    dims: int
    norm: Norm
    act: Act | None
    negative_slope: float
    bias: bool
    residual_downsample: ResidualDownsample
    downsample: Downsample


class Activation(nn.Module):
    """The activation named `act`; in place where the derivative can be computed from the result."""

    def __init__(self, act: Act, negative_slope: float) -> None:
        super().__init__()
        self.act, self.negative_slope = act, negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to the same shape and memory format; ReLU and leaky ReLU overwrite it."""
        if self.act == "relu":
            return F.relu_(x)
        if self.act == "leaky_relu":
            return F.leaky_relu_(x, self.negative_slope)
        return F.gelu(x) if self.act == "gelu" else F.silu(x)

    @property
    def slope(self) -> float | None:
        """The factor of negative values; None if the activation is not linear on both sides of zero."""
        return {"relu": 0.0, "leaky_relu": self.negative_slope}.get(self.act)

    def extra_repr(self) -> str:
        """Return the name of the activation, for printing."""
        return self.act


class ConvNormAct(nn.Module):
    """Convolution, dropout of whole channels, norm, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        settings: Settings shared by all blocks.
        kernel_size: Kernel size, one number per axis; padding keeps the size up to the stride.
        stride: Stride, one number per axis; None for 1.
        dilation: Distance between neighbouring elements of the kernel, in voxels.
        dropout: Probability of dropping a channel.
        act: Whether an activation follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BlockSettings,
        *,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        dilation: int = 1,
        dropout: float = 0.0,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv_nd(
            settings.dims,
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            bias=settings.bias,
        )
        self.dropout = make_dropout(dropout, settings.dims)
        self.norm = make_norm(settings.norm, out_channels, settings.dims)
        self.act = Activation(settings.act or "leaky_relu", settings.negative_slope) if act else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to (n c' *spatial/stride)."""
        out = match_memory_format(self.conv(x), x)
        if self.dropout is not None:
            out = self.dropout(out)
        slope = 1.0 if self.act is None else self.act.slope
        if isinstance(self.norm, InstanceNorm) and slope is not None and can_fuse(out):
            norm = self.norm
            return instance_norm_act(out, norm.weight, norm.bias, eps=norm.eps, negative_slope=slope)
        for layer in (self.norm, self.act):
            if layer is not None:
                out = layer(out)
        return out


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, whose sum is activated (He et al. 2016, arXiv:1512.03385).

    If a block changes stride or width, its shortcut is either average pooling over the stride, followed by a 1×1
    convolution where the width changes (He et al. 2019, arXiv:1812.01187; nnU-Net's residual encoder), or a strided
    1×1 convolution.
    """

    def __init__(
        self, in_channels: int, stage: Stage, stride: tuple[int, ...], settings: BlockSettings
    ) -> None:
        super().__init__()
        width, kernel = stage.channels, stage.kernel(settings.dims)
        self.conv1 = ConvNormAct(
            in_channels,
            width,
            settings,
            kernel_size=kernel,
            stride=stride,
            dilation=stage.dilation,
            dropout=stage.dropout,
        )
        self.conv2 = ConvNormAct(
            width, width, settings, kernel_size=kernel, dilation=stage.dilation, act=False
        )
        strided = any(step != 1 for step in stride)
        pooled = strided and settings.residual_downsample == "avgpool"
        self.pool = stride if pooled else None
        self.shortcut: ConvNormAct | None = None
        if in_channels != width or (strided and not pooled):
            self.shortcut = ConvNormAct(
                in_channels,
                width,
                replace(settings, bias=False),
                kernel_size=(1,) * settings.dims,
                stride=None if pooled else stride,
                act=False,
            )
        self.act = Activation(settings.act or "leaky_relu", settings.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to (n c' *spatial/stride)."""
        out: Tensor = self.conv2(self.conv1(x))
        if self.pool is not None:
            x = avg_pool(x, self.pool)
        if self.shortcut is not None:
            x = self.shortcut(x)
        activated: Tensor = self.act(out.add_(x))
        return activated


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, norm and an inverted bottleneck of four times the width, added to the input.

    See Liu et al. 2022, arXiv:2201.03545, and for volumes Roy et al. 2023 (MedNeXt), arXiv:2303.09975. The kernel size
    is the stage's. If stride or width change, a convolution with kernel = stride comes first.
    """

    def __init__(
        self, in_channels: int, stage: Stage, stride: tuple[int, ...], settings: BlockSettings
    ) -> None:
        super().__init__()
        dims, width = settings.dims, stage.channels
        self.project: nn.Module | None = None
        if in_channels != width or any(step != 1 for step in stride):
            self.project = patch_conv_nd(dims, in_channels, width, stride)
        self.depthwise = conv_nd(
            dims,
            width,
            width,
            stage.kernel(dims),
            dilation=stage.dilation,
            groups=width,
            bias=settings.bias,
        )
        self.dropout = make_dropout(stage.dropout, dims)
        self.norm = make_norm(settings.norm, width, dims)
        self.expand = conv_nd(dims, width, EXPANSION * width)
        self.act = Activation(settings.act or "gelu", settings.negative_slope)
        self.contract = conv_nd(dims, EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to (n c' *spatial/stride)."""
        if self.project is not None:
            x = match_memory_format(self.project(x), x)
        out = match_memory_format(self.depthwise(x), x)
        for layer in (self.dropout, self.norm, self.expand, self.act, self.contract):
            if layer is not None:
                out = layer(out)
        return x + out


class SelfAttention(nn.Module):
    """Multi-head self-attention over all voxels, norm first, added to its input (Vaswani et al. 2017).

    There is about one head per 32 channels, as the number of heads must divide the channels. The output projection
    starts at zero, so that a fresh block is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        most = max(1, channels // HEAD_WIDTH)
        self.heads = next(heads for heads in range(most, 0, -1) if channels % heads == 0)
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to the same shape and memory format."""
        n, channels, *size = x.shape
        tokens = self.norm(x).movedim(1, -1).reshape(n, -1, channels)
        qkv = self.qkv(tokens).reshape(n, -1, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each n heads voxels width
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, -1, channels)
        out = self.out(mixed).reshape(n, *size, channels).movedim(-1, 1)
        return x + match_memory_format(out, x)


class ConvStage(nn.Module):
    """The blocks of one resolution.

    Args:
        in_channels: Channels of the input.
        stage: Definition of the stage.
        block: Kind of block.
        settings: Settings shared by all blocks.
    """

    def __init__(self, in_channels: int, stage: Stage, block: Block, settings: BlockSettings) -> None:
        super().__init__()
        stride = stage.strides(settings.dims)
        self.pool: Downsample | None = None
        if settings.downsample != "conv" and any(step != 1 for step in stride):
            self.pool = settings.downsample
        self.stride = stride
        once = (1,) * settings.dims
        first = once if self.pool else stride
        widths = [in_channels] + [stage.channels] * (stage.num_blocks - 1)
        steps = [first] + [once] * (stage.num_blocks - 1)
        self.blocks = nn.ModuleList(
            make_block(block, width, stage, step, settings) for width, step in zip(widths, steps, strict=True)
        )
        self.attention = SelfAttention(stage.channels) if stage.use_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n c *spatial) to (n c' *spatial/stride)."""
        if self.pool is not None:
            x = (max_pool if self.pool == "maxpool" else avg_pool)(x, self.stride)
        for block in self.blocks:
            x = block(x)
        if self.attention is not None:
            x = self.attention(x)
        return x


def make_block(
    block: Block, in_channels: int, stage: Stage, stride: tuple[int, ...], settings: BlockSettings
) -> nn.Module:
    """Return one block of the kind called `block`."""
    if block == "res":
        return ResidualBlock(in_channels, stage, stride, settings)
    if block == "convnext":
        return ConvNeXtBlock(in_channels, stage, stride, settings)
    return ConvNormAct(
        in_channels,
        stage.channels,
        settings,
        kernel_size=stage.kernel(settings.dims),
        stride=stride,
        dilation=stage.dilation,
        dropout=stage.dropout,
    )


def make_dropout(probability: float, spatial_dims: int) -> nn.Module | None:
    """Return a layer that drops whole channels, or None for probability 0."""
    if probability == 0.0:
        return None
    return nn.Dropout2d(probability) if spatial_dims == 2 else nn.Dropout3d(probability)


def initialise(model: nn.Module, settings: BlockSettings) -> None:
    """Initialise a network: Kaiming normal weights, zero biases, and residual blocks that start as their shortcut.

    The weights follow He et al. 2015, arXiv:1502.01852, and the zero scale in the last norm of each residual block
    follows Goyal et al. 2017, arXiv:1706.02677. Both are nnU-Net's choices.
    """
    slope = settings.negative_slope if settings.act in ("leaky_relu", None) else 0.0
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in model.modules():
        if isinstance(module, convolutions):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock) and module.conv2.norm is not None:
            nn.init.zeros_(module.conv2.norm.get_parameter("weight"))
