"""One function applied to many items in several processes, within the free memory.

Each process is a new interpreter, which does not import the program that started it. A process that ends unexpectedly costs
only the item that it had.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.spawn import get_executable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

import psutil

from medseg.errors import DiskFullError, MedsegError, ResourceError, warn_once
from medseg.runtime.launch import processes_per_machine
from medseg.runtime.machine import usable_cores
from medseg.runtime.memory import free_memory
from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason
from medseg.runtime.progress import Progress
from medseg.runtime.worker_process import read_message, write_message

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_WORTH_PROCESSES_BYTES = 100e6
_WORKER_BYTES = 300_000_000  # of a process with its libraries, before it has work
_USED_SHARE = 0.9  # of the free memory: estimates are not exact, and other programs need some
_PATIENCE = 5.0  # seconds for a process to end by itself before it is killed
_LOOK_AGAIN = 1.0  # seconds until the free memory is looked up again


def worthwhile_processes(files: Iterable[Path]) -> int:
    """Return the number of processes with which files are read; 0 if starting them would take longer than it saves.

    Args:
        files: The files; missing ones count as empty.

    Returns:
        Number of processes: the cores that this process may use, divided among the ranks of this machine.
    """
    size = 0
    for file in files:
        with suppress(OSError):
            size += file.stat().st_size
        if size > _WORTH_PROCESSES_BYTES:
            return max(1, usable_cores() // processes_per_machine())
    return 0


def map_in_processes(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    names: Sequence[str],
    workers: int,
    progress: Progress | None = None,
    memory: Callable[[_Item], int] | None = None,
) -> list[_Result | MedsegError]:
    """Apply a function to each item; an item that fails does not stop the others.

    Args:
        function: Function of an importable module that can be pickled.
        items: Arguments, each of which can be pickled.
        names: Name of each item, for progress and errors.
        workers: Largest number of processes; below 2, or for a single item, everything happens in this process.
        progress: Called after each item with (done, total, name).
        memory: Estimates the bytes that an item needs; None if they are negligible.

    Returns:
        One outcome per item, in the order of the items, as `outcomes_in_processes` yields it.

    Raises:
        DiskFullError: The disk is full, so that the other items would fail, too.
        Exception: Any error of the function that is no `MedsegError`.

    >>> map_in_processes(len, ["ab", "c"], ["first", "second"], workers=0)
    [2, 1]
    """
    found: dict[int, _Result | MedsegError] = {}
    with closing(outcomes_in_processes(function, items, names, workers, memory)) as outcomes:
        for index, outcome in outcomes:
            found[index] = outcome
            if progress is not None:
                progress(len(found), len(items), names[index])
    return [found[index] for index in range(len(items))]


def outcomes_in_processes(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    names: Sequence[str],
    workers: int,
    memory: Callable[[_Item], int] | None = None,
) -> Generator[tuple[int, _Result | MedsegError], None, None]:
    """Yield the outcome of each item as soon as it is known; close the generator to end the processes.

    A process is only given an item if the free memory suffices for this item and for those that are in work. If a process is
    killed or memory runs out nevertheless, the item is tried once more at the end, when nothing else is in work.

    Args:
        function: As for `map_in_processes`, like the other arguments.
        items: The arguments of the function.
        names: Name of each item, for errors.
        workers: Largest number of processes.
        memory: Estimates the bytes that an item needs.

    Yields:
        Index and outcome: the result, or the error of an item that failed, `ResourceError` if its process was killed or
        memory ran out.

    Raises:
        DiskFullError: The disk is full, so that the other items would fail, too.
        Exception: Any error of the function that is no `MedsegError`.
    """
    if min(workers, len(items)) > 1:
        run = _Pool(function, items, names, min(workers, len(items)), memory).outcomes()
    else:
        run = ((index, outcome_of(function, item, names[index])) for index, item in enumerate(items))
    with closing(run) as outcomes:
        for index, outcome in outcomes:
            if isinstance(outcome, DiskFullError):
                raise outcome
            yield index, outcome


def outcome_of(function: Callable[[_Item], _Result], item: _Item, name: str) -> _Result | MedsegError:
    """Apply a function to one item in this process, and return its error instead of raising it.

    Args:
        function: The function.
        item: Its argument.
        name: Name of the item, for the error.

    Returns:
        The result, or the error; `ResourceError` if memory ran out.

    Raises:
        Exception: Any error of the function that is no `MedsegError`.

    Examples:
        >>> outcome_of(len, "abc", "first")
        3
    """
    try:
        return function(item)
    except MedsegError as error:
        return error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _too_little_memory(name, error)


def _too_little_memory(name: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"{name}: found too little memory ({out_of_memory_reason(error)}), expected enough for it alone. Free memory, or take a "
        "larger machine."
    )


class _Pool(Generic[_Item, _Result]):
    """The processes of one `map_in_processes`, and what is still to be done.

    Args:
        function: As for `map_in_processes`, like the other arguments.
        items: The items.
        names: Their names.
        workers: Largest number of processes.
        memory: Estimates the bytes that an item needs.
    """

    def __init__(
        self,
        function: Callable[[_Item], _Result],
        items: Sequence[_Item],
        names: Sequence[str],
        workers: int,
        memory: Callable[[_Item], int] | None,
    ) -> None:
        self._function, self._items, self._names = function, items, names
        self._most = workers
        self._memory = memory
        self._estimates: dict[int, int] = {}
        self._waiting = deque(range(len(items)))
        self._alone: deque[int] = deque()
        self._news: SimpleQueue[tuple[_Worker, bytes | None]] = SimpleQueue()
        self._workers: list[_Worker] = []

    def outcomes(self) -> Generator[tuple[int, _Result | MedsegError], None, None]:
        """Yield index and outcome in the order in which items are finished; the processes end with the generator."""
        try:
            while self._waiting or self._alone or self._busy:
                self._give_work()
                try:
                    worker, answer = self._news.get(timeout=_LOOK_AGAIN)
                except Empty:
                    continue
                outcome = self._received(worker, answer)
                if outcome is not None:
                    yield outcome
        finally:
            self._stop()

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _give_work(self) -> None:
        while self._waiting and len(self._busy) < self._most and self._fits(self._waiting[0]):
            self._give(self._waiting.popleft())
        if self._alone and not self._waiting and not self._busy:
            self._give(self._alone[0], alone=True)

    def _fits(self, index: int) -> bool:
        """Return whether the free memory suffices for one more item; the only one is always tried."""
        if self._memory is None or not self._busy:
            return True
        needed = self._needs(index)
        if len(self._busy) == len(self._workers):
            needed += _WORKER_BYTES
        promised = sum(worker.still_needs() for worker in self._busy)
        return needed + promised <= _USED_SHARE * free_memory() / processes_per_machine()

    def _give(self, index: int, *, alone: bool = False) -> None:
        worker = next((worker for worker in self._workers if worker.index is None), None)
        if worker is None:
            worker = _Worker(max(1, usable_cores() // self._most))
            self._workers.append(worker)
            Thread(target=worker.listen, args=(self._news,), daemon=True).start()
        request = pickle.dumps((self._function, self._items[index]))
        worker.give(index, request, self._needs(index), alone=alone)

    def _needs(self, index: int) -> int:
        """Return the estimate of an item, which is computed only once, because a header may be read for it."""
        if index not in self._estimates:
            self._estimates[index] = 0 if self._memory is None else self._memory(self._items[index])
        return self._estimates[index]

    def _received(self, worker: _Worker, answer: bytes | None) -> tuple[int, _Result | MedsegError] | None:
        """Return the outcome of an answer, which is None for a process that has ended; None if there is none yet."""
        if answer == b"":
            worker.note_size()
            return None
        index, alone = worker.index, worker.alone
        worker.index = None
        result: Any
        error: Exception | None
        if answer is None:
            self._workers.remove(worker)
            how = worker.stop()
            if index is None:
                return None
            result, error = (
                None,
                ResourceError(
                    f"{self._names[index]}: its process ended {how}, also with nothing else in work. Signal 9 is often a lack of memory: "
                    "free memory, or take a larger machine."
                ),
            )
        else:
            result, error, messages = pickle.loads(answer)
            for message in messages:
                warn_once(message)
        assert index is not None
        if error is not None and (answer is None or is_out_of_memory(error)):
            if not alone:
                self._alone.append(index)
                return None
            self._alone.popleft()
            known = error if isinstance(error, MedsegError) else _too_little_memory(self._names[index], error)
            return index, known
        if alone:
            self._alone.popleft()
        if error is not None and not isinstance(error, MedsegError):
            raise error
        return index, result if error is None else error

    def _stop(self) -> None:
        """End all processes; files that they have not completed are removed by themselves."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.stop()


