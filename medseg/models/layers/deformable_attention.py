"""Deformable attention over feature maps (Zhu et al. 2021, Deformable DETR, arXiv:2010.04159), in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int]


def centres(shapes: Sequence[Shape], like: Tensor) -> Tensor:
    """Return the centres (t 2) of all cells of grids (x y), in 0…1 and array order, one grid after the other."""
    grids = []
    for x, y in shapes:
        rows = (torch.arange(x, device=like.device) + 0.5) / x
        columns = (torch.arange(y, device=like.device) + 0.5) / y
        grids.append(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1))
    return torch.cat(grids).to(like.dtype)


class DeformableAttention(nn.Module):
    """Attention of each query to a few learned sampling points near its reference point, on every level.

    Args:
        width: Channels of queries and features.
        heads: Number of attention heads; each has its own sampling points and weights.
        levels: Number of feature maps.
        points: Sampling points per head and level.
        ratio: Channels of the values divided by channels of the features.
    """

    def __init__(self, width: int, *, heads: int, levels: int, points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        inner = int(width * ratio)
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, inner)
        self.output_proj = nn.Linear(inner, width)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: each head starts with its own direction, and its points are 1, 2, … cells away."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.sin(), angles.cos()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = directions[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, places: Tensor, features: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Return the weighted sum of the sampled features for each query.

        Args:
            query: Queries (n q c).
            places: Reference points of the queries (q 2), in 0…1 and array order.
            features: Cells of all levels (n t c), one level after the other.
            shapes: Sizes (x y) of the levels; their products sum to t.

        Returns:
            The attended features (n q c).
        """
        n, q, _ = query.shape
        values = self.value_proj(features).unflatten(-1, (self.heads, -1))
        offsets = self.sampling_offsets(query).view(n, q, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(n, q, self.heads, -1).softmax(dim=-1)
        weights = weights.view(n, q, self.heads, self.levels, self.points)
        seen = []
        levels = values.split([x * y for x, y in shapes], dim=1)
        for level, (value, (x, y)) in enumerate(zip(levels, shapes, strict=True)):
            size = torch.tensor([x, y], dtype=query.dtype, device=query.device)
            where = places[None, :, None, None] + offsets[:, :, :, level] / size
            # grid_sample expects coordinates in -1…1, the last axis first.
            grid = (where * 2 - 1).flip(-1).transpose(1, 2).flatten(0, 1)
            maps = value.permute(0, 2, 3, 1).reshape(n * self.heads, -1, x, y)
            seen.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        share = weights.permute(0, 2, 1, 3, 4).reshape(n * self.heads, 1, q, -1)
        mixed = (torch.cat(seen, dim=-1) * share).sum(dim=-1)
        out: Tensor = self.output_proj(mixed.view(n, -1, q).transpose(1, 2))
        return out
