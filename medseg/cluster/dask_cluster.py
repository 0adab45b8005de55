"""Connections to Dask: processes of this machine, a running scheduler, or jobs of SLURM.

One task is one item of work. Workers that end unexpectedly are replaced, and their tasks are tried again.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cluster.slurm import SlurmJobs, read_cluster_file
from medseg.errors import ConfigError, ResourceError
from medseg.runtime.process_map import interrupts_held

if TYPE_CHECKING:
    from distributed import Client

RETRIES = 2
"""How often the task of a lost worker is tried again before it counts as failed."""
# Dask's web page gets any free port of this machine: by default it would listen to other machines, on a port of which a second
# cluster complains.
_DASHBOARD = "127.0.0.1:0"
_LOCAL = re.compile(r"local:(\d{1,4})")
_ADDRESS = re.compile(r"[a-z]+://.+")
_SETTINGS = {
    "distributed.scheduler.allowed-failures": RETRIES,
    # A task waits at the scheduler until a worker is free, so that the end of a worker concerns one task only.
    "distributed.scheduler.worker-saturation": 1.0,
    # Until then, a worker that ended may start again; importing torch takes long on a busy machine.
    "distributed.deploy.lost-worker-timeout": "60s",
    # Dask would stop or kill workers by its own estimate of their memory; medseg has limits of its own.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
_OPEN: dict[str, Client] = {}
"""The connections of this process by the descriptions of their clusters."""


def check_cluster(text: str) -> None:
    """Raise unless a cluster is described in a way that `connected` understands.

    Args:
        text: As for `connected`.

    Raises:
        ConfigError: It is neither of these, a package is missing, or the file is not valid.
    """
    if _LOCAL.fullmatch(text) or _ADDRESS.fullmatch(text):
        _library("distributed")
        if text == "local:0":
            raise ConfigError("cluster: found local:0, expected at least one worker. Give local:N.")
        return
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"cluster: found {text!r}, expected local:N for N processes of this machine, the address of a Dask scheduler such as "
            "tcp://host:8786, or a YAML file that describes jobs of SLURM. Correct it."
        )
    read_cluster_file(path)
    _library("dask_jobqueue")


@contextmanager
def connected(text: str) -> Iterator[Client]:
    """Connect to a cluster, which is started and ended if it is not a running one.

    Within the context of a connection, connecting to the same cluster again returns that connection.

    Args:
        text: ``local:N`` for N processes of this machine; the address of a scheduler, such as ``tcp://host:8786``; or a YAML
            file that describes jobs of SLURM, see `SlurmJobs`.

    Yields:
        The connection.

    Raises:
        ConfigError: As for `check_cluster`.
        ResourceError: The cluster cannot be started, or the scheduler cannot be reached.
    """
    if text in _OPEN:
        yield _OPEN[text]
        return
    check_cluster(text)
    dask, distributed = _library("dask"), _library("distributed")
    local = _LOCAL.fullmatch(text)
    with dask.config.set(_SETTINGS), _silent_client():
        try:
            if _ADDRESS.fullmatch(text):
                client = distributed.Client(text)
            elif local is not None:
                client = distributed.Client(_local_cluster(int(local[1])))
            else:
                client = distributed.Client(slurm_cluster(read_cluster_file(Path(text)), start=True))
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"cluster {text}: cannot be reached or started ({error}). Check the address or the file, and that it runs."
            ) from None
        cluster = client.cluster
        _OPEN[text] = client
        try:
            yield client
        finally:
            del _OPEN[text]
            client.close(timeout=10)
            if cluster is not None:
                cluster.close(timeout=30)


@contextmanager
def _silent_client() -> Iterator[None]:
    """Return a context in which Dask does not print tracebacks of a lost connection, which is an error of its own."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _local_cluster(workers: int) -> Any:
    # Workers leave Ctrl-C to this process, also those that are started later by Dask's own thread, which begins here. The
    # tracker of multiprocessing runs before, because its start would let Ctrl-C through again.
    resource_tracker.ensure_running()
    with interrupts_held():
        return _library("distributed").LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=None,
            dashboard_address=_DASHBOARD,
            silence_logs=logging.CRITICAL,
        )


def slurm_cluster(jobs: SlurmJobs, *, start: bool) -> Any:
    """Return a cluster of SLURM jobs.

    Args:
        jobs: The jobs.
        start: Submit them.

    Returns:
        The cluster of dask-jobqueue; its method ``job_script`` returns what is submitted.
    """
    return _library("dask_jobqueue").SLURMCluster(
        n_workers=jobs.jobs if start else 0,
        scheduler_options={"dashboard_address": _DASHBOARD},
        **jobs.job_options(),
    )


def workers_per_host(client: Client) -> int:
    """Return the largest number of workers that share a machine; 1 if there is none yet.

    Args:
        client: The connection.

    Returns:
        Number of workers.
    """
    hosts = [str(worker["host"]) for worker in client.scheduler_info()["workers"].values()]
    return max((hosts.count(host) for host in hosts), default=1)


def _library(name: str) -> Any:
    """Import a library of the extra ``cluster``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"cluster: found no {name}, expected this package for clusters. Install it: pip install 'medseg[cluster]'."
        ) from None
