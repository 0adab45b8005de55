"""One function applied to many items in several processes, with progress, and an end at once when it is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from medseg.errors import ResourceError
from medseg.runtime.progress import Progress
from medseg.runtime.worker_process import start_worker, warns_in_one_line

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_MOST_WORKERS = 8
_WORTH_PROCESSES_BYTES = 100e6


class WorkerEndedError(ResourceError):
    """The system ended a process, most likely because memory ran out.

    Args:
        pending: Names of the items that were not finished, in order.
        workers: Number of processes.

    Attributes:
        pending: These names.
    """

    def __init__(self, pending: Sequence[str], workers: int) -> None:
        some = ", ".join(pending[: workers + 1])
        super().__init__(
            f"workers: the system ended one of {workers} processes at one of {some}, expected them to run until the end. It kills "
            "processes when memory runs out: give fewer workers, or free memory."
        )
        self.pending = tuple(pending)


def worthwhile_processes(files: Iterable[Path]) -> int:
    """Return the number of processes with which files are read; 0 if starting them would take longer than it saves.

    Args:
        files: The files; missing ones count as empty.

    Returns:
        Number of processes, at most 8.
    """
    size = sum(file.stat().st_size for file in files if file.exists())
    return min(os.cpu_count() or 1, _MOST_WORKERS) if size > _WORTH_PROCESSES_BYTES else 0


def map_in_processes(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    names: Sequence[str],
    workers: int,
    progress: Progress | None = None,
) -> list[_Result]:
    """Apply a function to each item.

    Args:
        function: Function that can be pickled; an exception that it raises ends the operation.
        items: Arguments, each of which can be pickled.
        names: Name of each item, for progress and errors.
        workers: Number of processes; below 2, or for a single item, everything happens in this process.
        progress: Called after each item with (done, total, name).

    Returns:
        One result per item, in the order of the items.

    Raises:
        WorkerEndedError: The system ended a process.

    >>> map_in_processes(len, ["ab", "c"], ["first", "second"], workers=0)
    [2, 1]
    """
    found: dict[int, _Result] = {}
    workers = min(workers, len(items))
    run = _in_processes(function, items, names, workers) if workers > 1 else _here(function, items)
    with closing(run) as results:
        for index, result in results:
            found[index] = result
            if progress is not None:
                progress(len(found), len(items), names[index])
    return [found[index] for index in range(len(items))]


def _here(
    function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Generator[tuple[int, _Result], None, None]:
    for index, item in enumerate(items):
        yield index, function(item)


def _in_processes(
    function: Callable[[_Item], _Result], items: Sequence[_Item], names: Sequence[str], workers: int
) -> Generator[tuple[int, _Result], None, None]:
    """Yield index and result in the order in which items are finished.

    Processes are spawned, because a fork copies the locks of threads in any state.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(warns_in_one_line(),),
    )
    pending: dict[Future[_Result], int] = {}
    others = set(multiprocessing.active_children())
    try:
        with _interrupts_held():  # the pool starts its processes when jobs are submitted
            for index, item in enumerate(items):
                pending[pool.submit(function, item)] = index
        for job in as_completed(list(pending)):
            result = job.result()
            yield pending.pop(job), result
    except BrokenProcessPool:
        raise WorkerEndedError([names[index] for index in pending.values()], workers) from None
    finally:
        # After an interruption: the processes only read files, so they can be ended at once instead of waiting.
        if pending:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C; processes started meanwhile never receive it, not even while they import their modules."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
