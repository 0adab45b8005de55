"""How a prediction is laid out to stay within a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from medseg.errors import ConfigError
from medseg.inference.sliding.slab import bytes_of_logits
from medseg.inference.sliding.windows import SlidingWindow
from medseg.runtime.memory import format_size

FRACTION_OF_FREE = 0.5  # when no budget is given; the rest is for other programs and the cache of files
FRACTION_OF_GPU = 0.5  # of what is free there, for sums; the rest is the network's
OVERHEAD = 256 << 20  # interpolation, compression, and what the allocator keeps


@dataclass(frozen=True)
class MemoryPlan:
    """How one image is predicted.

    Attributes:
        bands: parts of the second axis, predicted one after the other; the values are those of one.
        batch_size: windows at once.
        sums: type of the sums of logits.
        device: where image and sums are held.
        peak: expected resident bytes of the process at most.
        keeps_memory: whether there is so much memory that freed blocks may stay with the process.
    """

    bands: int
    batch_size: int
    sums: torch.dtype
    device: torch.device
    peak: int
    keeps_memory: bool = False


def plan_memory(
    shape: Sequence[int],
    sliding: SlidingWindow,
    *,
    budget: int,
    held_bytes: int,
    network: Callable[[int], int],
    reduced: bool,
    postprocess_bytes: int = 0,
    columns: Callable[[int], list[slice]],
    gpu: torch.device | None = None,
) -> MemoryPlan:
    """Choose the layout that fits and predicts the fewest windows; of such layouts the one that takes least memory.

    Args:
        shape: of the prepared image `(c, *spatial)`, slab axis first, then the axis that bands divide.
        sliding: windows, with the batch that is wanted.
        budget: resident bytes allowed.
        held: resident bytes already, with what comes in any case.
        later: resident bytes once the network is done and all of its memory is free again.
        network: bytes that the network takes for a batch of that many windows.
        reduced: whether logits come in reduced precision, so that float16 sums lose nothing that is there.
        columns: network voxels that each of so many bands needs.
        gpu: holds the sums if they fit.

    Raises:
        ConfigError: nothing fits; the smallest budget that would do is told.
    """
    smallest = None
    for bands, batch, sums in _choices(shape, sliding, reduced, columns, tight=gpu is None):
        widest = max(columns(bands), key=lambda c: c.stop - c.start)
        slab = _slab_bytes(shape, replace(sliding, batch_size=batch, sums=sums), widest)
        if gpu is not None and slab < FRACTION_OF_GPU * torch.cuda.mem_get_info(gpu)[0]:
            return MemoryPlan(bands, batch, sums, gpu, held_bytes + OVERHEAD)
        logits = batch * sliding.num_outputs * math.prod(sliding.window) * 4
        # Beside what the network takes, its output included: a copy in float32; the sum over flips and one flipped.
        beside = logits * (reduced + (2 if sliding.mirror_axes else 0))
        peak = max(held_bytes + slab + max(logits, network(batch)) + beside, postprocess_bytes) + OVERHEAD
        if peak <= budget:
            return MemoryPlan(bands, batch, sums, torch.device("cpu"), peak)
        smallest = peak if smallest is None else min(smallest, peak)
    assert smallest is not None
    raise ConfigError(
        f"max_memory: found {format_size(budget)}, expected at least {format_size(smallest, round_up=True)} for an image of "
        f"{'x'.join(map(str, (*shape[2:], shape[1])))} voxels at the model's spacing and {sliding.num_outputs} outputs. "
        "Allow that much."
    )


def _slab_bytes(shape: Sequence[int], sliding: SlidingWindow, columns: slice) -> int:
    """Bytes of the slices of image and logits that are held at once."""
    layout = sliding.layout(shape[1:], columns)
    plane = (columns.stop - columns.start) * math.prod(layout.sizes[2:])
    seen = layout.columns or slice(0, 1)
    image: int = layout.height * (seen.stop - seen.start) * math.prod(layout.sizes[2:]) * shape[0] * 4
    return image + bytes_of_logits(layout.height, plane, sliding.num_outputs, sliding.sums)


def _choices(
    shape: Sequence[int],
    sliding: SlidingWindow,
    reduced: bool,
    columns: Callable[[int], list[slice]],
    *,
    tight: bool,
) -> list[tuple[int, int, torch.dtype]]:
    """Bands, batch and type of the sums, from the fastest to the smallest.

    Bands that cost no window more, such as those of windows that lie side by side, cost next to nothing: where it is
    to be `tight`, as many of these as there are come first, and the fewest at last.
    """
    most = max(1, 2 * shape[2] // sliding.window[1])
    rows = {n: sum(sliding.num_columns(shape[2], part) for part in columns(n)) for n in range(1, most + 1)}
    bands = sorted(rows, key=lambda n: (rows[n], -n if tight else n))
    free = [n for n in bands if rows[n] == rows[1]]
    types = [torch.float32, torch.float16] if reduced else [torch.float32]
    batches = [sliding.batch_size] if sliding.batch_size == 1 else [sliding.batch_size, 1]
    choices = [(n, sliding.batch_size, dtype) for dtype in types for n in free]
    return choices + [(n, batch, types[-1]) for batch in batches for n in bands]
