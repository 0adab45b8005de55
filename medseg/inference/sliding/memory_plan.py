"""How much memory there is, and how a prediction is laid out to stay within it."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil
import torch

from medseg.errors import ConfigError
from medseg.inference.sliding.slab import bytes_of_logits
from medseg.inference.sliding.windows import SlidingWindow

FRACTION_OF_FREE = 0.5  # when no budget is given; the rest is for other programs and the cache of files
FRACTION_OF_GPU = 0.5  # of what is free there, for sums; the rest is the network's
OVERHEAD = 256 << 20  # interpolation, compression, and what the allocator keeps
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_CGROUP_FILES = (  # limit, in use; version 2, then 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``6GB``, ``500 MB`` or ``2GiB``.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise ConfigError(f"max_memory: found {text!r}, expected a size such as 6GB or 800MB. Correct it.")
    return int(float(match[1]) * _UNITS[match[2]])


def free_memory(groups: Iterable[Path] | None = None) -> int:
    """Bytes that this process may still take: what the machine has free, or a control group of it if that is less.

    Args:
        groups: folders of control groups; None for the process's own and all above it.
    """
    free = int(psutil.virtual_memory().available)
    for folder in control_groups() if groups is None else groups:
        for limit_file, usage_file in _CGROUP_FILES:
            try:
                limit, usage = ((folder / file).read_text().strip() for file in (limit_file, usage_file))
            except OSError:
                continue
            if limit.isdigit() and usage.isdigit():  # "max" is no limit
                free = min(free, max(0, int(limit) - int(usage) + _cached_files(folder)))
    return free


def control_groups(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[Path]:
    """Folders of the control groups whose memory this process counts towards, its own first.

    Args:
        own: the kernel's list. root: where groups are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        folder = base / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(base)))


def _cached_files(group: Path) -> int:
    """Bytes that a group holds of files that were read, which count as its own and are given up where memory is wanted."""
    try:
        lines = (group / "memory.stat").read_text().split("\n")
    except OSError:
        return 0
    known = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sum(
        int(known.get(f"total_{name}", known.get(name, 0))) for name in ("inactive_file", "active_file")
    )


def used_memory() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Context that samples the process's resident memory; `taken` says by how much it grew at most."""

    def __init__(self, interval: float = 0.002) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.start = self.peak = used_memory()

    @property
    def taken(self) -> int:
        """Bytes between the start and the peak."""
        return self.peak - self.start

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, used_memory())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, used_memory())


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
        f"max_memory: found {gigabytes(budget)}, expected at least {gigabytes(smallest, up=True)} for an image of "
        f"{'x'.join(map(str, (*shape[2:], shape[1])))} voxels at the model's spacing and {sliding.num_outputs} outputs. "
        "Allow that much."
    )


def gigabytes(size: float, *, up: bool = False) -> str:
    """Bytes as text, such as ``3.2 GB`` or ``20 MB``; with `up` never below the size."""
    if size < 10**8 and not up:
        return f"{size / 10**6:.3g} MB"
    return f"{size / 10**9 + (0.05 if up else 0):.1f} GB"


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
