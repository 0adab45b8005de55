"""A vision transformer on a grid of tokens (Dosovitskiy et al. 2021, arXiv:2010.11929), and a pyramid of its maps.

Parameter names are timm's, so timm's weights load without conversion, except for the class token, the last norm and the
classifier.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from medseg.models.backbones.vit_config import ViTFields
from medseg.models.layers.norms import num_groups

PATCH = 16
"""Edge length of a patch, in voxels."""

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention over a grid, or over its windows.

    Args:
        width: Channels of the tokens.
        heads: Number of attention heads.
        window: Edge length of the windows in tokens; None for attention over the whole grid.
        masked: Whether cells beyond the grid, which complete the last windows, are left out of attention; otherwise their
            keys and values are zero.
    """

    def __init__(self, width: int, heads: int, window: int | None, *, masked: bool = True) -> None:
        super().__init__()
        self.heads, self.window, self.masked = heads, window, masked
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n x y c) to tokens of the same shape."""
        if self.window is None:
            return self._attend(self.qkv(x.flatten(1, 2)), None).view(x.shape)
        n, rows, columns, c = x.shape
        w = self.window
        down, across = -(-rows // w), -(-columns // w)
        padding = (0, across * w - columns, 0, down * w - rows)
        # Padding completes the last windows; the mask excludes it from attention. Without a mask, keys and values are padded.
        cells = x if self.masked else self.qkv(x)
        inside = F.pad(x.new_ones(rows, columns, dtype=torch.bool), padding, value=False)
        windows = F.pad(cells, (0, 0, *padding)).view(n, down, w, across, w, -1).transpose(2, 3)
        tokens = windows.reshape(-1, w * w, windows.shape[-1])
        seen = inside.view(down, w, across, w).transpose(1, 2).reshape(1, down * across, 1, 1, w * w)
        seen = seen.expand(n, -1, -1, -1, -1).flatten(0, 1)
        whole = padding == (0, 0, 0, 0) or not self.masked
        out = self._attend(self.qkv(tokens) if self.masked else tokens, None if whole else seen)
        out = out.view(n, down, across, w, w, c).transpose(2, 3).reshape(n, down * w, across * w, c)
        return out[:, :rows, :columns]

    def _attend(self, qkv: Tensor, seen: Tensor | None) -> Tensor:
        n, t, c = qkv.shape
        q, k, v = qkv.view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(n, t, c // 3))
        return projected


class Mlp(nn.Module):
    """Two linear layers with GELU between them; the inner width is four times the outer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width * 4)
        self.fc2 = nn.Linear(width * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """One transformer block: norm and attention, then norm and two linear layers, each added to its input."""

    def __init__(
        self, width: int, heads: int, window: int | None, drop_path: float, *, masked: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, window, masked=masked)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n x y c) to tokens of the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """The embedding of each patch as one token: (n c x y) to (n x/16 y/16 w)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """Return the grid of tokens (n x/16 y/16 w) of an image (n c x y)."""
        tokens: Tensor = self.proj(image).permute(0, 2, 3, 1).contiguous()
        return tokens


class ViT(nn.Module):
    """The blocks of a vision transformer; most attend within windows, the last of each group to the whole grid.

    Args:
        config: Width, depth, heads, window and grid of the position table.
        in_channels: Channels of the image.
    """

    def __init__(self, config: ViTFields, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, config.width)
        self.side = config.pretrain_size // PATCH
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, config.width))
        period = 3 if config.depth <= 12 else 6
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.attention_heads,
                None if (i + 1) % period == 0 else config.attention_window,
                config.drop_path * i / max(config.depth - 1, 1),
                masked=config.window_padding == "masked",
            )
            for i in range(config.depth)
        )
        self.apply(initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """Return the tokens (n x y w) of an image, with position embeddings added."""
        tokens = self.patch_embed(image)
        table = self.pos_embed.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        size = tuple(tokens.shape[1:3])
        if size != (self.side, self.side):
            table = F.interpolate(table, size=size, mode="bicubic", align_corners=False)
        out: Tensor = tokens + table.permute(0, 2, 3, 1)
        return out


class ViTPyramid(nn.Module):
    """Maps of stride 4, 8, 16 and 32 from the four quarters of a plain ViT, each normalised and resized.

    Args:
        config: Options of the transformer; its depth is a multiple of 4.
        in_channels: Channels of the image.
    """

    def __init__(self, config: ViTFields, in_channels: int) -> None:
        super().__init__()
        width = config.width
        self.vit = ViT(config, in_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for _ in range(4))
        self.resizes = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, 2),
                    nn.GroupNorm(num_groups(width), width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, 2),
                ),
                nn.ConvTranspose2d(width, width, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )
        self.resizes.apply(initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return four maps (n w x/s y/s), finest first."""
        tokens = self.vit.embed(image)
        quarter = len(self.vit.blocks) // 4
        maps: list[Tensor] = []
        for i, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if (i + 1) % quarter == 0:
                level = len(maps)
                maps.append(self.resizes[level](self.norms[level](tokens).permute(0, 3, 1, 2)))
        return maps


def initialise(module: nn.Module) -> None:
    """Initialise linear layers (truncated normal, 0.02) and convolutions (He normal, fan-out); biases are zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
