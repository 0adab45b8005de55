"""A 3D instance model from a folder with instance maps to evaluated instances, with commands only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from medseg.cli.main import main
from medseg.data.datasets.phantom import write_instance_phantoms
from medseg.inference.predictor import load
from medseg.io.companions.instance_files import read_instances
from medseg.io.files import read_labels
from medseg.model_folder.folder import load_model
from medseg.models.unet.instance_unet import InstanceUNet
from medseg.train.reports.reporting import read_metrics

pytestmark = pytest.mark.slow

TOY = {
    "name": "toy",
    "data": {"folds": 2},
    "preprocess": {"spacing": [1.5, 1, 1], "normalize": "zscore"},
    "model": {"name": "instance_unet_3d", "channels": [4, 8]},
    "patch": {"size": [16, 16, 16]},
    "train": {"steps": 12, "batch_size": 1, "validation_batches": 1, "optimizer": {"name": "adamw", "lr": 0.01}},
    "predict": {"min_instance_score": 0.0, "mirror_axes": [0]},
}  # fmt: skip


def test_volumes_are_trained_predicted_and_evaluated(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    spacings = []
    losses = InstanceUNet.losses

    def spied(self, image, label, instances=None):
        spacings.append(self.voxel_size)
        assert instances is not None
        return losses(self, image, label, instances)

    monkeypatch.setattr(InstanceUNet, "losses", spied)
    write_instance_phantoms(tmp_path / "data", cases=4, count=4, shape=(26, 28, 24), radii=(3, 5))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    run = tmp_path / "run"
    command = ["train", str(tmp_path / "toy.yaml"), "--data", str(tmp_path / "data"), "--run", str(run)]
    assert main(command) == 0
    assert spacings[-1] == pytest.approx((1.5, 1, 1), rel=0.05)
    assert set(read_metrics(run / "metrics.jsonl")[-1]["loss_terms"]) == {"classes", "distance", "offsets"}
    assert load_model(run)[0].voxel_size == (1, 1, 1)  # only training measures distances

    assert main(["predict", str(run), "--held-out", "--instances"]) == 0
    held_out = json.loads((run / "splits.json").read_text())[0]["validation"]
    for case in held_out:
        found = read_instances(run / "predictions" / f"{case}_instances.nii.gz")
        labels = read_labels(run / "predictions" / f"{case}.nii.gz")
        assert labels.grid.shape == (26, 28, 24)
        assert np.array_equal(found.ids.data > 0, labels.data > 0)
        own = load(run).instances(tmp_path / "data" / "imagesTr" / f"{case}.nii.gz")
        assert np.array_equal(own.to_map(), found.ids.data[0])
    assert main(["evaluate", str(run), "--instances"]) == 0
    summary = json.loads((run / "evaluation" / "instances" / "summary.json").read_text())
    assert summary["labels"]["ellipsoid"]["pooled"]["references"] == 8
    # Label maps are those of any U-Net.
    image = str(tmp_path / "data" / "imagesTr" / f"{held_out[0]}.nii.gz")
    assert main(["predict", str(run), image, "-o", str(tmp_path / "maps")]) == 0
    assert set(np.unique(read_labels(tmp_path / "maps" / f"{held_out[0]}.nii.gz").data)) <= {0, 1}
