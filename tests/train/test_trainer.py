"""The training loop: its reports and files, when it stops by itself, and that it learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import medseg
from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.patches.sampling import PatchSampler
from medseg.errors import ConfigError, DataError
from medseg.models.base import Model
from medseg.train.optimization.compile_forward import compile_forward
from medseg.train.reports.reporting import read_metrics
from medseg.train.trainer import Diverged, Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(request, workplace, tmp_path_factory):
    """A run of four steps and its reports."""
    from medseg.experiment.experiment import Experiment

    torch.set_num_threads(1)
    experiment = Experiment.parse(
        {
            "name": "finished",
            "data": {"path": str(workplace / "data"), "folds": 2},
            "model": {"name": "unet_3d", "channels": [4, 8], "num_blocks": 1},
            "patch": {"size": [16, 16, 16]},
            "train": {
                "steps": 4,
                "report_every": 2,
                "validate_every": 2,
                "validation_batches": 1,
                "save_every": 3,
            },
        }
    )
    run = workplace / "reported"
    return run, list(experiment.trainer(run))


def test_reports_follow_the_settings(finished):
    run, reports = finished
    assert [report.step for report in reports] == [2, 4]
    labels = ["liver", "spleen", "right_kidney", "left_kidney", "spine"]
    for report in reports:
        assert report.steps == 4
        assert math.isfinite(report.loss)
        assert report.lr == pytest.approx(0.01 * (1 - (report.step - 1) / 4) ** 0.9)
        assert report.samples_per_second == pytest.approx(2 / report.seconds_per_step)
        assert 0 <= report.data_wait_fraction <= 1
        assert list(report.val_dice) == labels
        assert all(math.isnan(value) or 0 <= value <= 1 for value in report.val_dice.values())
        assert f"step {report.step}/4" in str(report)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["loss"] for row in rows] == [report.loss for report in reports]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_run_folder_holds_everything(finished):
    run, _ = finished
    present = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    assert present == {
        "config.yaml",
        "run.json",
        "environment.json",
        "splits.json",
        "labels.tsv",
        "preprocessing.yaml",
        "metrics.jsonl",
        "prepared.json",
        "last",
        "best",
        "model",
    }
    assert sorted(p.name for p in (run / "last").iterdir()) == ["step-0000003", "step-0000004"]
    files = {"config.yaml", "labels.tsv", "model.safetensors", "README.md", "manifest.json"}
    assert {p.name for p in (run / "best").iterdir()} == files
    assert {p.name for p in (run / "model").iterdir()} == {*files, "reference.json"}


def test_tensorboard_holds_curves_and_images(finished):
    run, reports = finished
    board = EventAccumulator(str(run))
    board.Reload()
    losses = board.Scalars("train/loss")
    assert [event.step for event in losses] == [2, 4]
    assert [event.value for event in losses] == pytest.approx([report.loss for report in reports])
    assert {"train/lr", "time/data_wait_fraction", "validation/dice_mean", "validation/dice_liver"} <= set(
        board.Tags()["scalars"]
    )
    images = board.Images("validation/image_reference_prediction")
    assert [image.step for image in images] == [2, 4]
    assert (images[0].width, images[0].height) == (3 * 16, 2 * 16)
    assert images[0].encoded_image_string.startswith(b"\x89PNG")


def test_mean_dice_leaves_out_labels_that_do_not_occur():
    from medseg.train.reports.reporting import Report

    report = Report(1, 2, 0.5, 0.1, 1.0, 2.0, 0.0, {"a": 0.5, "b": math.nan, "c": 1.0})
    assert report.mean_dice == 0.75
    assert Report(1, 2, 0.5, 0.1, 1.0, 2.0, 0.0).mean_dice is None


def test_a_cut_off_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "absent") == []


def test_repr_describes_the_training(make_experiment, workplace):
    trainer = make_experiment("train.precision=float32").trainer(workplace / "described")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    device = trainer.fabric.device
    assert repr(trainer) == (
        f"Trainer(unet_3d, {parameters:,} parameters, step 0 of 8, batch 2, float32 on {device}, "
        "2 cases, 2 held out)"
    )


def test_a_too_high_rate_ends_with_code_3_and_keeps_finite_weights(
    make_experiment, workplace, tmp_path, capsys
):
    config = tmp_path / "toy.yaml"
    experiment = make_experiment(
        "train.steps=60", "train.save_every=1", "train.optimizer.lr=1e30", "model.norm=none"
    )
    config.write_text(experiment.to_yaml())
    run = workplace / "diverged"
    assert main(["train", str(config), "--run", str(run)]) == 3
    output = capsys.readouterr().err
    assert "expected finite numbers" in output
    assert "Lower train.optimizer.lr" in output
    assert not (run / "model").exists()
    assert not (run / "lock").exists()
    from safetensors.torch import load_file

    for path in run.glob("*/step-*/weights.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_three_losses_in_a_row_that_are_not_finite_end_it_and_one_does_not(
    make_experiment, workplace, monkeypatch
):
    plain = Trainer._train_step
    bad = {2, 4, 5}

    def step(self: Trainer, batch: object) -> torch.Tensor:
        return torch.tensor(math.nan) if self.step in bad else plain(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", step)
    reports = list(make_experiment("train.report_every=4").trainer(workplace / "hiccups"))
    assert [report.step for report in reports] == [4, 8]
    assert all(math.isfinite(report.loss) for report in reports)
    bad.add(6)
    with pytest.raises(Diverged, match="loss: found nan in 3 steps in a row by step 7"):
        list(make_experiment("train.report_every=4").trainer(workplace / "three bad"))


def test_gradients_that_are_not_finite_leave_the_weights(make_experiment, workplace):
    trainer = make_experiment("train.steps=2", "train.validation_batches=0").trainer(
        workplace / "bad gradients"
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    parameter = next(trainer.model.parameters())
    handle = parameter.register_hook(lambda gradient: gradient * math.inf)
    list(trainer)
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_an_image_that_is_not_finite_leaves_batch_norms(make_experiment, workplace, monkeypatch):
    plain = Trainer._train_step

    def step(self: Trainer, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        batches[0]["image"][0, 0, 0] = math.inf if self.step == 1 else 0
        loss = plain(self, batches)
        same = [torch.equal(tensor, before[name]) for name, tensor in self.model.state_dict().items()]
        assert all(same) if self.step == 1 else not any(same)
        return loss

    monkeypatch.setattr(Trainer, "_train_step", step)
    experiment = make_experiment("model.norm=batch", "train.steps=3", "train.validation_batches=0")
    reports = list(experiment.trainer(workplace / "bad image"))
    assert [math.isfinite(report.loss) for report in reports] == [True, False, True]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_broken_batch_of_several_changes_nothing(make_experiment, workplace, monkeypatch, name):
    """Neither weights nor statistics nor the optimiser nor the average, and training goes on."""
    plain = Trainer._train_step

    def state(trainer: Trainer) -> list[torch.Tensor]:
        optimizer = [one for state in trainer._optimizer.state.values() for one in state.values()]
        assert trainer._ema is not None
        models = (trainer.model.state_dict().values(), trainer._ema.model.state_dict().values())
        return [one.clone() for one in (*optimizer, *models[0], *models[1])]

    def step(self: Trainer, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        before = state(self)
        if self.step == 2:
            batches[1]["image"][0, 0, 0] = math.nan
        loss = plain(self, batches)
        after = state(self)
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same is (self.step == 2)
        return loss

    monkeypatch.setattr(Trainer, "_train_step", step)
    recipe = ("train.gradient_accumulation=2", "train.ema_decay=0.9", "model.norm=batch")
    experiment = make_experiment(
        *recipe, f"train.optimizer.name={name}", "train.steps=4", "train.report_every=1"
    )
    reports = list(experiment.trainer(workplace / f"broken batch {name}"))
    assert [math.isfinite(report.loss) for report in reports] == [True, True, False, True]


def test_losses_that_arrive_late_are_all_reported_and_saved(make_experiment, workplace, monkeypatch):
    """As on a CUDA device, where a loss is read one step later: the same reports, and the same end of a bad training."""
    options = ("train.steps=6", "train.report_every=3", "train.validation_batches=0", "train.save_every=4")
    expected = [report.loss for report in make_experiment(*options).trainer(workplace / "in time")]
    trainer = make_experiment(*options).trainer(workplace / "late")
    trainer._losses.lag = 1
    assert [report.loss for report in trainer] == expected
    plain = Trainer._train_step

    def step(self: Trainer, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return torch.tensor(math.nan) if self.step >= 1 else plain(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", step)
    run = workplace / "late and bad"
    trainer = make_experiment(*options, "train.report_every=6").trainer(run)
    trainer._losses.lag = 1
    with pytest.raises(Diverged, match="loss: found nan in 3 steps in a row by step 4"):
        list(trainer)
    assert not list(run.glob("last/step-*"))  # the checkpoint of step 4 waits for the loss of step 4


def test_patches_that_are_augmented_on_the_device_train_the_same_weights(make_experiment, workplace):
    """Bit for bit if the device is a processor, and whatever the number of workers."""
    options = (
        "train.steps=3",
        "augment.rotate_p=0.8",
        "augment.noise_p=0.8",
        "train.gradient_accumulation=2",
    )
    weights = []
    for where, workers in (("worker", 0), ("device", 0), ("device", 2)):
        run = workplace / f"augmented by {where} with {workers}"
        experiment = make_experiment(*options, f"augment.device={where}", f"train.workers={workers}")
        trainer = experiment.trainer(run)
        assert trainer.patches.train.augments_on_device is (where == "device")
        list(trainer)
        weights.append(load_file(run / "model" / "model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


def test_training_without_validation(make_experiment, workplace):
    run = workplace / "not validated"
    reports = list(make_experiment("train.steps=2", "train.validation_batches=0").trainer(run))
    assert [report.val_dice for report in reports] == [{}, {}]
    assert not (run / "best").exists()


def test_mistakes_are_found_before_cases_are_prepared(make_experiment, workplace):
    seen: list[object] = []
    run = workplace / "refused"
    with pytest.raises(DataError, match=r"unknown label 'lver'\. Did you mean 'liver'"):
        make_experiment("predict.keep_largest=[lver]").trainer(run, progress=lambda *case: seen.append(case))
    with pytest.raises(DataError, match="no such file or folder, expected a dataset"):
        make_experiment("data.path=/nowhere/at/all").trainer(run, progress=lambda *case: seen.append(case))
    assert seen == []
    assert not run.exists()  # so the same command works once the mistake is mended


def test_a_broken_case_leaves_no_run_folder(make_experiment, tmp_path):
    write_phantoms(tmp_path / "data", cases=4, shape=(20, 20, 18), spacing=(13, 14, 14))
    victim = tmp_path / "data" / "imagesTr" / "phantom_002.nii.gz"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    experiment = make_experiment(f"data.path={tmp_path / 'data'}", "train.steps=1")
    with pytest.raises(DataError, match=r"phantom_002\.nii\.gz: voxel data are damaged"):
        experiment.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    victim.write_bytes(content)
    assert len(list(experiment.trainer(tmp_path / "run"))) == 1


def test_file_instead_of_the_run_folder_raises(make_experiment, tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        make_experiment().trainer(tmp_path / "run")


def test_overfits_two_phantoms(make_experiment, tmp_path):
    """Ninety steps on two whole cases without augmentation reach a Dice above 0.9 on the same cases."""
    dataset = write_phantoms(tmp_path / "data", cases=4, shape=(24, 20, 18), spacing=(13, 14, 14))
    for case in dataset.cases:
        assert case.label is not None
        label = medseg.read_labels(case.label)
        wanted = (label.data == 1) + 2 * (label.data == 5).astype(np.uint8)
        medseg.write(label.with_data(wanted.astype(np.uint8)), case.label)
    off = ("rotate", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
    experiment = make_experiment(
        f"data.path={tmp_path / 'data'}", "data.labels={liver: 1, spine: 2}", "model.channels=[12, 24]",
        "model.num_blocks=1", "model.dropout=0", "patch.size=[24, 20, 18]", "augment.mirror_axes=[]", "augment.gamma_inverted_p=0",
        *(f"augment.{name}_p=0" for name in off), "train.steps=90", "train.report_every=90",
        "train.validate_every=90", "train.validation_batches=4", "train.batch_dice=true",
        "train.optimizer.name=adamw", "train.optimizer.lr=0.01",
    )  # fmt: skip
    trainer = experiment.trainer(tmp_path / "run")
    held_out = trainer.patches.validation
    assert held_out is not None
    sampler = held_out.sampler
    held_out.sampler = PatchSampler(
        trainer.patches.train.cases, sampler.size, sampler.batch_size, sampler.foreground
    )
    (report,) = list(trainer)
    assert list(report.val_dice) == ["liver", "spine"]
    assert report.mean_dice is not None
    assert report.mean_dice > 0.9, str(report)


def test_a_compiled_forward_pass_trains_the_same_weights(make_experiment, workplace, monkeypatch):
    """With the compiler's eager backend, which needs no minutes: the weights keep their names and values."""
    plain = torch.nn.Module.compile
    seen = []

    def compile_eagerly(self: torch.nn.Module, **options: object) -> None:
        seen.append(options)
        plain(self, backend="eager", **options)

    options = ("train.steps=2", "train.ema_decay=0.9", "train.precision=float32")
    runs = [workplace / "not compiled", workplace / "compiled"]
    list(make_experiment(*options).trainer(runs[0]))
    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    list(make_experiment(*options, "train.compile=true").trainer(runs[1]))
    assert seen == [{"dynamic": False}]
    one, two = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert list(one) == list(two)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_a_model_with_its_own_losses_is_not_compiled():
    class OwnLosses(Model):
        computes_own_losses = True

    with pytest.raises(ConfigError, match=r"train\.compile: found true for OwnLosses"):
        compile_forward(OwnLosses(spatial_dims=2, in_channels=1, num_classes=2))


