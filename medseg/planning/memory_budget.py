"""The memory that a plan may use: the requested amount, or that of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.planning.nnunet.presets import Preset
from medseg.runtime.memory import GIB, parse_size, total_memory

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


def choose_budget(preset: Preset, memory: str | None) -> MemoryBudget:
    """Return the requested budget, or the preset's own, or what this machine has if that is less.

    Without a GPU, half of the memory of the machine or of its control group (container, SLURM job) counts. What other
    programs use at the moment has no influence, so that the same machine always plans the same network.

    Args:
        preset: The preset to plan for, with the GPU memory that it is meant for.
        memory: Memory of a GPU, such as ``8GiB`` or ``8GB``; None if the user requested none.

    Returns:
        The budget and its origin.

    Raises:
        ConfigError: `memory` has no unit or is not a positive size.
    """
    if memory is not None:
        amount = parse_size(str(memory), "memory") / GIB
        return MemoryBudget(amount, f"{amount:.3g} GiB of GPU memory, as requested", on_gpu=True)
    name, gpu = _gpu()
    preset_source = f"{preset.memory_gib:g} GiB, the memory that the preset {preset.name} is meant for"
    if gpu is not None:
        if gpu < preset.memory_gib:
            return MemoryBudget(gpu, f"the {gpu:.3g} GiB of this machine's {name}", on_gpu=True)
        source = f"{preset_source}; this machine's {name} has {gpu:.3g} GiB"
        return MemoryBudget(preset.memory_gib, source, on_gpu=True)
    total = total_memory() / GIB
    usable = total * TOTAL_SHARE * FLOAT32_SHARE
    found = f"found no GPU; this machine, container or job has {total:.3g} GiB of memory"
    if usable < preset.memory_gib:
        source = (
            f"{usable:.3g} GiB ({found}: half for training, in single precision, which takes twice as much)"
        )
        return MemoryBudget(usable, source, on_gpu=False)
    return MemoryBudget(preset.memory_gib, f"{preset_source} ({found})", on_gpu=False)


def _gpu() -> tuple[str, float | None]:
    """Return the name and the memory (GiB) of the first GPU; no memory without one."""
    import torch

    if not torch.cuda.is_available():
        return "", None
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / GIB
