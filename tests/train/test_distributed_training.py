"""Two processes that train as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.runtime.launch import is_main_process, process_count, processes_per_machine
from medseg.train.reporting import read_metrics

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


def two_processes(experiment, config: Path, run: Path) -> str:
    """Train with the command in two processes and return their output."""
    config.write_text(experiment.to_yaml())
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
    done = subprocess.run(
        [sys.executable, *launch, "medseg", "train", str(config), "--run", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def together(make_experiment, workplace, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes, started by the command, and their output."""
    run = workplace / "together"
    experiment = make_experiment(*OPTIONS, "train.batch_size=1")
    return run, two_processes(experiment, tmp_path_factory.mktemp("together") / "toy.yaml", run)


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


def test_two_processes_have_the_losses_of_one_for_a_mask_transformer(workplace, tmp_path):
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
    two_processes(Experiment.parse(values), tmp_path / "toy.yaml", run)
    values["train"]["batch_size"] = 4
    list(Experiment.parse(values).trainer(alone))
    ones, twos = (read_metrics(path / "metrics.jsonl") for path in (alone, run))
    assert len(twos) == 6
    for one, two in zip(ones, twos, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_two_processes_thaw_a_frozen_part_like_one(make_experiment, workplace, tmp_path):
    frozen = (
        "train.freeze=[encoder.0]",
        "train.freeze_steps=2",
        "train.gradient_accumulation=2",
        "train.ema_decay=null",
    )
    options = (*OPTIONS, *frozen, "train.steps=4", "train.report_every=1", "train.validation_batches=0")
    run, alone = workplace / "two_thaw", workplace / "one_thaws"
    two_processes(make_experiment(*options, "train.batch_size=1"), tmp_path / "toy.yaml", run)
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
