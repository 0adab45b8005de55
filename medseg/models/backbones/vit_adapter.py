"""The ViT-Adapter (Chen et al. 2023, Vision Transformer Adapter for Dense Predictions, arXiv:2205.08534).

Convolutions compute a spatial prior, maps of stride 8, 16 and 32, parallel to the tokens of a plain ViT. In each of
four interactions, the tokens attend to the prior before a quarter of the blocks, and the prior attends to the tokens
after it, by deformable attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from medseg.models.backbones.vit import EPS, ViT, initialise
from medseg.models.backbones.vit_config import ViTFields
from medseg.models.layers.deformable_attention import DeformableAttention, Shape, centres

INTERACTIONS = 4


class ConvNorm(nn.Sequential):
    """A 3×3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SpatialPrior(nn.Module):
    """Convolutions that compute maps of stride 4, 8, 16 and 32, each projected to the width of the transformer."""

    def __init__(self, in_channels: int, inner: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(in_channels, inner, 2),
            ConvNorm(inner, inner, 1),
            ConvNorm(inner, inner, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (inner, inner * 2, inner * 4, inner * 4)
        self.stages = nn.ModuleList(ConvNorm(widths[i], widths[i + 1], 2) for i in range(3))
        self.projections = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return four maps (n w x/s y/s), finest first."""
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


class ConvFeedForward(nn.Module):
    """Two linear layers with a depthwise 3×3 convolution between them, on each level of the prior."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Map the cells of all levels (n t c) to cells of the same shape."""
        maps = [self.depthwise(x) for x in to_maps(self.fc1(tokens), shapes)]
        out: Tensor = self.fc2(F.gelu(to_tokens(maps)))
        return out


class Injector(nn.Module):
    """Attention of the transformer's tokens to the prior; its factor starts at 0, so a fresh one has no effect."""

    def __init__(self, config: ViTFields) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(config.width, eps=EPS)
        self.feature_norm = nn.LayerNorm(config.width, eps=EPS)
        self.attention = DeformableAttention(
            config.width, heads=config.deform_heads, levels=3, ratio=config.deform_ratio
        )
        self.gamma = nn.Parameter(torch.zeros(config.width))

    def forward(self, tokens: Tensor, prior: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Map tokens (n x y c) and the prior's cells (n t c) to tokens."""
        query = tokens.flatten(1, 2)
        places = centres([(tokens.shape[1], tokens.shape[2])], query)
        seen = self.attention(self.query_norm(query), places, self.feature_norm(prior), shapes)
        out: Tensor = (query + self.gamma * seen).view(tokens.shape)
        return out


class Extractor(nn.Module):
    """Attention of the prior to the transformer's tokens, followed by convolutions."""

    def __init__(self, config: ViTFields) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(config.width, eps=EPS)
        self.feature_norm = nn.LayerNorm(config.width, eps=EPS)
        self.attention = DeformableAttention(
            config.width, heads=config.deform_heads, levels=1, ratio=config.deform_ratio
        )
        self.feed_norm = nn.LayerNorm(config.width, eps=EPS)
        self.feed = ConvFeedForward(config.width, config.width // 4)
        self.drop_path = StochasticDepth(config.drop_path, mode="row")

    def forward(self, prior: Tensor, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Map the prior's cells (n t c) and tokens (n x y c) to cells."""
        features, grid = self.feature_norm(tokens.flatten(1, 2)), (tokens.shape[1], tokens.shape[2])
        prior = prior + self.attention(self.query_norm(prior), centres(shapes, prior), features, [grid])
        out: Tensor = prior + self.drop_path(self.feed(self.feed_norm(prior), shapes))
        return out


class Extractors(nn.ModuleList):
    """Consecutive extractors: one after each interaction, and two more after the last."""

    def __init__(self, config: ViTFields, count: int) -> None:
        super().__init__(Extractor(config) for _ in range(count))

    def forward(self, prior: Tensor, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Map the prior's cells (n t c) and tokens (n x y c) to cells."""
        for extractor in self:
            prior = extractor(prior, tokens, shapes)
        return prior


class ViTAdapter(nn.Module):
    """A plain ViT with an adapter, which returns maps of stride 4, 8, 16 and 32, each with batch norm.

    Args:
        config: Options of the transformer and the adapter; the depth is a multiple of 4.
        in_channels: Channels of the image.
    """

    def __init__(self, config: ViTFields, in_channels: int) -> None:
        super().__init__()
        width = config.width
        self.vit = ViT(config, in_channels)
        self.prior = SpatialPrior(in_channels, config.prior_channels, width)
        self.level_embed = nn.Parameter(torch.zeros(3, width))
        self.injectors = nn.ModuleList(Injector(config) for _ in range(INTERACTIONS))
        last = INTERACTIONS - 1
        self.extractors = nn.ModuleList(
            Extractors(config, count=3 if i == last else 1) for i in range(INTERACTIONS)
        )
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        for part in (self.prior, self.injectors, self.extractors, self.up):
            part.apply(initialise)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset()
        nn.init.normal_(self.level_embed)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return four maps (n w x/s y/s), finest first; the image's sizes must be multiples of 32."""
        finest, *coarser = self.prior(image)
        shapes = [(x.shape[2], x.shape[3]) for x in coarser]
        prior = to_tokens([x + self.level_embed[i, :, None, None] for i, x in enumerate(coarser)])
        tokens = self.vit.embed(image)
        quarter = len(self.vit.blocks) // INTERACTIONS
        for i in range(INTERACTIONS):
            tokens = self.injectors[i](tokens, prior, shapes)
            for block in self.vit.blocks[i * quarter : (i + 1) * quarter]:
                tokens = block(tokens)
            prior = self.extractors[i](prior, tokens, shapes)
        maps = to_maps(prior, shapes)
        maps = [self.up(maps[0]) + finest, *maps]
        plain = tokens.permute(0, 3, 1, 2)
        return [
            norm(x + F.interpolate(plain, size=x.shape[2:], mode="bilinear", align_corners=False))
            for norm, x in zip(self.norms, maps, strict=True)
        ]


def to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Return the cells (n t c) of maps (n c x y), one map after the other."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def to_maps(tokens: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Return the maps (n c x y) of cells (n t c); the inverse of `to_tokens`."""
    parts = tokens.split([x * y for x, y in shapes], dim=1)
    return [
        part.transpose(1, 2).unflatten(2, shape).contiguous()
        for part, shape in zip(parts, shapes, strict=True)
    ]
