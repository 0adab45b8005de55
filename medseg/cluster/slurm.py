"""Settings of a SLURM cluster whose jobs run Dask workers, read from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from medseg.config import Config


class SlurmJobs(Config):
    """Jobs that run one Dask worker each; they are submitted by dask-jobqueue.

    Attributes:
        jobs: Number of jobs, each of which works on one case at a time.
        cores: Cores of a job (``--cpus-per-task``).
        memory: Memory of a job, such as ``32GB`` (``--mem``).
        walltime: Time limit of a job, such as ``"12:00:00"`` (``--time``). Write quotes around it, because YAML reads it as a
            number otherwise.
        queue: Partition to submit to (``--partition``); None for the default one.
        account: Account to charge (``--account``); None for the default one.
        directives: Further lines of ``#SBATCH``, such as ``--gres=gpu:1``.
        prologue: Lines of the job script before the worker starts, such as ``module load cuda`` or the activation of an
            environment.
        interface: Network interface that workers and scheduler reach each other by, such as ``ib0``; None for the default
            one.
        log_directory: Folder of the jobs' output; None for the current one.
        local_directory: Folder for temporary files of Dask on the nodes; None for the default one.
        python: Interpreter of the workers; None for the one of this process.
        start_seconds: Seconds that a worker waits for the scheduler before it gives up.
    """

    jobs: Annotated[int, Field(ge=1)]
    cores: Annotated[int, Field(ge=1)]
    memory: str
    walltime: str = "12:00:00"
    queue: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    log_directory: str | None = None
    local_directory: str | None = None
    python: str | None = None
    start_seconds: Annotated[int, Field(ge=1)] = 300

    def job_options(self) -> dict[str, Any]:
        """Return the options of ``dask_jobqueue.SLURMCluster`` for these jobs.

        Dask would work on as many cases at once as a worker has cores. A worker therefore has one for Dask, and all cores of
        the job for the network. SLURM itself limits the memory of a job; Dask would stop workers by its own estimate.
        """
        return {
            "cores": 1,
            "processes": 1,
            "job_cpu": self.cores,
            "memory": self.memory,
            "walltime": self.walltime,
            "queue": self.queue,
            "account": self.account,
            "job_extra_directives": list(self.directives),
            "job_script_prologue": list(self.prologue),
            "interface": self.interface,
            "log_directory": self.log_directory,
            "local_directory": self.local_directory,
            "python": self.python,
            "worker_extra_args": ["--memory-limit", "0"],
            "death_timeout": self.start_seconds,
            "job_name": "medseg",
        }


class ClusterFile(Config):
    """A file that describes a cluster.

    Attributes:
        slurm: Jobs of SLURM.
    """

    slurm: SlurmJobs


def read_cluster_file(path: Path) -> SlurmJobs:
    """Read the description of a cluster.

    Args:
        path: YAML file with the key ``slurm``.

    Returns:
        The jobs to submit.

    Raises:
        ConfigError: The file cannot be read, or a key is missing, unknown or of another type.
    """
    return ClusterFile.load(path).slurm
