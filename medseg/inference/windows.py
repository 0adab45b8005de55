"""Sliding windows: a pure function from an image and a network to logits of the whole image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from medseg.errors import ConfigError

Blend = Literal["gaussian", "constant"]
Network = Callable[[Tensor], Tensor]


def predict_windows(
    image: Tensor,
    network: Network,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    blend: Blend = "gaussian",
    mirror_axes: Sequence[int] = (),
    on_window: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Logits of an image of any size, from overlapping windows.

    Window positions, Gaussian weights and mirroring follow nnU-Net (Isensee et al., Nature Methods 2021). An
    axis shorter than its window is padded with zeros on both sides, and cut back.

    Args:
        image: `(c, *spatial)`.
        network: maps `(n, c, *window)` to logits `(n, k, *window)`.
        window: voxels per axis.
        overlap: share of a window that its neighbour covers, in [0, 1).
        batch_size: windows per call of `network`.
        blend: weights inside a window.
        mirror_axes: spatial axes; logits are the mean over all combinations of flips along them.
        on_window: called with (windows done, windows in all) after each batch.

    Returns:
        `(k, *spatial)` float32 on the image's device.

    Raises:
        ConfigError: overlap out of range, or a window of the wrong length.
    """
    spatial = tuple(image.shape[1:])
    if len(window) != len(spatial) or min(window) < 1:
        raise ConfigError(
            f"window: found {tuple(window)}, expected {len(spatial)} positive sizes. Correct it."
        )
    padding = [max(0, w - s) for w, s in zip(window, spatial, strict=True)]
    before = [p // 2 for p in padding]
    pairs = [(b, p - b) for b, p in zip(before, padding, strict=True)]
    padded = functional.pad(image, [edge for pair in reversed(pairs) for edge in pair])
    sizes = padded.shape[1:]
    weights = window_weights(tuple(window), blend).to(image.device)
    positions = list(window_positions(sizes, window, overlap))
    total: Tensor | None = None
    weight_sum = torch.zeros(sizes, device=image.device)
    for start in range(0, len(positions), batch_size):
        boxes = [_box(position, window) for position in positions[start : start + batch_size]]
        batch = torch.stack([padded[(slice(None), *box)] for box in boxes])
        logits = _mirrored(batch, network, mirror_axes).float()
        if total is None:
            total = torch.zeros((logits.shape[1], *sizes), device=image.device)
        for box, values in zip(boxes, logits, strict=True):
            total[(slice(None), *box)] += values * weights
            weight_sum[box] += weights
        if on_window is not None:
            on_window(start + len(boxes), len(positions))
    assert total is not None
    total /= weight_sum
    return total[(slice(None), *_box(before, spatial))]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, the last one flush with the end."""
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap: found {overlap}, expected 0 <= overlap < 1. Use 0.5, for example.")
    if size <= window:
        return [0]
    # At least a voxel: windows of one slice would else be predicted twice. The quotient is rounded because,
    # say, (1 - 0.9) * 10 is below 1 in floats, which would add a window.
    step = max(1.0, window * (1 - overlap))
    count = math.ceil(round((size - window) / step, 9)) + 1
    return [round((size - window) / (count - 1) * i) for i in range(count)]


def window_positions(
    sizes: Sequence[int], window: Sequence[int], overlap: float
) -> Iterator[tuple[int, ...]]:
    """First voxels of all windows, the last axis fastest."""
    starts = [window_starts(s, w, overlap) for s, w in zip(sizes, window, strict=True)]
    return itertools.product(*starts)


@lru_cache(maxsize=16)
def window_weights(window: tuple[int, ...], blend: Blend = "gaussian") -> Tensor:
    """Weight of each voxel of a window, `(*window)` float32, maximum 1 and nowhere 0.

    ``gaussian`` has a standard deviation of an eighth of the window along each axis.
    """
    if blend == "constant":
        return torch.ones(window)
    weights = np.ones(window)
    for axis, size in enumerate(window):
        peak = np.zeros(size)
        peak[size // 2] = 1
        profile = gaussian_filter(peak, sigma=size / 8, mode="constant") if size > 1 else peak
        weights = weights * profile.reshape([-1 if a == axis else 1 for a in range(len(window))])
    weights /= weights.max()
    floor = weights[weights > 0].min()
    return torch.from_numpy(np.maximum(weights, max(floor, 1e-7)).astype(np.float32))


def _mirrored(batch: Tensor, network: Network, axes: Sequence[int]) -> Tensor:
    logits = network(batch).float()
    subsets = [s for n in range(1, len(axes) + 1) for s in itertools.combinations(axes, n)]
    for subset in subsets:
        dims = [axis + 2 for axis in subset]
        logits = logits + network(batch.flip(dims)).float().flip(dims)
    return logits / (len(subsets) + 1)


def _box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
