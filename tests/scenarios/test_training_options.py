"""Options of training, in trainings of a few steps."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.cli.main import main
from medseg.errors import ConfigError, ModelError
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder
from medseg.train.checkpoint import load_checkpoint, save_checkpoint
from medseg.train.reports.reporting import read_metrics
from medseg.train.trainer import Diverged, Trainer

pytestmark = pytest.mark.slow


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


PLAIN = ("train.precision=float32", "model.dropout=0")


def test_accumulated_batches_are_one_large_batch(make_experiment, workplace):
    runs = {}
    for name, size, parts in (("large", 4, 1), ("accumulated", 1, 4), ("smaller", 1, 1)):
        runs[name] = workplace / f"batch_{name}"
        options = (f"train.batch_size={size}", f"train.gradient_accumulation={parts}", "train.steps=6")
        reports = list(make_experiment(*PLAIN, *options).trainer(runs[name]))
        assert reports[-1].samples_per_second == pytest.approx(size * parts / reports[-1].seconds_per_step)
    large, accumulated, smaller = (weights_of(run / "model") for run in runs.values())
    assert largest_difference(large, accumulated) < 1e-6
    assert largest_difference(large, smaller) > 1e-4
    losses = [[row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in runs.values()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_one_bad_batch_of_a_step_leaves_the_weights(make_experiment, workplace, monkeypatch):
    experiment = make_experiment(
        "train.gradient_accumulation=2", "train.steps=2", "train.validation_batches=0"
    )
    trainer = experiment.trainer(workplace / "one bad of two")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    plain, calls = trainer.model.losses, []

    def losses(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        factor = math.nan if len(calls) % 2 == 0 else 1.0
        return {name: loss * factor for name, loss in plain(image, label).items()}

    monkeypatch.setattr(trainer.model, "losses", losses)
    list(trainer)
    assert len(calls) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_dropout_differs_between_the_batches_of_a_step(make_experiment, workplace, monkeypatch):
    seeds = []
    plain = torch.manual_seed
    trainer = make_experiment(
        "train.gradient_accumulation=3", "train.steps=2", "train.validation_batches=0"
    ).trainer(workplace / "seeds")
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    list(trainer)
    assert len(set(seeds)) == len(seeds) == 6


def test_the_averaged_weights_are_validated_and_exported(make_experiment, workplace, monkeypatch):
    judged = []
    run = workplace / "averaged"
    experiment = make_experiment(
        "train.ema_decay=0.5", "train.steps=4", "train.save_every=1", "train.validate_every=4"
    )
    trainer = experiment.trainer(run)
    expected = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    def judge(model: object, *rest: object) -> dict[str, float]:
        judged.append(model)
        return {"liver": 0.5}

    monkeypatch.setattr("medseg.train.trainer.validate", judge)
    for number, _ in enumerate(trainer):
        decay = min(0.5, (1 + number) / (10 + number))
        for name, tensor in trainer.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert judged == [trainer.evaluated_model]
    assert trainer.evaluated_model is not trainer.model
    exported, raw = weights_of(run / "model"), load_checkpoint(run / "last")[0]
    assert largest_difference(exported, expected) < 1e-5
    assert largest_difference(exported, weights_of(run / "best")) == 0
    assert largest_difference(exported, raw) > 1e-4
    assert largest_difference(raw, trainer.model.state_dict()) == 0


def test_training_stops_when_patience_runs_out(make_experiment, workplace, monkeypatch):
    dice = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr("medseg.train.trainer.validate", lambda *_: {"liver": next(dice)})
    run = workplace / "impatient"
    experiment = make_experiment(
        "train.early_stopping_patience=2", "train.steps=12", "train.validate_every=1"
    )
    reports = list(experiment.trainer(run))
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert (run / "model").is_dir()
    assert "steps: 4" in (run / "model" / "config.yaml").read_text()
    before = digest(run)
    assert list(experiment.trainer(run, resume=True)) == []
    assert digest(run) == before


def test_patience_counts_across_an_interruption(make_experiment, workplace, monkeypatch):
    values = [0.3, 0.1, 0.2, 0.1, 0.1, 0.1]
    dice = iter(values)
    monkeypatch.setattr("medseg.train.trainer.validate", lambda *_: {"liver": next(dice)})
    experiment = make_experiment(
        "train.early_stopping_patience=3", "train.steps=12", "train.validate_every=1", "train.save_every=1"
    )
    run = workplace / "patience resumed"
    for report in experiment.trainer(run):
        if report.step == 2:
            break
    assert [report.step for report in experiment.trainer(run, resume=True)] == [3, 4]


class Clock:
    """A clock that advances only by work: 0.1 s per step, 1 s per validation, 0.5 s per checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        trainer = "medseg.train.trainer"
        monkeypatch.setattr(f"{trainer}.time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(Trainer, "_gradients", lambda *_: self.passes(0.1, torch.tensor(1.0)))
        monkeypatch.setattr(f"{trainer}.validate", lambda *_: self.passes(1.0, {"liver": 0.5}))

        def save(*values: object) -> None:
            self.passes(0.5, None)
            save_checkpoint(*values)

        monkeypatch.setattr(f"{trainer}.save_checkpoint", save)

    def passes(self, seconds: float, result: object) -> object:
        self.now += seconds
        return result


BUDGET = ("train.max_time=20s", "train.steps=null", "train.validate_every=50", "train.save_every=50")
BUDGET = (*BUDGET, "train.report_every=50", "train.batch_size=1")


def test_a_budget_ends_a_training_in_time(make_experiment, workplace, monkeypatch):
    clock = Clock(monkeypatch)
    run = workplace / "budget"
    trainer = make_experiment(*BUDGET).trainer(run)
    assert "step 0 of 20s, batch 1" in repr(trainer)
    assert trainer.steps is None
    assert trainer.step_seconds is None
    assert trainer.estimate is not None
    assert trainer.estimate.steps > 1000  # of a toy network, on a nominal processor
    reports = list(trainer)
    assert clock.now - 100 == pytest.approx(20, rel=0.05)
    assert trainer.step_seconds == pytest.approx(0.1)
    # 0.1 s a step, 1.5 s for each 50 of them and the end
    assert 150 <= reports[-1].step <= 165
    assert reports[-1].steps == reports[-1].step == trainer.step
    assert reports[-1].lr < 0.0005
    assert [row["seconds"] for row in read_metrics(run / "metrics.jsonl")] == [r.seconds for r in reports]
    assert f"steps: {trainer.step}" in (run / "model" / "config.yaml").read_text()


def test_a_resumed_run_has_the_remaining_time_of_its_budget(make_experiment, workplace, monkeypatch):
    clock = Clock(monkeypatch)
    experiment = make_experiment(*BUDGET)
    run = workplace / "budget resumed"
    for report in experiment.trainer(run):
        if report.step == 100:
            break
    spent = clock.now - 100
    clock.now += 1000  # a night between the two
    trainer = experiment.trainer(run, resume=True)
    assert trainer.seconds == pytest.approx(spent)
    assert trainer.steps is not None
    list(trainer)
    assert clock.now - 1100 == pytest.approx(20, rel=0.05)


def test_a_training_says_what_fits_into_its_time_before_and_after_the_first_steps(
    make_experiment, workplace, tmp_path, capsys
):
    config, run = tmp_path / "toy.yaml", workplace / "told"
    config.write_text(make_experiment("train.steps=30", "train.max_time=1s").to_yaml())
    assert main(["train", str(config), "--run", str(run)]) == 0
    captured = capsys.readouterr()
    assert f"{run}: expected: about " in captured.out
    assert "on 1 core of 40 GFLOP/s; about " in captured.out
    measured = [line for line in (captured.out + captured.err).splitlines() if "measured: " in line]
    assert len(measured) == 1
    assert "fit into train.max_time=1s" in measured[0]
    assert main(["train", "--resume", str(run)]) == 0
    assert "expected: about" not in capsys.readouterr().out


def test_a_finished_run_is_extended_by_steps(make_experiment, workplace, tmp_path, capsys):
    config, run = tmp_path / "toy.yaml", workplace / "extended"
    config.write_text(make_experiment("train.steps=4", "train.optimizer.schedule=cosine").to_yaml())
    assert main(["train", str(config), "--run", str(run)]) == 0
    first = digest(run)
    assert main(["train", "--resume", str(run), "--extend", "40"]) == 0
    assert "step 4 of 44" in capsys.readouterr().out
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 45))  # the history stays
    rates = [row["lr"] for row in rows[4:]]
    straight = [0.005 * (1 + math.cos(math.pi * step / 44)) for step in range(4, 44)]
    assert rates == pytest.approx([straight[0] / 2, *straight[1:]])  # a twentieth of 40 steps to rise in
    assert digest(run) != first
    assert "steps: 44" in (run / "model" / "config.yaml").read_text()
    assert RunFolder(run).read_record().extended_at == (4,)


