"""Worker processes that cut patches: their errors, and what happens when one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, default_collate

from medseg.data.patches.drawn_patch import DrawnPatch, PackedPatches
from medseg.errors import MedsegError, ResourceError, warn_once
from medseg.runtime.formatting import pluralise
from medseg.runtime.memory import format_size
from medseg.runtime.stop_signals import SIGNALS

Item = TypeVar("Item")
_SECONDS_TO_END = 10
_BATCHES_PER_WORKER = 2  # that torch prefetches
_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<how>[^.]*)")


class ErrorsAsItems(Dataset[Any]):
    """A dataset that returns a `MedsegError` as an item, because a worker would send it with its traceback in the text.

    Args:
        items: The dataset.
    """

    def __init__(self, items: Dataset[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self._items[index]
        except MedsegError as error:
            return error


def collate(items: list[Any]) -> Any:
    """Return the items as a batch, or the first error among them."""
    error = next((item for item in items if isinstance(item, MedsegError)), None)
    if error is not None:
        return error
    return PackedPatches.pack(items) if isinstance(items[0], DrawnPatch) else default_collate(items)


def batches_of(loader: DataLoader[Item]) -> Generator[Item]:
    """Yield the batches of a loader whose dataset is an `ErrorsAsItems`, and end its workers afterwards.

    Workers leave stop signals to the main process, so torch's own way to end those that do not answer, SIGTERM, has no
    effect on them. A worker that was killed may hold a lock that the others wait for; they are killed then.

    Args:
        loader: The loader, with `collate` as its function.

    Yields:
        The batches.

    Raises:
        MedsegError: A worker or this process could not create a sample.
    """
    batches: Iterator[Any] | None = iter(loader)
    workers = list(getattr(batches, "_workers", ()))
    try:
        for batch in batches:  # type: ignore[union-attr]
            if isinstance(batch, MedsegError):
                raise batch
            yield batch
    finally:
        if any(not worker.is_alive() for worker in workers):
            with suppress(RuntimeError):
                _kill(workers)
        if workers:
            # torch complains of a worker that is killed now, although all batches that were wanted have arrived.
            with suppress(RuntimeError):
                batches._shutdown_workers()  # type: ignore[union-attr]
        batches = None
        _kill(workers)


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    for worker in workers:
        worker.join(_SECONDS_TO_END)


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Return how many workers have room for their batches in shared memory, and warn if these are fewer.

    A worker that writes beyond the end of shared memory is killed by the system. Containers often have 64 MB.

    Args:
        workers: The wanted number.
        batch_bytes: Least size of a batch.

    Returns:
        The number of workers; 0 to cut the patches in this process.
    """
    free = _free_shared_memory()
    each = batch_bytes * _BATCHES_PER_WORKER
    if free is None or workers * each <= free:
        return workers
    fit = free // each
    warn_once(
        f"train.workers: found {format_size(free)} of free shared memory (/dev/shm), expected at least {format_size(workers * each)} "
        f"for the batches of {pluralise(workers, 'worker')}; {fit or 'no'} {'worker is' if fit == 1 else 'workers are'} used. Enlarge "
        "/dev/shm (docker run --shm-size=8g), or lower train.workers."
    )
    return fit


def _free_shared_memory() -> int | None:
    """Return the free bytes of shared memory; None where the system has no such folder."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize


@contextmanager
def lost_workers_explained() -> Generator[None]:
    """Return a context that reports the end of a worker as `ResourceError`.

    torch notices it at any time in the main process, also in the middle of a step.

    Raises:
        ResourceError: A worker was killed or lost its connection.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        matches = [match for cause in _causes(error) if (match := _LOST.search(str(cause)))]
        # One of several errors names the signal.
        found = next(
            (match for match in matches if "signal" in match["how"]), matches[0] if matches else None
        )
        if found is None and not _is_of_connection(error):
            raise
        raise ResourceError(_message(found)) from error


def _is_of_connection(error: BaseException) -> bool:
    """Return whether an error was raised by the connection to a worker, not for example by a file that ends early."""
    frames = traceback.extract_tb(error.__traceback__)
    return not isinstance(error, RuntimeError) and any(
        "multiprocessing" in frame.filename for frame in frames
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _message(found: re.Match[str] | None) -> str:
    """Return what happened to a worker, and what to do."""
    which = f"worker process {found['pid']}" if found else "a worker process"
    how = found["how"] if found else "closed its connection"
    if "Bus error" in how:
        return (
            f"train.workers: {which} found no room in shared memory (/dev/shm), expected room for its batches. Enlarge /dev/shm "
            f"(docker run --shm-size=8g), or set train.workers=0."
        )
    ended = how if "killed by signal" in how else "ended unexpectedly"
    return (
        f"train.workers: {which} {ended}, expected it to run until the end. The system kills processes when memory runs out: "
        f"lower train.workers, or free memory."
    )


def ignore_stop_signals() -> None:
    """Leave stop signals to the main process.

    Schedulers signal the whole process group: if a worker died of the signal, training would end before its state is saved.
    """
    for received in SIGNALS:
        signal.signal(received, signal.SIG_IGN)
