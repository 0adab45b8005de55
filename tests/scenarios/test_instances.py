"""An instance model from natural images with instance maps to evaluated instances, with commands only."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from medseg.cli.main import main
from medseg.data.datasets.image_folders import read_image_folder
from medseg.experiment.experiment import Experiment
from medseg.inference.predictor import load
from medseg.io.companions.instance_files import read_instances
from medseg.io.files import read, read_labels
from medseg.model_folder.folder import load_model
from medseg.models.mask_rcnn.network import MaskRCNN
from medseg.train.reports.reporting import read_metrics

pytestmark = pytest.mark.slow

PARTS = {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
TOY = {
    "name": "toy",
    "data": {"folds": 2},
    "preprocess": {"normalize": "rescale", "crop_to_nonzero": False},
    "model": {
        "name": "mask_rcnn_resnet_50_fpn",
        "depths": [1, 1, 1, 1],
        "block": "basic",
        "norm": "group",
        "feature_channels": 16,
        "anchor_sizes": [[8], [16], [32], [64], [128]],
        "box_head_width": 16,
        "mask_head_widths": [8],
        "sampled_proposals_per_image": 16,
        "sampled_anchors_per_image": 32,
        "proposals_train": 40,
        "proposals_test": 20,
        "score_threshold": 0.0,
        "max_detections": 5,
    },
    "patch": {"size": [32, 32]},
    "augment": {"rotate_degrees": 0},
    "train": {
        "steps": 2, "report_every": 1, "validation_batches": 1, "save_every": 1,
        "freeze": ["backbone.stem"], "optimizer": {"name": "adamw", "lr": 0.001, "backbone_lr_factor": 0.5},
    },
    "predict": {"min_instance_score": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """Four natural images in which two bright blocks touch, with a map of their ids."""
    import SimpleITK as sitk

    folder = tmp_path_factory.mktemp("nuclei") / "data"
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(4):
        ids = np.zeros((40, 48), np.uint16)
        ids[8:20, 4 + number : 20], ids[8:20, 20:34] = 1, 700
        grey = np.where(ids > 0, 180, 40) + generator.integers(0, 20, ids.shape)
        sitk.WriteImage(
            sitk.GetImageFromArray(grey.astype(np.uint8)), str(folder / "images" / f"{number}.png")
        )
        sitk.WriteImage(sitk.GetImageFromArray(ids), str(folder / "instances" / f"{number}.png"))
    return folder


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A run of two steps, and the instance maps on which its model was trained."""
    folder, taught = tmp_path_factory.mktemp("runs"), []
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        losses = MaskRCNN.losses

        def spied(self, image, label, instances=None):
            taught.append((label.clone(), instances))
            return losses(self, image, label, instances)

        patch.setattr(MaskRCNN, "losses", spied)
        (folder / "toy.yaml").write_text(yaml.safe_dump(TOY))
        run = folder / "run"
        assert main(["train", str(folder / "toy.yaml"), "--data", str(image_folder), "--run", str(run)]) == 0
    return run, taught


def test_training_passes_instance_maps_and_reports_each_loss(trained):
    run, taught = trained
    assert len(taught) == 2
    for label, instances in taught:
        assert instances is not None
        assert np.array_equal(instances.numpy() > 0, label.numpy() > 0)
    assert max(len(np.unique(ids.numpy())) for _, ids in taught) > 2  # touching blocks have different ids
    rows = read_metrics(run / "metrics.jsonl")
    assert all(set(row["loss_terms"]) == PARTS for row in rows)
    for row in rows:
        assert sum(row["loss_terms"].values()) == pytest.approx(row["loss"], rel=1e-5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run)).Reload()
    assert {f"loss/{part}" for part in PARTS} <= set(board.Tags()["scalars"])


def test_a_frozen_stem_keeps_its_fresh_weights(trained):
    run, _ = trained
    model, saved, labels = load_model(run)
    torch.manual_seed(0)
    fresh = Experiment.from_run(run).model.build(len(saved.channel_names), len(labels)).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, fresh[name])}
    assert {"backbone.body.conv1.weight", "backbone.body.bn1.weight"}.isdisjoint(changed)
    assert {"backbone.body.layer1.0.conv1.weight", "rpn.head.conv.0.0.weight"} <= changed


