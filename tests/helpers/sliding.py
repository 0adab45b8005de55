"""Sliding windows by definition, on whole arrays, to compare the engine with."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import strategies as st
from scipy import ndimage

from medseg.inference.sliding.memory_plan import MemoryPlan
from medseg.inference.sliding.windows import window_positions, window_weights


@st.composite
def window_cases(draw):
    """Draw image shape, window, overlap, blend and mirror axes in one to three dimensions."""
    dims = draw(st.integers(1, 3))
    sizes = st.integers(1, {1: 60, 2: 24, 3: 13}[dims])
    shape = tuple(draw(sizes) for _ in range(dims))
    window = tuple(draw(st.integers(1, 9)) for _ in range(dims))
    mirror = tuple(axis for axis in range(dims) if draw(st.booleans()))
    return shape, window, draw(st.floats(0, 0.9)), draw(st.sampled_from(("gaussian", "constant"))), mirror


def dense_logits(image, network, window, *, overlap, blend, mirror_axes):
    """Return the logits by definition: weighted sums over the whole image, divided by the sums of the weights."""
    padding = [max(0, w - s) for w, s in zip(window, image.shape[1:], strict=True)]
    pads = [(p // 2, p - p // 2) for p in padding]
    padded = torch.nn.functional.pad(image, [edge for pair in reversed(pads) for edge in pair])
    weights = window_weights(tuple(window), blend)
    total, weight_sum = 0, torch.zeros(padded.shape[1:])
    for position in window_positions(padded.shape[1:], window, overlap):
        box = tuple(slice(p, p + w) for p, w in zip(position, window, strict=True))
        patch = padded[(slice(None), *box)][None]
        subsets = [s for n in range(len(mirror_axes) + 1) for s in itertools.combinations(mirror_axes, n)]
        flips = [[axis + 2 for axis in subset] for subset in subsets]
        logits = sum(network(patch.flip(f)).flip(f) for f in flips)[0] / len(flips)
        if isinstance(total, int):
            total = torch.zeros((len(logits), *padded.shape[1:]))
        total[(slice(None), *box)].addcmul_(logits, weights)  # one rounding where the processor can
        weight_sum[box] += weights
    inner = tuple(slice(low, low + n) for (low, _), n in zip(pads, image.shape[1:], strict=True))
    return (total / weight_sum)[(slice(None), *inner)]


def interpolated(logits, axis, axis_map):
    """Interpolate one axis by the definition of linear interpolation with repeated borders."""
    position = np.clip(np.arange(axis_map.n_out) * axis_map.scale + axis_map.offset, 0, axis_map.n_in - 1)
    lower = np.floor(position).astype(int)
    upper = np.minimum(lower + 1, axis_map.n_in - 1)
    weight = torch.from_numpy((position - lower).astype(np.float32))
    weight = weight.reshape([-1 if a == axis else 1 for a in range(logits.ndim)])
    low, high = (logits.index_select(axis, torch.from_numpy(i)) for i in (lower, upper))
    return (low * (1 - weight)).addcmul(high, weight)


def smooth_logits(shape, classes, seed=0, sigma=1.5):
    """Return logits `(*shape, k)` with smooth class regions, as of a trained network; noise with sigma 0."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(classes, *shape))
    if sigma:
        noise = np.stack([ndimage.gaussian_filter(channel, sigma) for channel in noise])
    return torch.from_numpy(np.moveaxis(noise, 0, -1).astype(np.float32)).contiguous()


def blocks_of(logits, sizes):
    """Yield blocks that share one memory, as those of the rolling slab do."""
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


def run_in_bands(predictor, image, bands, **changes):
    """Return the label map of an image predicted in `bands` bands, whatever the memory."""
    prepared = predictor.prepare(image)
    engine = predictor.engine
    plan = MemoryPlan(
        bands, changes.pop("batch_size", 1), changes.pop("sums", torch.float32), torch.device("cpu"), 0
    )
    object.__setattr__(engine, "plan", lambda prepared, files=(): plan)
    try:
        return predictor.run(prepared).data
    finally:
        object.__delattr__(engine, "plan")
