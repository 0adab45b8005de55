"""Two processes that train as one."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg.errors import ConfigError, ResourceError
from medseg.experiment.experiment import Experiment
from medseg.runtime.launch import is_main_process, process_count, processes_per_machine
from medseg.train.distributed_training import Distributed, lost_ranks_explained
from medseg.train.reports.reporting import read_metrics
from medseg.train.settings import TrainSettings
from tests.helpers.children import start_program

pytestmark = pytest.mark.slow

OPTIONS = (
    *("model.dropout=0", "train.precision=float32", "train.steps=20", "train.report_every=10"),
    *(
        "train.validate_every=10",
        "train.validation_batches=2",
        "train.ema_decay=0.9",
        "train.batch_dice=true",
    ),
)


@pytest.fixture(scope="module")
def together(make_experiment, workplace, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes, started by torchrun, and their output."""
    config, run = tmp_path_factory.mktemp("together") / "toy.yaml", workplace / "together"
    config.write_text(make_experiment(*OPTIONS, "train.batch_size=1").to_yaml())
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = start_program(*torchrun, "medseg", "train", config, "--run", run, env=environment)
    printed, errors = done.communicate(300)
    assert done.returncode == 0, errors
    return run, printed


@pytest.fixture
def train_in_two(run_ranks, tmp_path):
    """Function that trains an experiment with the command in two processes."""

    def train(experiment: Experiment, run: Path) -> None:
        (tmp_path / "toy.yaml").write_text(experiment.to_yaml())
        run_ranks("-m", "medseg", "train", str(tmp_path / "toy.yaml"), "--run", str(run))

    return train


def test_two_processes_equal_one_with_twice_the_batch(make_experiment, workplace, together):
    run, _ = together
    alone = workplace / "alone"
    list(make_experiment(*OPTIONS, "train.batch_size=2").trainer(alone))
    for folder in ("model", "best"):
        one, two = (load_file(path / folder / "model.safetensors") for path in (alone, run))
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    rows = [read_metrics(path / "metrics.jsonl") for path in (alone, run)]
    assert [row["step"] for row in rows[1]] == [10, 20]
    for one_row, two_row in zip(*rows, strict=True):
        assert two_row["loss"] == pytest.approx(one_row["loss"], abs=1e-4)
        assert two_row["lr"] == one_row["lr"]
        assert two_row["val_dice"] == pytest.approx(one_row["val_dice"], abs=1e-3, nan_ok=True)
        assert two_row["samples_per_second"] == pytest.approx(2 / two_row["seconds_per_step"])


def test_two_processes_have_the_losses_of_one_for_a_mask_transformer(workplace, train_in_two):
    """The numbers of regions differ and there are batch norms, so means and statistics of each process alone would differ."""
    width = {"depths": [1, 1, 1, 1], "widths": [8, 16, 32, 64], "stem_channels": 8}
    decoder = {
        "hidden_channels": 64,
        "num_queries": 7,
        "decoder_layers": 2,
        "decoder_width": 16,
        "attention_heads": 2,
    }
    options = {**width, **decoder, "dropout": 0.0}
    values = {
        "name": "toy",
        "data": {"path": str(workplace / "data"), "folds": 2},
        "model": {"name": "maskformer_resnet_18", **options},
        "patch": {"size": [48, 48]},
        "slices": {"channels": "repeat"},
        "train": {"steps": 6, "report_every": 1, "validation_batches": 0, "precision": "float32"},
    }
    run, alone = workplace / "two_of_maskformer", workplace / "one_of_maskformer"
    values["train"]["optimizer"] = {"name": "adamw", "lr": 1e-4}
    values["train"]["batch_size"] = 2
    train_in_two(Experiment.parse(values), run)
    values["train"]["batch_size"] = 4
    list(Experiment.parse(values).trainer(alone))
    ones, twos = (read_metrics(path / "metrics.jsonl") for path in (alone, run))
    assert len(twos) == 6
    for one, two in zip(ones, twos, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_two_processes_thaw_a_frozen_part_like_one(make_experiment, workplace, train_in_two):
    frozen = (
        "train.freeze=[encoder.0]",
        "train.freeze_steps=2",
        "train.gradient_accumulation=2",
        "train.ema_decay=null",
    )
    options = (*OPTIONS, *frozen, "train.steps=4", "train.report_every=1", "train.validation_batches=0")
    run, alone = workplace / "two_thaw", workplace / "one_thaws"
    train_in_two(make_experiment(*options, "train.batch_size=1"), run)
    list(make_experiment(*options, "train.batch_size=2").trainer(alone))
    ones, twos = (read_metrics(path / "metrics.jsonl") for path in (alone, run))
    assert [row["loss"] for row in twos] == pytest.approx([row["loss"] for row in ones], abs=1e-4)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (alone, run))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


