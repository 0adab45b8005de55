"""Patches of each step, and the processes that cut them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from medseg.data.patches.patch_dataset import PatchDataset, Sample
from medseg.runtime.stop_signals import SIGNALS


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


def load_batches(patches: PatchDataset, batches: Batches, workers: int) -> DataLoader[Sample]:
    """Return a loader of the patches of `batches`, cut and augmented in `workers` processes; with 0, in this one."""
    return DataLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=False,
        # The loader draws a base seed: from its own generator, so that other random numbers do not change.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_init_worker,
    )


def _init_worker(number: int) -> None:
    """Limit a worker to one thread and leave stop signals to the main process.

    Schedulers signal the whole process group: if a worker died of the signal, training would end before its state is saved.
    """
    torch.set_num_threads(1)
    for received in SIGNALS:
        signal.signal(received, signal.SIG_IGN)