def test_commands_predict_and_evaluate_instances(trained, image_folder, capsys):
    run, _ = trained
    assert main(["predict", str(run), "--held-out", "--instances"]) == 0
    held_out = json.loads((run / "splits.json").read_text())[0]["validation"]
    assert len(held_out) == 2
    for case in held_out:
        ids = read_instances(run / "predictions" / f"{case}_instances.nii.gz")
        labels = read_labels(run / "predictions" / f"{case}.nii.gz")
        assert (
            ids.ids.grid.shape
            == labels.grid.shape
            == read(image_folder / "images" / f"{case}.png").grid.shape
        )
        assert np.array_equal(ids.ids.data > 0, labels.data > 0)
        assert set(ids.scores) == set(np.unique(ids.ids.data).tolist()) - {0}
        # The prediction is replaced by the reference, so that the origin of the metrics is known.
        truth = read_labels(image_folder / "instances" / f"{case}.png")
        write_truth(truth, run / "predictions" / f"{case}_instances.nii.gz")
    assert main(["evaluate", str(run), "--instances"]) == 0
    summary = json.loads((run / "evaluation" / "instances" / "summary.json").read_text())
    pooled = summary["labels"]["instance"]["pooled"]
    assert (pooled["tp"], pooled["fp"], pooled["ap"]) == (4, 0, pytest.approx(1))
    intact = {file: file.read_bytes() for file in (run / "predictions").glob("*_instances.nii.gz")}
    for file in intact:  # headers that leave the geometry open
        image = nib.load(file)
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
        nib.save(image, file)
    assert main(["evaluate", str(run), "--instances"]) == 1
    decided = ["--orientation-from", "pixdim", "--trust-label-array"]
    assert main(["evaluate", str(run), "--instances", *decided]) == 0
    assert json.loads((run / "evaluation" / "instances" / "summary.json").read_text()) == summary
    for file, content in intact.items():
        file.write_bytes(content)
    capsys.readouterr()
    label_map, reference = (
        run / "predictions" / f"{held_out[0]}.nii.gz",
        image_folder / "instances" / f"{held_out[0]}.png",
    )
    assert (
        main(["evaluate", str(label_map), str(reference), "--instances"]) == 0
    )  # the map of ids next to it is used
    assert " 2   2   0   0  1.000" in capsys.readouterr().out
    (run / "predictions" / f"{held_out[0]}_instances.nii.gz").unlink()
    assert main(["evaluate", str(run), "--instances"]) == 1
    assert f"are missing: {held_out[0]}" in capsys.readouterr().err


def write_truth(truth, path):
    from medseg.io.files import write

    write(truth, path)
    path.with_name(path.name.replace(".nii.gz", ".tsv")).unlink()


def test_maps_of_a_natural_image_can_be_natural_images(trained, tmp_path, image_folder):
    run, _ = trained
    image, truth = (str(image_folder / folder / "0.png") for folder in ("images", "instances"))
    assert main(["predict", str(run), image, "-o", str(tmp_path), "--instances", "--suffix", ".png"]) == 0
    tables = {"cases.tsv", "failed.tsv", "volumes.tsv", "run.json"}
    expected = {"0.png", "0_instances.png", "0_instances.tsv"}
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} - tables == expected
    labels, ids = (read_labels(tmp_path / name).data for name in ("0.png", "0_instances.png"))
    assert np.array_equal(ids > 0, labels > 0)
    assert (
        main(["evaluate", str(tmp_path / "0.png"), truth, "--instances"]) == 0
    )  # the map next to it is used


def test_skip_existing_checks_both_files(trained, tmp_path, image_folder, capsys):
    run, _ = trained
    image = str(image_folder / "images" / "0.png")
    command = ["predict", str(run), image, "-o", str(tmp_path), "--instances", "--skip-existing"]
    assert main(command) == 0
    (tmp_path / "0_instances.nii.gz").unlink()
    before = (tmp_path / "0.nii.gz").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "0_instances.nii.gz").is_file()
    after = (tmp_path / "0.nii.gz").stat().st_mtime_ns
    assert after > before
    assert main(command) == 0
    assert (tmp_path / "0.nii.gz").stat().st_mtime_ns == after


