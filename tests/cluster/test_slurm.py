"""The jobs that dask-jobqueue would submit to SLURM; none was at hand, so the job script is compared with a stored one."""

from __future__ import annotations

import re

import pytest

from medseg.cluster.dask_cluster import slurm_cluster
from medseg.cluster.slurm import SlurmJobs, read_cluster_file
from medseg.errors import ConfigError
from tests.helpers.paths import ROOT

JOB_SCRIPT = """\
#!/usr/bin/env bash

#SBATCH -J medseg
#SBATCH -p gpu
#SBATCH -A my_project
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=30G
#SBATCH -t 12:00:00
#SBATCH --gres=gpu:1
module load cuda
python -m distributed.cli.dask_worker tcp://127.0.0.1:PORT --name dummy-name --nthreads 1 --memory-limit 29.80GiB --nanny --death-timeout 300 --memory-limit 0 --interface lo
"""


@pytest.mark.slow
def test_the_job_script_is_the_stored_one():
    pytest.importorskip("dask_jobqueue", reason="the extra medseg[cluster] is not installed")
    example = read_cluster_file(ROOT / "configs" / "slurm" / "cluster.yaml")
    more = {"account": "my_project", "prologue": ("module load cuda",), "interface": "lo", "python": "python"}
    cluster = slurm_cluster(example.replace(**more), start=False)
    try:
        script = re.sub(r"(?<=127\.0\.0\.1:)\d+", "PORT", cluster.job_script())
    finally:
        cluster.close()
    assert script.strip() == JOB_SCRIPT.strip()


def test_all_cores_of_a_job_belong_to_one_case():
    options = SlurmJobs(jobs=2, cores=16, memory="64GB").job_options()
    assert (options["cores"], options["processes"], options["job_cpu"]) == (1, 1, 16)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slurm: {jobs: 2, cores: 8}", "slurm.memory"),
        ("slurm: {jobs: 0, cores: 8, memory: 32GB}", "slurm.jobs"),
        ("slurm: {jobs: 2, cores: 8, memory: 32GB, partition: gpu}", "slurm.partition: unknown key"),
        ("pbs: {jobs: 2}", "pbs: unknown key"),
        ("slurm: [", "cluster.yaml"),
    ],
)
def test_a_wrong_description_is_refused(text, expected, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read_cluster_file(path)
