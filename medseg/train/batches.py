"""Patches of each step, and the processes that cut them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import DataLoader

from medseg.data.patches.drawn_patch import PackedPatches
from medseg.data.patches.patch_dataset import PatchDataset, Sample
from medseg.runtime.launch import processes_per_machine
from medseg.runtime.machine import usable_cores
from medseg.train.loader_workers import (
    ErrorsAsItems,
    batches_of,
    collate,
    ignore_stop_signals,
    workers_that_fit,
)

MOST_WORKERS = 12
Batch = Sample | PackedPatches
"""A batch of finished samples, or of drawn patches that are augmented on the device of the network."""


@dataclass(frozen=True)
class TrainingPatches:
    """The patches of a training; their `batch_size` is that of all processes and accumulated batches together.

    Attributes:
        train: Patches to learn from.
        validation: Held-out patches, or None to train without validation.
    """

    train: PatchDataset
    validation: PatchDataset | None = None


@dataclass(frozen=True)
class Batches:
    """Indices of patches, batch by batch, for one of several processes.

    A step takes the same patches however they are distributed: batch `b` of process `p` is the part ``b · processes +
    p`` of the step's patches, which are numbered consecutively across steps.

    Attributes:
        steps: Steps for which batches are created.
        size: Patches per batch.
        accumulate: Batches per step and process.
        rank: Rank of this process.
        processes: Number of processes.
    """

    steps: range
    size: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulate * self.processes
        for step in self.steps:
            for batch in range(self.accumulate):
                first = (step * parts + batch * self.processes + self.rank) * self.size
                yield list(range(first, first + self.size))


def load_batches(
    patches: PatchDataset, batches: Batches, workers: int, *, pin_memory: bool = False
) -> Generator[Batch]:
    """Return batches of patches; its workers end when it is exhausted or closed.

    Args:
        patches: Patches to cut and augment.
        batches: Indices of the patches of each batch.
        workers: Processes that cut and augment; 0 does it in this process.
        pin_memory: Whether batches come in pinned memory, from which CUDA devices copy in the background.

    Returns:
        The batches, in the given order.
    """
    loader = DataLoader(
        ErrorsAsItems(patches),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers_that_fit(workers, batches.size * patches.sample_bytes),
        pin_memory=pin_memory,
        persistent_workers=False,
        # The loader draws a base seed: from its own generator, so that other random numbers do not change.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_init_worker,
    )
    return batches_of(loader)


def resolve_workers(workers: int | Literal["auto"], device: torch.device) -> int:
    """Return the number of processes that prepare the batches of one training process.

    Args:
        workers: The number; ``auto`` is 0 on a processor, where they would take the cores of the network, and on a CUDA
            device the share of the cores of this process, at most 12.
        device: Device of the network.

    Returns:
        The number.
    """
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 0
    return max(1, min(MOST_WORKERS, usable_cores() // processes_per_machine()))


def _init_worker(number: int) -> None:
    """Limit a worker to one thread and leave stop signals to the main process."""
    torch.set_num_threads(1)
    ignore_stop_signals()