@pytest.mark.parametrize("flag", [["--estimate"], ["--probabilities"], ["--uncertainty"], ["--layers"]])
def test_options_of_sliding_windows_are_refused(flag, tmp_path, capsys):
    assert main(["predict", str(tmp_path), "a.png", "-o", str(tmp_path), "--instances", *flag]) == 1
    assert f"--instances: found it with {flag[0]}" in capsys.readouterr().err


def test_a_limit_of_memory_is_refused_for_whole_slices(trained, image_folder, tmp_path, capsys):
    run, _ = trained
    command = [
        "predict",
        str(run),
        str(image_folder / "images" / "0.png"),
        "-o",
        str(tmp_path),
        "--instances",
    ]
    assert main([*command, "--max-memory", "4GB"]) == 1
    assert "max_memory: found 4.0 GB, expected no limit for instances of mask_rcnn" in capsys.readouterr().err


def test_weights_are_found_from_anywhere_and_not_read_again(image_folder, tmp_path, monkeypatch):
    experiment = Experiment.parse({**TOY, "data": {"folds": 2, "path": str(image_folder)}})
    fresh = experiment.model.build(len(read_image_folder(image_folder).channel_names), 2)
    body = {
        k.removeprefix("backbone.body."): v for k, v in fresh.state_dict().items() if "backbone.body." in k
    }
    monkeypatch.chdir(tmp_path)
    save_file(body, "body.safetensors")
    experiment = experiment.replace(model={**experiment.model.to_plain(), "weights": "body.safetensors"})
    trainer = experiment.trainer(tmp_path / "run")
    assert trainer.model.loaded_weights is not None
    assert torch.equal(trainer.model.backbone.body.conv1.weight, body["conv1.weight"])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["weights"] == str(tmp_path / "body.safetensors")
    again = Experiment.load(tmp_path / "run" / "config.yaml")
    assert again.trainer(tmp_path / "run", resume=True).model.loaded_weights is not None  # nothing saved yet
    next(iter(trainer))
    Path("body.safetensors").unlink()
    resumed = again.trainer(tmp_path / "run", resume=True)
    assert (resumed.step, resumed.model.loaded_weights) == (1, None)
    assert [report.step for report in resumed] == [2]


def test_cross_validated_instances_are_those_of_each_fold(image_folder, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    run = tmp_path / "folds"
    train = [
        "train",
        str(tmp_path / "toy.yaml"),
        "--data",
        str(image_folder),
        "--run",
        str(run),
        "--all-folds",
    ]
    assert main([*train, "train.steps=1"]) == 0
    output = capsys.readouterr().out
    assert "none is selected, because a label has many instances" in output
    measured = json.loads((run / "evaluation" / "instances" / "summary.json").read_text())
    assert measured["cases"] == 4
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert (summary["cases"], summary["post_processing"]) == (4, None)
    image = str(image_folder / "images" / "0.png")
    assert main(["predict", str(run), image, "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), image, "-o", str(tmp_path / "out"), "--instances"]) == 1
    assert "toy: ensemble: finds no instances. Use one of its members" in capsys.readouterr().err
    assert main(["predict", str(run), "--held-out", "--instances"]) == 0
    assert "all held-out cases were predicted already" in capsys.readouterr().out
    held_out = json.loads((run / "splits.json").read_text())[1]["validation"]
    own = load(run / "fold_1").instances(image_folder / "images" / f"{held_out[0]}.png")
    found = read_instances(run / "predictions" / f"{held_out[0]}_instances.nii.gz")
    assert np.array_equal(found.ids.data[0] > 0, own.to_map() > 0)
    assert main(["evaluate", str(run), "--instances"]) == 0
    assert json.loads((run / "evaluation" / "instances" / "summary.json").read_text()) == measured
    # The label maps that came with them are those of the folds, too.
    stamps = [file.stat().st_mtime_ns for file in sorted((run / "predictions").glob("*.nii.gz"))]
    assert main(["train", "--resume", str(run)]) == 0
    assert [file.stat().st_mtime_ns for file in sorted((run / "predictions").glob("*.nii.gz"))] == stamps