def test_float32_and_bfloat16_train_in_two_dimensions(make_experiment, workplace):
    for precision in ("float32", "bfloat16"):
        run = workplace / f"precision_{precision}"
        experiment = make_experiment(
            "train.steps=1", f"train.precision={precision}", "model.name=unet_2d", "patch.size=[16, 16]"
        )
        (report,) = list(experiment.trainer(run))
        assert math.isfinite(report.loss)
        assert np.isfinite(report.lr)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("train.freeze=[nonsense]", "train.freeze: found 'nonsense', which fits no weight"),
        ("train.optimizer.backbone_lr_factor=0.1", "found a rate for the backbone, but"),
        ("patch.size=[2,2,2]", r"patch.size: found \[2, 2, 2\]: .*norm would see a single value"),
    ],
)
def test_errors_are_raised_before_preparation(make_experiment, workplace, mistake, message):
    run, seen = workplace / "mistaken", []
    with pytest.raises(ConfigError, match=message):
        make_experiment(mistake).trainer(run, progress=lambda *case: seen.append(case))
    assert seen == []
    assert not run.exists()


def test_a_run_that_was_stopped_as_it_was_opened_can_be_started_again(make_experiment, workplace):
    run = workplace / "half_opened"
    for name in ("splits.json", "run.json", "lock"):
        run.mkdir(exist_ok=True)
        (run / name).write_text('{"host": "elsewhere"}')
        if name == "splits.json":  # perhaps the user's
            with pytest.raises(ConfigError, match="found other files"):
                make_experiment().trainer(run)
    (run / "lock").unlink()
    (run / "first_stage").mkdir()
    assert make_experiment().trainer(run).step == 0
    assert {path.name for path in run.iterdir()} == {
        "run.json", "config.yaml", "environment.json", "splits.json", "labels.tsv", "preprocessing.yaml",
        "prepared.json",
    }  # fmt: skip