def test_an_interrupted_extension_is_resumed_bit_equal(make_experiment, workplace):
    experiment = make_experiment("train.steps=3", "train.ema_decay=0.9")
    whole, broken = workplace / "extended whole", workplace / "extended broken"
    for run in (whole, broken):
        list(experiment.trainer(run))
    finished = digest(broken)
    list(experiment.trainer(whole, resume=True, extend="5"))
    for stop in (3, 6):  # before the first checkpoint of the extension, and after one
        trainer = Experiment.from_run(broken).trainer(broken, resume=True, extend="5" if stop == 3 else None)
        for report in trainer:
            if report.step > stop:
                break
    assert digest(broken) == finished  # until the new one is whole
    with pytest.raises(ConfigError, match="found a training that is not finished"):
        Experiment.from_run(broken).trainer(broken, resume=True, extend="5")
    list(Experiment.from_run(broken).trainer(broken, resume=True))
    assert digest(broken) == digest(whole) != finished


def test_a_run_is_extended_by_time(make_experiment, workplace, monkeypatch):
    clock = Clock(monkeypatch)
    run = workplace / "extended by time"
    list(make_experiment("train.steps=50", *BUDGET[2:]).trainer(run))
    spent = clock.now - 100
    trainer = Experiment.from_run(run).trainer(run, resume=True, extend="20s")
    assert trainer.settings.steps is None
    list(trainer)
    assert clock.now - 100 == pytest.approx(spent + 20, rel=0.05)
    assert read_metrics(run / "metrics.jsonl")[-1]["lr"] < 0.0005


