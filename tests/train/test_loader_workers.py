from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from medseg.errors import DataError, DataWarning, ResourceError
from medseg.train.loader_workers import (
    ErrorsAsItems,
    batches_of,
    collate,
    ignore_stop_signals,
    lost_workers_explained,
    workers_that_fit,
)


class Items(Dataset[Any]):
    """Numbers up to 99; from `at` on, `action` is called instead."""

    def __init__(self, action: Callable[[], None] | None = None, at: int = 4) -> None:
        self.action, self.at = action, at

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.action is not None and index >= self.at:
            self.action()
        return torch.tensor(index)


def initialise(number: int) -> None:
    ignore_stop_signals()


def loader(items: Items, workers: int) -> DataLoader[Any]:
    return DataLoader(
        ErrorsAsItems(items), batch_size=2, num_workers=workers, collate_fn=collate, worker_init_fn=initialise
    )


def refuse() -> None:
    raise DataError("case_1: found no voxels, expected some. Remove it.")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def overflow_shared_memory() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def children() -> set[psutil.Process]:
    """Return the running children; loops that other tests have left may end theirs at any time."""
    return {child for child in psutil.Process().children() if _runs(child)}


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_loader(workers: int) -> None:
    before = children()
    assert torch.cat(list(batches_of(loader(Items(), workers)))).tolist() == list(range(100))
    assert children() <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_class_and_text(workers: int) -> None:
    with pytest.raises(DataError, match=r"^case_1: found no voxels, expected some\. Remove it\.$"):
        list(batches_of(loader(Items(refuse), workers)))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (die, r"^train\.workers: worker process \d+ .*memory runs out: lower train\.workers"),
        (overflow_shared_memory, r"no room in shared memory \(/dev/shm\).*train\.workers=0"),
    ],
)
def test_a_killed_worker_ends_the_loop_and_the_other_workers(
    action: Callable[[], None], message: str
) -> None:
    before = children()
    with pytest.raises(ResourceError, match=message) as caught, lost_workers_explained():
        list(batches_of(loader(Items(action), 2)))
    assert caught.value.exit_code == 4
    assert children() <= before


@pytest.mark.slow
def test_a_worker_killed_after_the_last_batch_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch prints a traceback then: it notices in the middle of its own `__del__`, where nothing can catch it."""
    gc.collect()  # iterators of other tests would end in the patched function
    plain, killed, before = _MultiProcessingDataLoaderIter._shutdown_workers, [], children()

    def kill_one_and_shut_down(self: Any) -> None:
        if not killed:
            killed.append(self._workers[0].pid)
            os.kill(self._workers[0].pid, signal.SIGKILL)
            time.sleep(0.5)  # the signal of its end arrives here
        plain(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", kill_one_and_shut_down)
    loop = batches_of(loader(Items(), 2))
    assert next(loop).tolist() == [0, 1]
    loop.close()
    gc.collect()  # an exception in `__del__` becomes a warning, which fails the test
    assert len(killed) == 1
    assert children() <= before


def test_an_abandoned_loop_ends_its_workers() -> None:
    before = children()
    batches = batches_of(loader(Items(), 2))
    next(batches)
    assert len(children() - before) == 2
    batches.close()
    assert children() <= before


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("sizes of tensors must match"),
        ValueError("pid 3"),
        EOFError("a file"),
        BrokenPipeError("a pipe"),
    ],
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), lost_workers_explained():
        raise error


@pytest.mark.parametrize(("free", "fit"), [(None, 4), (8000, 4), (7999, 3), (1999, 0), (0, 0)])
def test_only_workers_whose_batches_fit_into_shared_memory_are_started(
    free: int | None, fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.train.loader_workers._free_shared_memory", lambda: free)
    if fit == 4:
        assert workers_that_fit(4, 1000) == 4
        return
    with pytest.warns(
        DataWarning, match=rf"/dev/shm\), expected at least .* 4 workers; {fit or 'no'} workers are used"
    ):
        assert workers_that_fit(4, 1000) == fit
