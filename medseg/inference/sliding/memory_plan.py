"""The layout of a prediction that stays within a memory budget.

What a prediction holds in memory grows with the slab: a window's height of image and logits. Less memory is needed with
float16 instead of float32 sums of logits, with fewer windows at once, and with *bands*: parts of the second axis that are
predicted one after the other. Bands give the same label map; windows that cross a cut are predicted twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from medseg.errors import ConfigError
from medseg.inference.sliding.device_export import VALUES_AT_ONCE
from medseg.inference.sliding.prepared_prediction import PreparedPrediction
from medseg.inference.sliding.slab import SlabStorage, bytes_of_logits
from medseg.inference.sliding.windows import SlidingWindow
from medseg.runtime.memory import format_size

FRACTION_OF_FREE = 0.5  # of free memory without a budget; the rest is for other programs and the file cache
FRACTION_OF_DEVICE = 0.9  # of free device memory without a budget; the rest is for cuDNN and fragments
EXPORT_ON_DEVICE = 6 * 4 * VALUES_AT_ONCE  # bytes of logits that are interpolated at once
OVERHEAD = 256 << 20  # bytes for interpolation, compression, and what the allocator keeps


@dataclass(frozen=True)
class MemoryPlan:
    """The layout of the prediction of one image.

    Attributes:
        bands: Number of bands; the slab is that of one band.
        batch_size: Number of windows per call of the network.
        sums: Number format of the sums of logits.
        device: Device of the slab.
        peak: Expected peak of the process's resident memory in bytes.
        keeps_memory: Whether memory is so plentiful that freed blocks may stay with the process.
        device_peak: Expected peak of the memory allocated on the network's device in bytes; 0 on the CPU.
    """

    bands: int
    batch_size: int
    sums: torch.dtype
    device: torch.device
    peak: int
    keeps_memory: bool = False
    device_peak: int = 0

    def smaller(self) -> MemoryPlan | None:
        """Return the next layout to try where memory did not suffice: half the batch, then the slab on the host."""
        if self.batch_size > 1:
            return replace(self, batch_size=self.batch_size // 2)
        if self.device.type != "cpu":
            return replace(self, device=torch.device("cpu"))
        return None


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that a prediction may use, in bytes of the process's resident memory.

    Attributes:
        allowed: Maximum.
        held: In use already, including what the prediction needs in any layout.
        postprocess: In use after the network is done and its memory is free again.
        device: Bytes that may be allocated on the network's device; None on the CPU.
    """

    allowed: int
    held: int
    postprocess: int = 0
    device: int | None = None


class MeasuredNetwork(Protocol):
    """A network with known memory use, such as a `WindowNetwork`."""

    @property
    def device(self) -> torch.device:
        """The device that the network runs on."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the network runs in."""

    def measured_cost(self, batch_size: int) -> tuple[int, float]:
        """Return bytes and seconds of a call with a batch of windows."""


def plan_memory(
    prepared: PreparedPrediction,
    sliding: SlidingWindow,
    budget: MemoryBudget,
    network: MeasuredNetwork,
    *,
    measure: bool = True,
    whole_planes: bool = False,
) -> MemoryPlan:
    """Choose the layout that fits the budget and predicts the fewest windows, and the smallest of several such layouts.

    Args:
        prepared: The image to predict.
        sliding: The windows, with the batch size that is wanted.
        budget: The memory that may be used.
        network: The network. If it runs on a CUDA device, the slab is held there, too, in the fastest layout that fits;
            otherwise on the host. If it runs in reduced precision, float16 sums lose nothing that its logits contain.
        measure: Whether to measure the memory that the network uses; otherwise, it counts as 0.
        whole_planes: Whether the image must not be divided into bands.

    Returns:
        The chosen layout with its expected peak of resident memory in bytes.

    Raises:
        ConfigError: No layout fits; the message names the smallest sufficient budget.
    """
    if budget.device is not None:
        on_device = _plan_on_device(prepared, sliding, budget, network, whole_planes)
        if on_device is not None:
            return on_device
        # The network alone has to fit; its memory is not the host's.
        sliding, measure = replace(sliding, batch_size=1), False
    return _plan_on_host(prepared, sliding, budget, network, measure=measure, whole_planes=whole_planes)


