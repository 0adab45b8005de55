"""One function applied to many cases: in this process, in several processes of this machine, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medseg.cluster.dask_cluster import connected
from medseg.cluster.dask_tasks import WorkerLost, map_on_cluster
from medseg.errors import DiskFullError, MedsegError, collected_warnings, warn_once
from medseg.runtime.process_map import outcome_of, outcomes_in_processes, worthwhile_processes
from medseg.runtime.progress import Progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CaseExecutor:
    """The processes or the cluster that apply a function to many cases, like an executor of `concurrent.futures`.

    Attributes:
        processes: Largest number of processes of this machine; 0 works in this process; None is one per core if the files are
            large. Without effect on a cluster.
        cluster: Dask cluster, see `medseg.cluster.dask_cluster.connected`; None for this machine. Its workers need the same
            files under the same paths.
    """

    processes: int | None = 0
    cluster: str | None = None

    def outcomes(
        self,
        function: Callable[[_Item], _Result],
        items: Sequence[_Item],
        names: Sequence[str],
        files: Iterable[Path],
        memory: Callable[[_Item], int] | None = None,
    ) -> Generator[tuple[int, _Result | MedsegError], None, None]:
        """Yield the outcome of each item as soon as it is known; close the generator to end the work.

        Args:
            function: Function of an importable module, which can be pickled like its argument and result.
            items: Arguments.
            names: Name of each item, for errors.
            files: The files that are read, from whose sizes the number of processes is chosen.
            memory: Estimates the bytes that an item needs, see `outcomes_in_processes`. A cluster gives each worker one item
                at a time, whatever that needs.

        Yields:
            Index and outcome: the result, or the error of an item that failed.

        Raises:
            DiskFullError: The disk is full, so that the other items would fail, too.
            ConfigError: The cluster is described wrongly.
            ResourceError: The cluster cannot be reached, or the connection was lost.
            Exception: Any error of the function that is no `MedsegError`.
        """
        if self.cluster is None or not items:
            processes = worthwhile_processes(files) if self.processes is None else self.processes
            yield from outcomes_in_processes(function, items, names, processes, memory)
            return
        with connected(self.cluster) as client:
            numbered = enumerate(zip(names, items, strict=True))
            for (index, (name, _)), result in map_on_cluster(client, _OutcomeOnWorker(function), numbered):
                if isinstance(result, WorkerLost):
                    yield index, WorkerLost(f"{name}: {result}")
                    continue
                outcome, messages = result
                for message in messages:
                    warn_once(message)
                if isinstance(outcome, DiskFullError):
                    raise outcome
                yield index, outcome

    def map(
        self,
        function: Callable[[_Item], _Result],
        items: Sequence[_Item],
        names: Sequence[str],
        files: Iterable[Path],
        memory: Callable[[_Item], int] | None = None,
        progress: Progress | None = None,
    ) -> list[_Result | MedsegError]:
        """Apply a function to each item; an item that fails does not stop the others.

        Args:
            function: As for `outcomes`, like the other arguments, and with the same errors.
            items: Arguments.
            names: Name of each item.
            files: The files that are read.
            memory: Estimates the bytes that an item needs.
            progress: Called after each item with (done, total, name).

        Returns:
            One outcome per item, in the order of the items.

        >>> CaseExecutor().map(len, ["ab", "c"], ["first", "second"], files=[])
        [2, 1]
        """
        found: dict[int, _Result | MedsegError] = {}
        with closing(self.outcomes(function, items, names, files, memory)) as outcomes:
            for index, outcome in outcomes:
                found[index] = outcome
                if progress is not None:
                    progress(len(found), len(items), names[index])
        return [found[index] for index in range(len(items))]


THIS_PROCESS = CaseExecutor()
"""This process alone."""


@dataclass(frozen=True)
class _OutcomeOnWorker(Generic[_Item, _Result]):
    """The task of a worker, which returns the result or the error of an item, and the warnings that occurred."""

    function: Callable[[_Item], _Result]

    def __call__(self, numbered: tuple[int, tuple[str, _Item]]) -> tuple[_Result | MedsegError, list[str]]:
        _, (name, item) = numbered
        with collected_warnings() as messages:
            return outcome_of(self.function, item, name), messages