@dataclass(eq=False)
class _Worker:
    """A process, and the item that it works on.

    Attributes:
        threads: Number of threads that its libraries may use.
        index: Index of the item; None if it has no work.
        alone: Whether nothing else is in work.
    """

    threads: int
    index: int | None = None
    alone: bool = False
    _needed: int = 0
    _size: int = 0
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        program = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from medseg.runtime.worker_process import serve; serve({os.getpid()})"
        )
        with interrupts_held():
            self._process = subprocess.Popen(
                [os.fsdecode(get_executable()), "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            )

    def give(self, index: int, request: bytes, needed: int, *, alone: bool) -> None:
        """Send a request; if the process has ended, `listen` reports it."""
        self.index, self.alone, self._needed = index, alone, needed
        assert self._process.stdin is not None
        with suppress(OSError):
            write_message(self._process.stdin, request)

    def listen(self, news: SimpleQueue[tuple[_Worker, bytes | None]]) -> None:
        """Put all answers of the process into a queue, and None at its end; runs in a thread."""
        assert self._process.stdout is not None
        answer: bytes | None = b""
        with self._process.stdout as answers:
            while answer is not None:
                answer = read_message(answers)
                news.put((self, answer))

    def note_size(self) -> None:
        """Note the bytes in memory before the first item."""
        self._size = self._private()

    def still_needs(self) -> int:
        """Return the bytes that the item in work will take in addition to those that the process has now."""
        started = self._size > 0
        taken = self._private() - self._size if started else 0
        return max(0, self._needed - taken) + (0 if started else _WORKER_BYTES)

    def _private(self) -> int:
        """Return the bytes in memory, without those of libraries, which processes share, where the system distinguishes them."""
        try:
            memory = psutil.Process(self._process.pid).memory_info()
        except psutil.Error:
            return 0
        return int(memory.rss - getattr(memory, "shared", 0))

    def ask_to_end(self) -> None:
        """Close the requests, which ends an idle process, and end a busy one."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self.index is not None:
            self._process.terminate()

    def stop(self) -> str:
        """Wait for the end of the process, by force after some seconds, and return how it ended."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"with signal {-code}" if code < 0 else f"with exit code {code}"


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C; processes started meanwhile never receive it, not even while they import their modules."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
