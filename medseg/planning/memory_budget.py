"""The memory that a plan may use: the requested amount, that of a GPU, or that of the nominal processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medseg.planning.nnunet.presets import Preset
from medseg.runtime.memory import GIB, parse_size
from medseg.train.timing.nominal_processor import MEMORY

Device = Literal["cpu", "cuda"]
TOTAL_SHARE = 0.5  # of the memory without a GPU; the rest is for the data, the system and other programs
FLOAT32_SHARE = 0.5  # a step in single precision was measured to take 1.4 to 1.9 times what the presets count


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that the training of the planned network may take.

    Attributes:
        gib: Memory in GiB for training in half precision, as in the presets. Training in single precision, which is used
            without a GPU, takes up to twice as much.
        source: A sentence that states where the number comes from.
        on_gpu: Whether the plan is for a GPU.
    """

    gib: float
    source: str
    on_gpu: bool


def choose_budget(preset: Preset, memory: str | None, device: Device | None = None) -> MemoryBudget:
    """Return the requested budget, or the preset's own, or what the device has if that is less.

    Without a GPU, the nominal processor has 8 GB. Neither the memory of this machine nor what is free at the moment has an
    influence, so that every machine plans the same network.

    Args:
        preset: The preset to plan for, with the GPU memory that it is meant for.
        memory: Memory of the GPU or, without one, of the machine, such as ``8GiB`` or ``8GB``; None if the user requested none.
        device: Device to plan for, of whatever machine; None for the GPU of this machine or, without one, the processor.

    Returns:
        The budget and its origin.

    Raises:
        ConfigError: `memory` has no unit or is not a positive size.
    """
    requested = None if memory is None else parse_size(str(memory), "memory") / GIB
    name, found = _gpu() if device is None else ("", None)
    if device == "cuda" or found is not None:
        return _of_gpu(preset, requested, name, found)
    total = parse_size(MEMORY) / GIB if requested is None else requested
    origin = (
        f"{MEMORY} of memory, as assumed without --memory"
        if memory is None
        else f"{memory} of memory, as requested"
    )
    usable = total * TOTAL_SHARE * FLOAT32_SHARE
    if usable < preset.memory_gib:
        source = f"{usable:.3g} GiB (a processor with {origin}: half for training, in single precision, which takes twice as much)"
        return MemoryBudget(usable, source, on_gpu=False)
    return MemoryBudget(preset.memory_gib, f"{_meant(preset)} (a processor with {origin})", on_gpu=False)


def _of_gpu(preset: Preset, requested: float | None, name: str, found: float | None) -> MemoryBudget:
    """Return the budget on a GPU; the memory of this machine's GPU is `found`, None to plan for another one."""
    if requested is not None:
        return MemoryBudget(requested, f"{requested:.3g} GiB of GPU memory, as requested", on_gpu=True)
    if found is None:
        return MemoryBudget(preset.memory_gib, f"{_meant(preset)}, on a GPU as requested", on_gpu=True)
    if found < preset.memory_gib:
        return MemoryBudget(found, f"the {found:.3g} GiB of this machine's {name}", on_gpu=True)
    source = f"{_meant(preset)}; this machine's {name} has {found:.3g} GiB"
    return MemoryBudget(preset.memory_gib, source, on_gpu=True)


def _meant(preset: Preset) -> str:
    return f"{preset.memory_gib:g} GiB, the memory that the preset {preset.name} is meant for"


def _gpu() -> tuple[str, float | None]:
    """Return the name and the memory (GiB) of the first GPU; no memory without one."""
    import torch

    if not torch.cuda.is_available():
        return "", None
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / GIB
