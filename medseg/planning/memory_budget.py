"""How much memory a plan may fill: what was asked for, or what this machine has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ConfigError
from medseg.planning.nnunet.presets import Preset

GIB = 2**30
_UNITS = {"": 1.0, "g": 1.0, "m": 1 / 1024, "t": 1024.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([gmt]?)(?:i?b)?", re.IGNORECASE)
FREE_SHARE = 0.5  # of a processor's free memory; the rest is for the data, the system and other programs
FLOAT32_SHARE = 0.5  # a step in single precision was measured to take 1.4 to 1.9 times what the presets count
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


@dataclass(frozen=True)
class MemoryBudget:
    """Memory to plan for.

    Attributes:
        gigabytes: of a GPU that trains in half precision, the measure of the presets.
        source: where the number comes from, as a sentence.
        on_gpu: whether the plan is for a GPU.
    """

    gigabytes: float
    source: str
    on_gpu: bool


def choose_budget(preset: Preset, memory: str | float | None) -> MemoryBudget:
    """The budget that was asked for; else the preset's own, or what this machine has if that is less.

    Args:
        preset: says what memory it is meant for.
        memory: GB of a GPU as a number, or text such as ``8GB``.

    Raises:
        ConfigError: no positive amount of memory.
    """
    if memory is not None:
        amount = parse_memory(memory)
        return MemoryBudget(amount, f"{amount:.3g} GB of GPU memory, as asked for", on_gpu=True)
    name, gpu = _gpu()
    if gpu is not None:
        if gpu < preset.memory_gb:
            return MemoryBudget(gpu, f"the {gpu:.3g} GB of this machine's {name}", on_gpu=True)
        source = f"{preset.memory_gb:g} GB, what the preset {preset.name} is made for; this machine's {name} has {gpu:.3g} GB"
        return MemoryBudget(preset.memory_gb, source, on_gpu=True)
    free = free_memory_gb()
    usable = free * FREE_SHARE * FLOAT32_SHARE
    told = f"found no GPU; {free:.3g} GB of this machine's memory are free"
    if usable < preset.memory_gb:
        source = (
            f"{usable:.3g} GB ({told}: half for training, in single precision, which takes twice as much)"
        )
        return MemoryBudget(usable, source, on_gpu=False)
    source = f"{preset.memory_gb:g} GB, what the preset {preset.name} is made for ({told})"
    return MemoryBudget(preset.memory_gb, source, on_gpu=False)


def parse_memory(text: str | float) -> float:
    """GB from ``8``, ``8GB``, ``8 GiB`` or ``8000MB``; a GB is 2^30 bytes, as makers of GPUs count."""
    match = _AMOUNT.fullmatch(str(text).strip())
    amount = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if amount <= 0:
        raise ConfigError(f"memory: found {text!r}, expected an amount such as 8GB. Correct it.")
    return amount


def free_memory_gb() -> float:
    """Memory that new programs may take, GB: of the system, or of the container this runs in if that is less."""
    limit, used = (_number(path) for path in _CGROUP)
    free = _available_bytes()
    if limit is not None and used is not None:
        free = min(free, max(limit - used, 0))
    return free / GIB


def _available_bytes() -> float:
    """Free memory and caches that would be given up; where the system does not tell, half of all memory."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _gpu() -> tuple[str, float | None]:
    """Name and memory (GB) of the first GPU, or None."""
    import torch

    if not torch.cuda.is_available():
        return "", None
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / GIB
