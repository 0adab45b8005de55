"""Logits to bring onto another grid, and how that is done by definition."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy import ndimage


def smooth_logits(shape, classes, seed=0, sigma=1.5):
    """Blobs of classes `(*shape, k)`, as a trained network gives them; noise with sigma 0."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(classes, *shape))
    if sigma:
        noise = np.stack([ndimage.gaussian_filter(channel, sigma) for channel in noise])
    return torch.from_numpy(np.moveaxis(noise, 0, -1).astype(np.float32)).contiguous()


def interpolated(logits, axis, axis_map):
    """One axis by the definition of linear interpolation with repeated borders."""
    position = np.clip(np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset, 0, axis_map.n_in - 1)
    lower = np.floor(position).astype(int)
    upper = np.minimum(lower + 1, axis_map.n_in - 1)
    weight = torch.from_numpy((position - lower).astype(np.float32))
    weight = weight.reshape([-1 if a == axis else 1 for a in range(logits.ndim)])
    low, high = (logits.index_select(axis, torch.from_numpy(i)) for i in (lower, upper))
    return (low * (1 - weight)).addcmul(high, weight)


def blocks_of(logits, sizes):
    """Blocks that share one memory, as those of the rolling slab do."""
    shared = torch.empty((max(sizes), *logits.shape[1:]))
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(logits):
            return
        part = logits[start : start + size]
        shared[: len(part)] = part
        yield shared[: len(part)]
        shared.fill_(torch.nan)
        start += size