def test_runs_that_cannot_be_extended_raise_clear_errors(make_experiment, workplace, tmp_path, capsys):
    experiment = make_experiment("train.steps=2")
    run = workplace / "not extended"
    for _ in experiment.trainer(run):
        break
    with pytest.raises(ConfigError, match="found a training that is not finished"):
        experiment.trainer(run, resume=True, extend="5")
    list(experiment.trainer(run, resume=True))
    before = (run / "config.yaml").read_bytes()
    for more in ("0", "-5", "many", "5d", "1.5"):
        assert main(["train", "--resume", str(run), f"--extend={more}"]) == 1
        assert f"--extend: found {more!r}, expected a number of steps" in capsys.readouterr().err
    assert main(["train", str(run / "config.yaml"), "--extend", "5"]) == 1
    assert "Give it with --resume RUN" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected resume=True"):
        experiment.trainer(workplace / "new", extend="5")
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_of_a_newer_medseg_is_refused(make_experiment, workplace):
    experiment = make_experiment("train.steps=2")
    run = workplace / "newer"
    list(experiment.trainer(run))
    weights, state = load_checkpoint(run / "last")
    save_checkpoint(run / "last", 2, weights, {**state, "format": 3})
    with pytest.raises(ModelError, match=r"state\.pt: format: found 3, expected 2, because a newer medseg"):
        experiment.trainer(run, resume=True)
    record = run / "run.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ConfigError, match=r"run\.json: format: found 2, expected 1, because a newer medseg"):
        Experiment.from_run(run)


def test_a_loss_of_nan_ends_training_with_one_message(make_experiment, workplace, monkeypatch):
    trainer = make_experiment("train.gradient_accumulation=2").trainer(workplace / "no number")
    monkeypatch.setattr(
        trainer.model, "losses", lambda image, label: {"loss": trainer.model(image).sum() * math.nan}
    )
    with pytest.raises(Diverged, match=r"^[^\n]*loss: found nan in 3 steps in a row[^\n]*Lower [^\n]*$"):
        list(trainer)