def test_only_the_main_process_writes_and_prints(together):
    run, output = together
    assert len(list(run.glob("events*"))) == 1
    assert not (run / "lock").exists()
    for text in ("Trainer(unet_3d", "batch 1 x 2", "step 10/20", "step 20/20", f"model: {run / 'model'}"):
        assert output.count(text) == 1
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_a_run_is_resumed_only_with_the_same_number_of_processes(together):
    run, _ = together
    with pytest.raises(ConfigError, match="found a training of 2 processes, expected 1 as started now"):
        Experiment.from_run(run).trainer(run, resume=True)


def test_variables_of_torchrun_are_read(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some schedulers set for programs that do not ask
    assert (process_count(), is_main_process()) == (1, True)
    monkeypatch.setenv("RANK", "2")
    assert (process_count(), processes_per_machine(), is_main_process()) == (4, 4, False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (processes_per_machine(), is_main_process()) == (2, False)
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()


BROKEN_STEP = """
import json, sys, torch
from medseg.experiment.experiment import Experiment
from medseg.train.trainer import Trainer

plain = Trainer._train_step

def state(trainer):
    momentum = [one["momentum_buffer"] for one in trainer._optimizer.state.values()]
    models = (trainer.model.state_dict(), trainer._ema.model.state_dict())
    return [tensor.clone() for tensor in (*momentum, *models[0].values(), *models[1].values())]

def step(self, batches):
    before, broken = state(self), self.step == 2
    if broken and self.distributed.rank == 1:
        batches[-1]["image"][0, 0, 0] = float("nan")
    loss = plain(self, batches)
    after = state(self)
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    found = {"step": self.step, "same": same, "finite": bool(torch.isfinite(loss))}
    open(f"{sys.argv[2]}.{self.distributed.rank}", "a").write(json.dumps(found) + "\\n")
    return loss

Trainer._train_step = step
list(Experiment.load(sys.argv[1]).trainer(sys.argv[2]))
"""


def test_a_broken_image_of_one_process_skips_the_step_of_all(make_experiment, workplace, run_ranks, tmp_path):
    """With batch norms and accumulated gradients, in which only the last image of one process is broken."""
    config, program, run = tmp_path / "toy.yaml", tmp_path / "broken.py", workplace / "broken"
    recipe = ("train.gradient_accumulation=2", "model.norm=batch", "train.steps=4", "train.batch_size=1")
    config.write_text(make_experiment(*OPTIONS, *recipe).to_yaml())
    program.write_text(BROKEN_STEP)
    run_ranks(str(program), str(config), str(run))
    for rank in range(2):
        rows = [json.loads(line) for line in Path(f"{run}.{rank}").read_text().splitlines()]
        assert rows == [{"step": number, "same": number == 2, "finite": number != 2} for number in range(4)]


WAITING = """
import time
from datetime import timedelta
from torch.distributed import distributed_c10d
from medseg.train.distributed_training import Distributed
from medseg.train.settings import TrainSettings

processes = Distributed(TrainSettings(), 3)
# Shorter than the wait, as the usual minutes are shorter than a preparation of hours; but only once the processes have met.
distributed_c10d._set_pg_timeout(timedelta(seconds=5))

def prepare():
    time.sleep(7)
    return "prepared"

print("received", processes.broadcast(prepare))
with processes.main_first():
    print("entered", processes.rank, flush=True)
print("largest", processes.max(processes.rank, 0.5), flush=True)
with processes.main_first():
    if processes.is_main:
        raise OSError("the disk is full")
    print("repeated", flush=True)
"""


def test_processes_wait_for_the_main_process_however_long_but_not_after_its_error(run_ranks, tmp_path):
    """They neither give up after the timeout of a step, nor repeat what has failed in the main process."""
    (tmp_path / "waiting.py").write_text(WAITING)
    done = run_ranks(str(tmp_path / "waiting.py"), code=1)
    assert done.stdout.count("received prepared") == 2
    assert done.stdout.index("entered 0") < done.stdout.index("entered 1")
    assert done.stdout.count("[1.0, 0.5]") == 2
    assert "the disk is full" in done.stderr
    assert "repeated" not in done.stdout


GATHERING = """
import sys
from medseg.errors import DataError
from medseg.train.distributed_training import Distributed
from medseg.train.settings import TrainSettings

processes = Distributed(TrainSettings(), 3)

def fail():
    if processes.rank == 1:
        raise DataError("case b: found a fault.")
    return "a"

sys.stdout.write(f"gathered {processes.gather(lambda: processes.rank * 10)}\\n")
try:
    processes.gather(fail)
except DataError as error:
    sys.stdout.write(f"raised {processes.rank} {error}\\n")
"""


def test_an_error_of_one_process_is_raised_by_all(run_ranks, tmp_path):
    (tmp_path / "gathering.py").write_text(GATHERING)
    done = run_ranks(str(tmp_path / "gathering.py"))
    assert done.stdout.count("gathered [0, 10]") == 2
    for rank in (0, 1):
        assert f"raised {rank} case b: found a fault." in done.stdout


def test_processes_share_the_preparation(make_experiment, workplace, run_ranks, tmp_path):
    """Each prepares a part of the cases, and a case that fails in one of them ends all with its name."""
    config, data = tmp_path / "toy.yaml", tmp_path / "data"
    shutil.copytree(workplace / "data", data)
    options = (
        "train.steps=1",
        "train.report_every=1",
        "train.validation_batches=0",
        "preprocess.normalize=zscore",
    )
    options = (*options, f"data.path={data}")
    config.write_text(make_experiment(*options).to_yaml())
    program = tmp_path / "program.py"
    program.write_text(PREPARING)
    run_ranks(str(program), str(config), str(tmp_path / "run"))
    writers = [line.split() for line in Path(f"{tmp_path / 'run'}.log").read_text().splitlines()]
    assert {rank for rank, _ in writers} == {"0", "1"}
    cases = sorted(case for _, case in writers)
    assert cases == sorted({path.name.rpartition("-")[0] for path in (tmp_path / ".prepared").glob("*-*")})

    shutil.rmtree(tmp_path / ".prepared")
    broken = sorted((data / "labelsTr").iterdir())[-1]
    broken.write_bytes(b"no image")
    failed = run_ranks(str(program), str(config), str(tmp_path / "other"), code=1)
    for rank in (0, 1):
        assert f"[rank{rank}]: medseg.errors.CasesFailedError" in failed.stderr
        assert f"[rank{rank}]:   {broken}" in failed.stderr
    assert len(list((tmp_path / ".prepared").glob("*-*"))) == len(cases) - 1


PREPARING = """
import sys
from medseg.data.patches import prepare_cases
from medseg.experiment.experiment import Experiment
from medseg.runtime.launch import process_rank

plain = prepare_cases.CaseStore._write

def write(store, target, case, states):
    open(sys.argv[2] + ".log", "a").write(f"{process_rank()} {case.id}\\n")
    plain(store, target, case, states)

prepare_cases.CaseStore._write = write
list(Experiment.load(sys.argv[1]).trainer(sys.argv[2]))
"""


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_float32_is_exact_unless_tf32_is_named(monkeypatch, precision, deterministic):
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    for flag in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        processes = Distributed(TrainSettings(precision=precision, deterministic=deterministic), 3)
        assert processes.precision == precision
        assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_advice_on_tensor_cores_does_not_reach_the_terminal(monkeypatch):
    from lightning_fabric.accelerators import cuda

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    seen: list[str] = []
    monkeypatch.setattr(cuda, "_is_ampere_or_later", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    handler, logger = Records(), logging.getLogger("lightning_fabric")
    logger.addHandler(handler)
    try:
        logger.setLevel(logging.INFO)
        cuda._check_cuda_matmul_precision.cache_clear()
        cuda._check_cuda_matmul_precision(torch.device("cuda"))
        assert len(seen) == 1  # as Fabric does by itself
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: False)
            Distributed(TrainSettings(), 3)
        cuda._check_cuda_matmul_precision.cache_clear()
        cuda._check_cuda_matmul_precision(torch.device("cuda"))
        assert len(seen) == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:60645."),
        torch.distributed.DistBackendError("NCCL error in: unhandled system error"),
        torch.distributed.DistNetworkError("The client socket has timed out"),
    ],
)
def test_the_loss_of_another_process_is_a_message(error: Exception) -> None:
    with (
        pytest.raises(
            ResourceError, match=r"process 0 lost its connection to another one.*free memory"
        ) as caught,
        lost_ranks_explained(),
    ):
        raise error
    assert caught.value.exit_code == 4


def test_other_errors_are_not_taken_for_the_loss_of_a_process() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), lost_ranks_explained():
        raise RuntimeError("shapes do not match")
