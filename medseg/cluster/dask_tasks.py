"""One function applied to many items on a Dask cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from medseg.cluster.dask_cluster import RETRIES
from medseg.errors import ResourceError

if TYPE_CHECKING:
    from distributed import Client

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_LOOK_AGAIN = 5.0  # seconds until the number of workers is looked up again
_AHEAD = 2  # tasks per worker that are submitted, one of which waits at the scheduler


class WorkerLost(ResourceError):
    """The workers that had a task ended unexpectedly, each time it was tried."""


def map_on_cluster(
    client: Client, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, _Result | WorkerLost]]:
    """Apply a function to each item, as many at a time as there are workers.

    Args:
        client: The connection to the cluster.
        function: Function that can be pickled; an exception that it raises ends the operation.
        items: Arguments that can be pickled; only a few are requested in advance.

    Yields:
        Each item with its result, as soon as it is finished; with `WorkerLost` instead of a result if the worker ended
        unexpectedly each of the three times that the task was tried.

    Raises:
        ResourceError: The connection to the scheduler was lost.
    """
    remaining, finished = iter(items), SimpleQueue[Any]()
    pending: dict[Any, _Item] = {}
    room = _Room(client)
    try:
        while True:
            for item in islice(remaining, max(0, room.tasks() - len(pending))):
                future = client.submit(function, item, pure=False)
                pending[future] = item
                future.add_done_callback(finished.put)
            if not pending:
                return
            future = _next(finished, client)
            item = pending.pop(future)
            yield item, _result(client, future)
            future.release()
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending))


def _next(finished: SimpleQueue[Any], client: Client) -> Any:
    """Wait for a finished task; meanwhile, let the cluster replace workers that did not start again."""
    while True:
        try:
            return finished.get(timeout=_LOOK_AGAIN)
        except Empty:
            if client.cluster is not None:
                client.cluster.scale(len(client.cluster.worker_spec))


class _Room:
    """The number of tasks that are submitted at a time, which follows the number of workers."""

    def __init__(self, client: Client) -> None:
        self._client, self._tasks, self._until = client, 0, 0.0

    def tasks(self) -> int:
        if time.monotonic() >= self._until and self._client.status == "running":
            self._tasks = _AHEAD * max(1, len(self._client.nthreads()))
            self._until = time.monotonic() + _LOOK_AGAIN
        return self._tasks


def _result(client: Client, future: Any) -> Any:
    """Return the result of a finished task, or the error if its workers were lost."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return WorkerLost(
            f"the worker ended unexpectedly each of the {RETRIES + 1} times that this was tried. Most often, memory ran out: "
            "use fewer workers per machine, or limit the memory."
        )
    except (CancelledError, OSError):
        raise ResourceError(
            "cluster: lost the connection to the scheduler, expected it to run until the end. What was finished is "
            "kept. Start the scheduler again, and continue with the same command."
        ) from None
