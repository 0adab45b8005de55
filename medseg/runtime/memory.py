"""Byte sizes as text, and how much memory this process uses and may still take."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import ByteSize, TypeAdapter, ValidationError

from medseg.errors import ConfigError

if TYPE_CHECKING:
    import torch

GIB = 2**30
"""Bytes per GiB. A GPU sold with "8 GB" has 8 GiB, which is also what nnU-Net's presets mean by 8 GB."""

_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_BYTE_SIZE = TypeAdapter(ByteSize)
_CGROUP_FILES = (  # names of the limit and the usage: control groups version 2, then version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def parse_size(text: str, setting: str = "size") -> int:
    """Parse a size such as ``8GB``, ``8GiB`` or ``500 MB``.

    Args:
        text: A positive number with a unit, in upper or lower case.
        setting: Name of the option or argument, for the message.

    Returns:
        Bytes; ``8GB`` is 8 · 10⁹, ``8GiB`` is 8 · 2³⁰.

    Raises:
        ConfigError: `text` has no unit, or is not a positive size.

    >>> parse_size("8GB"), parse_size("8GiB")
    (8000000000, 8589934592)
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is not None and not match[2]:
        number = match[1]
        raise ConfigError(
            f"{setting}: found {text!r}, a number without a unit, expected for example {number}GB ({number} times "
            f"10^9 bytes) or {number}GiB ({number} times 2^30 bytes). Add the unit."
        )
    try:
        size = int(_BYTE_SIZE.validate_python(text)) if match else 0
    except ValidationError:
        size = 0
    if size <= 0:
        raise ConfigError(
            f"{setting}: found {text!r}, expected a size such as 8GB (8 times 10^9 bytes) or 8GiB (8 times 2^30 "
            "bytes). Correct it."
        )
    return size


def format_size(size: float, *, round_up: bool = False) -> str:
    """Format a number of bytes for people.

    Args:
        size: Bytes.
        round_up: Return gigabytes that are never below `size`, for a minimum that a user may type.

    Returns:
        Text such as ``3.2 GB`` or ``20 MB`` (powers of 10, as in `parse_size`).
    """
    if size < 10**8 and not round_up:
        return f"{size / 10**6:.3g} MB"
    return f"{size / 10**9 + (0.05 if round_up else 0):.1f} GB"


_sharing = {"processes": 1}  # that do the same work on this machine, see `share_free_memory`


def share_free_memory(processes: int) -> None:
    """Let `free_memory` return an equal share for each of several processes on this machine.

    Args:
        processes: Number of processes, this one included.
    """
    _sharing["processes"] = max(1, processes)


def free_memory(groups: Iterable[Path] | None = None) -> int:
    """Return the memory that this process may still take.

    This is the memory that the machine has available, or what is left of a control group (container, SLURM job) if
    that is less. Cached files count as free, because the kernel drops them when memory is needed. Processes that
    share it, see `share_free_memory`, divide it.

    Args:
        groups: Folders of control groups; None for the group of this process and all groups above it.

    Returns:
        Bytes.
    """
    free = int(psutil.virtual_memory().available)
    for folder, limit, usage in _limits(groups):
        if usage is not None:
            free = min(free, max(0, limit - usage + _cached_files(folder)))
    return free // _sharing["processes"]


def _limits(groups: Iterable[Path] | None) -> Iterator[tuple[Path, int, int | None]]:
    """Yield the folder, the limit and the usage of each control group with a limit, in bytes; None for an unknown usage."""
    for folder in control_groups() if groups is None else groups:
        for limit_file, usage_file in _CGROUP_FILES:
            limit, usage = _bytes_in(folder / limit_file), _bytes_in(folder / usage_file)
            if limit is not None:
                yield folder, limit, usage


def _bytes_in(file: Path) -> int | None:
    """Return the number in a file of a control group; None without the file, or for "max", which means no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def control_groups(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process's memory, its own group first.

    Args:
        own: The kernel's list of the groups of this process.
        root: Folder where control groups are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        folder = base / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(base)))


def _cached_files(group: Path) -> int:
    """Return the bytes of cached files that a control group counts as used, although they can be dropped."""
    try:
        lines = (group / "memory.stat").read_text().split("\n")
    except OSError:
        return 0
    known = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sum(
        int(known.get(f"total_{name}", known.get(name, 0))) for name in ("inactive_file", "active_file")
    )


def free_device_memory(device: torch.device) -> int:
    """Return the bytes of a CUDA device that this process may still take.

    Blocks that torch's allocator keeps after their tensors were freed count as free, because it uses them again.

    Args:
        device: The device.

    Returns:
        Bytes.
    """
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def release_memory(device: torch.device) -> None:
    """Return memory of freed tensors, which torch's allocator caches, to the device.

    Args:
        device: Device whose cached memory is released.
    """
    import gc

    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def process_memory() -> int:
    """Return the resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


class _Sampling:
    """A thread that calls a function at intervals, and once more at its end.

    Args:
        sample: The function.
        interval: Seconds between calls.
    """

    def __init__(self, sample: Callable[[], None], interval: float) -> None:
        self._sample, self._interval = sample, interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self._sample()

    def _repeat(self) -> None:
        while not self._end.wait(self._interval):
            self._sample()


class PeakMemory:
    """Context manager that samples the resident memory of this process in a background thread.

    Args:
        interval: Seconds between samples.

    Attributes:
        start: Resident bytes when the object was created.
        peak: Largest resident bytes seen until now.
    """

    def __init__(self, interval: float = 0.002) -> None:
        self._sampling = _Sampling(self._sample, interval)
        self.start = self.peak = process_memory()

    @property
    def taken(self) -> int:
        """The largest growth of the memory so far, in bytes."""
        return self.peak - self.start

    def _sample(self) -> None:
        self.peak = max(self.peak, process_memory())

    def __enter__(self) -> PeakMemory:
        self._sampling.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._sampling.stop()


class ItemPeaks:
    """Context manager that samples the resident memory of this process while items are processed.

    Items may overlap; each of them gets the memory of the whole process.

    Args:
        interval: Seconds between samples.
    """

    def __init__(self, interval: float = 0.05) -> None:
        self._sampling = _Sampling(self._sample, interval)
        self._lock = threading.Lock()
        self._peaks: dict[Hashable, int] = {}

    def start(self, item: Hashable) -> None:
        """Start watching an item.

        Args:
            item: Its identifier.
        """
        with self._lock:
            self._peaks[item] = process_memory()

    def peak(self, item: Hashable) -> int:
        """Return the largest resident bytes of this process since the item was started.

        Args:
            item: Its identifier.

        Returns:
            Bytes; those at this moment for an item that is not watched.
        """
        self._sample()
        with self._lock:
            return self._peaks.get(item, process_memory())

    def end(self, item: Hashable) -> int:
        """Stop watching an item.

        Args:
            item: Its identifier.

        Returns:
            The largest resident bytes of this process meanwhile.
        """
        found = self.peak(item)
        with self._lock:
            self._peaks.pop(item, None)
        return found

    def _sample(self) -> None:
        now = process_memory()
        with self._lock:
            self._peaks = {item: max(peak, now) for item, peak in self._peaks.items()}

    def __enter__(self) -> ItemPeaks:
        self._sampling.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._sampling.stop()