def _plan_on_device(
    prepared: PreparedPrediction,
    sliding: SlidingWindow,
    budget: MemoryBudget,
    network: MeasuredNetwork,
    whole_planes: bool,
) -> MemoryPlan | None:
    """Return the fastest layout whose slab fits on the network's device, or None."""
    assert budget.device is not None
    reduced = network.dtype != torch.float32
    for bands, batch, sums in _layouts(prepared, sliding, reduced, tight=False, whole_planes=whole_planes):
        image, logits = _slab_parts(
            prepared, replace(sliding, batch_size=batch, storage=SlabStorage(sums)), bands
        )
        # Two blocks of slices are read ahead, one here and one in pinned memory of the host.
        needed = 2 * image + logits + _bytes_of_logit_copies(sliding, batch, reduced) + EXPORT_ON_DEVICE
        if needed < budget.device:
            needed += network.measured_cost(batch)[0]
        if needed <= budget.device:
            peak = max(budget.held + 2 * image, budget.postprocess) + OVERHEAD
            return MemoryPlan(bands, batch, sums, network.device, peak, device_peak=needed)
    return None


def _bytes_of_logit_copies(sliding: SlidingWindow, batch: int, reduced: bool) -> int:
    """Return the bytes of copies of the logits that exist in addition to the network's output.

    In reduced precision, this is a copy in float32; with mirroring, the sum over the flips and one flipped copy.
    """
    logits = batch * sliding.num_outputs * math.prod(sliding.window) * 4
    return logits * (reduced + (2 if sliding.mirror_axes else 0))


def _plan_on_host(
    prepared: PreparedPrediction,
    sliding: SlidingWindow,
    budget: MemoryBudget,
    network: MeasuredNetwork,
    *,
    measure: bool,
    whole_planes: bool,
) -> MemoryPlan:
    """Return the fastest layout whose slab fits into the memory of the host, see `plan_memory`."""
    shape = prepared.image.shape
    reduced = network.dtype != torch.float32
    smallest = None
    for bands, batch, sums in _layouts(prepared, sliding, reduced, tight=True, whole_planes=whole_planes):
        slab = sum(
            _slab_parts(prepared, replace(sliding, batch_size=batch, storage=SlabStorage(sums)), bands)
        )
        logits = batch * sliding.num_outputs * math.prod(sliding.window) * 4
        copies = _bytes_of_logit_copies(sliding, batch, reduced)
        used = network.measured_cost(batch)[0] if measure else 0
        peak = max(budget.held + slab + max(logits, used) + copies, budget.postprocess) + OVERHEAD
        if peak <= budget.allowed:
            return MemoryPlan(bands, batch, sums, torch.device("cpu"), peak)
        smallest = peak if smallest is None else min(smallest, peak)
    assert smallest is not None
    raise ConfigError(
        f"max_memory: found {format_size(budget.allowed)}, expected at least {format_size(smallest, round_up=True)} for an "
        f"image of {'x'.join(map(str, (*shape[2:], shape[1])))} voxels at the model's spacing and {sliding.num_outputs} "
        "outputs. Allow that much."
    )


def _slab_parts(prepared: PreparedPrediction, sliding: SlidingWindow, bands: int) -> tuple[int, int]:
    """Return the bytes of the slices of the image, and of the logits, that the widest of some bands holds at once."""
    shape = prepared.image.shape
    each = [band.columns for band in prepared.bands(bands, sliding)]
    columns = max(each, key=lambda c: c.stop - c.start)
    layout = sliding.layout(shape[1:], columns)
    plane = (columns.stop - columns.start) * math.prod(layout.sizes[2:])
    seen = layout.columns or slice(0, 1)
    image: int = layout.height * (seen.stop - seen.start) * math.prod(layout.sizes[2:]) * shape[0] * 4
    return image, bytes_of_logits(layout.height, plane, sliding.num_outputs, sliding.storage.sums)


def _layouts(
    prepared: PreparedPrediction, sliding: SlidingWindow, reduced: bool, *, tight: bool, whole_planes: bool
) -> list[tuple[int, int, torch.dtype]]:
    """Return layouts (bands, batch size, sums) from the fastest to the smallest.

    Bands that add no windows, such as those of windows without overlap, cost almost nothing. With `tight`, the most of
    these come first; otherwise the fewest.
    """
    width = prepared.image.shape[2]
    most = 1 if whole_planes else max(1, 2 * width // sliding.window[1])
    rows = {
        n: sum(sliding.num_columns(width, band.columns) for band in prepared.bands(n, sliding))
        for n in range(1, most + 1)
    }
    bands = sorted(rows, key=lambda n: (rows[n], -n if tight else n))
    free = [n for n in bands if rows[n] == rows[1]]
    types = [torch.float32, torch.float16] if reduced else [torch.float32]
    batches = [sliding.batch_size] if sliding.batch_size == 1 else [sliding.batch_size, 1]
    layouts = [(n, sliding.batch_size, dtype) for dtype in types for n in free]
    if not tight:  # a smaller batch costs less time than windows that are predicted twice
        batches = [sliding.batch_size >> n for n in range(sliding.batch_size.bit_length())]
        layouts = [(n, batch, dtype) for batch in batches for dtype in types for n in free]
    return layouts + [(n, batch, types[-1]) for batch in batches for n in bands]
