"""Prediction of many cases on several devices: one process per device, which take their cases from one queue.

A process that ends unexpectedly is reported. Each of its unfinished cases is then predicted again in a separate process, so
that only the case that ended it fails.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from medseg.data.datasets.cases import Case
from medseg.errors import MedsegError, ResourceError
from medseg.inference.cohort.batch import Outcome
from medseg.runtime.memory import share_free_memory
from medseg.runtime.worker_process import call_received, warns_in_one_line

Pair = tuple[Case, Path]
_AHEAD = 3  # cases of one process: one is written, one predicted, one read
_PATIENCE = 20.0  # seconds for a process to end by itself before it is killed


class Work(Protocol):
    """The function that a process runs; it has to be picklable, because it is sent to the process."""

    def __call__(self, device: str, pairs: Iterator[Pair]) -> Iterator[Outcome]:
        """Predict the pairs of case and label map on a device and yield one outcome each, in order."""


def predict_on_devices(
    work: Work, devices: Sequence[str], pairs: Iterable[Pair], on_restart: Callable[[str], None] | None = None
) -> Iterator[Outcome]:
    """Predict cases on several devices.

    Args:
        work: Function that each process runs.
        devices: The devices; one process runs on each.
        pairs: Each case and the file of its label map; consumed a few cases ahead.
        on_restart: Called with a sentence when a process ended unexpectedly; None ignores it.

    Yields:
        One outcome per case, in the order in which they are done.

    Raises:
        MedsegError: A process could not start its work, for example because a model cannot be loaded.
    """
    queue, suspects = _Queue(pairs), deque[Pair]()
    workers: list[_Worker] = []
    try:
        for device in devices:
            if queue:
                workers.append(_Worker(work, device, len(devices)))
                workers[-1].feed(queue)
        for _ in range(_AHEAD - 1):
            for worker in workers:
                worker.feed(queue)
        while workers:
            for worker in _ready(workers):
                outcome = worker.receive()
                if outcome is not None:
                    yield outcome
                    worker.feed(queue)
                    continue
                workers.remove(worker)
                how = worker.close()
                if worker.pairs:
                    if on_restart is not None:
                        on_restart(f"{worker.device}: the process ended {how}; its cases are predicted again")
                    suspects.extend(worker.pairs)
                    if queue:
                        workers.append(_Worker(work, worker.device, len(devices)))
                        for _ in range(_AHEAD):
                            workers[-1].feed(queue)
        for number, pair in enumerate(suspects):
            workers = [_Worker(work, devices[number % len(devices)], 1)]
            yield _predicted_alone(workers[0], pair)
            workers = []
    finally:
        for worker in workers:
            worker.stop()


def _predicted_alone(worker: _Worker, pair: Pair) -> Outcome:
    """Return the outcome of a case that is predicted in a separate process; it is an error if the process ends again."""
    worker.feed(_Queue([pair]))
    worker.feed(_Queue([]))
    outcome = worker.receive()
    how = worker.close()
    if outcome is not None:
        return outcome
    error = ResourceError(
        f"{pair[0].id}: the process on {worker.device} ended {how} twice. Signal 9 is often a lack of memory: give --max-memory, or "
        "predict on fewer devices at once."
    )
    return Outcome(*pair, error=error)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until processes have sent something or have ended, and return them."""
    found = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in found]


class _Queue:
    """A queue of pairs of case and label map; it is true as long as another pair remains.

    Args:
        pairs: The pairs; the next one is always fetched ahead.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._pairs = iter(pairs)
        self._next = next(self._pairs, None)

    def __bool__(self) -> bool:
        return self._next is not None

    def next(self) -> Pair | None:
        """Remove and return the next case with its label map, or None if there is none."""
        found = self._next
        if found is not None:
            self._next = next(self._pairs, None)
        return found


@dataclass
class _Worker:
    """A process and the cases that were sent to it.

    Attributes:
        work: Function that it runs.
        device: Its device.
        processes: Number of processes on this machine, which share its memory.
        pairs: The cases that were sent to it and are not finished, in order.
    """

    work: Work
    device: str
    processes: int
    pairs: deque[Pair] = field(default_factory=deque)
    connection: Connection[Any, Any] = field(init=False)
    process: BaseProcess = field(init=False)
    _fed: bool = False

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, other = context.Pipe()
        self.process = context.Process(target=call_received, args=(other, warns_in_one_line()), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the connection
        self._send(partial(_run, self.work, self.device, self.processes))

    def feed(self, queue: _Queue) -> None:
        """Send the next case of the queue, or None as the end if there is none."""
        if self._fed:
            return
        pair = queue.next()
        self._fed = pair is None
        if pair is not None:
            self.pairs.append(pair)
        self._send(pair)

    def _send(self, what: object) -> None:
        try:
            self.connection.send(what)
        except OSError:  # the process has ended, which `receive` finds out
            self._fed = True

    def receive(self) -> Outcome | None:
        """Return the next outcome, or None if the process has ended."""
        try:
            found = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(found, MedsegError):
            raise found
        self.pairs.popleft()
        return found  # type: ignore[no-any-return]

    def close(self) -> str:
        """Wait for the end of the process and return how it ended."""
        self.process.join(_PATIENCE)
        if self.process.exitcode is None:
            self.stop()
        code = self.process.exitcode or 0
        return f"with signal {-code}" if code < 0 else f"with exit code {code}"

    def stop(self) -> None:
        """End the process, which removes the files that it has not completed."""
        self.process.terminate()
        self.process.join(_PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def _run(work: Work, device: str, processes: int, connection: Connection[Any, Any]) -> None:
    """Predict the cases that come through the connection and send their outcomes back."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that unfinished files are removed
    share_free_memory(processes)
    try:
        for outcome in work(device, _received(connection)):
            connection.send(outcome)
    except MedsegError as error:
        connection.send(error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python reports what is raised while it ends


def _received(connection: Connection[Any, Any]) -> Iterator[Pair]:
    while True:
        try:
            pair: Pair | None = connection.recv()
        except EOFError:  # the parent has ended
            return
        if pair is None:
            return
        yield pair
