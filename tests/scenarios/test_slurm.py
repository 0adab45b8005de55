"""The batch scripts for SLURM, run with stand-ins for SLURM's programs and for medseg."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.helpers.paths import ROOT

SCRIPTS = ROOT / "configs" / "slurm"
PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*"; fi',
    "srun": 'export SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NODEID=1; "$@"',
    "medseg": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $MASTER_PORT: $*";'
    " exit $ENDS_WITH",
}


@pytest.fixture
def submit(tmp_path):
    """Return a function that runs the script in `tmp_path` and returns its output and exit code."""
    for name, body in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    slurm = {"JOB_ID": "40001", "JOB_NODELIST": "node[7-8]", "NTASKS": "8", "NNODES": "2"}

    def run(*arguments: str, script: str = "train", ends_with: int = 0, **more: str) -> tuple[str, int]:
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "ENDS_WITH": str(ends_with),
            **{f"SLURM_{key}": value for key, value in {**slurm, **more}.items()},
        }
        done = subprocess.run(
            ["bash", str(SCRIPTS / f"{script}.sbatch"), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout, done.returncode

    return run


def test_a_new_run_starts_with_the_variables_of_torchrun(submit):
    printed, code = submit("my runs/first", "toy.yaml", "--data", "my data", "train.steps=5")
    assert (
        printed == "5 1 8 4 1 node7 20001: train toy.yaml --data my data train.steps=5 --run my runs/first\n"
    )
    assert code == 0


def test_a_stopped_run_is_requeued_and_resumed(submit, tmp_path):
    printed, code = submit("run", "toy.yaml", ends_with=143)
    assert printed.endswith("scontrol requeue 40001\n")
    assert code == 143
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert submit("run", "toy.yaml")[0].endswith(": train --resume run\n")


def test_each_job_of_an_array_trains_its_fold(submit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()  # that of all folds, written by the first
    printed, code = submit("run", "toy.yaml", "--data", "data", ends_with=143, ARRAY_TASK_ID="3")
    assert ": train toy.yaml --data data --run run --fold 3\n" in printed
    assert printed.endswith("scontrol requeue 40001\n")
    assert code == 143


@pytest.mark.parametrize("code", [1, 3])
def test_a_job_that_fails_is_not_requeued(submit, code):
    printed, ended = submit("run", "toy.yaml", ends_with=code)
    assert "requeue" not in printed
    assert ended == code


@pytest.mark.parametrize(
    ("job", "part"),
    [
        ({"TASK_ID": "3", "TASK_MIN": "1", "TASK_STEP": "1", "TASK_COUNT": "16"}, "3/16"),
        ({"TASK_ID": "0", "TASK_MIN": "0", "TASK_STEP": "1", "TASK_COUNT": "4"}, "1/4"),
        ({"TASK_ID": "14", "TASK_MIN": "2", "TASK_STEP": "4", "TASK_COUNT": "4"}, "4/4"),
        ({"TASK_ID": "7", "TASK_MIN": "3", "TASK_STEP": "1", "TASK_COUNT": "2"}, None),  # only jobs 3 and 7
        ({}, None),
    ],
)
def test_each_job_of_an_array_predicts_its_part(submit, job, part):
    array = {f"ARRAY_{name}": value for name, value in job.items()}
    printed, code = submit("my model", "cases.tsv", "-o", "out", script="predict", ends_with=2, **array)
    expected = "predict my model cases.tsv -o out --skip-existing"
    assert printed.partition(": ")[2] == expected + (f" --part {part}\n" if part else "\n")
    assert code == 2
