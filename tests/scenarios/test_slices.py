"""Experiments with slice settings for 2D models, and experiments with instances as references."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medseg.cli.main import main
from medseg.data.datasets.phantom import write_phantoms
from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.experiment.run_folder import RunFolder, RunRecord
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.model_folder.folder import load_model
from medseg.models.volumetric.multiplane import as_volumetric
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

TOY = {
    "data": {"folds": 2},
    "model": {"name": "unet_2d", "channels": [4, 8], "num_blocks": 1},
    "patch": {"size": [8, 8]},
    "train": {"steps": 1, "report_every": 1, "validation_batches": 1},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "data", cases=2, shape=(14, 12, 10), spacing=(22, 24, 25))
    return folder


@pytest.mark.parametrize(
    ("slices", "normalize", "channels", "window"),
    [
        ({"channels": "ct_windows"}, "hounsfield", 3, (8, 8, 1)),
        ({"channels": "neighbours", "neighbours": 2, "radiological_view": True}, "auto", 5, (8, 8, 16)),
        ({"channels": "repeat", "planes": [0, 1, 2]}, "auto", 3, (8, 8, 8)),
    ],
)
def test_a_model_is_trained_and_loaded_with_its_slices(
    phantoms, tmp_path, slices, normalize, channels, window
):
    data = {**TOY["data"], "path": str(phantoms / "data")}
    experiment = Experiment.parse(
        {**TOY, "data": data, "slices": slices, "preprocess": {"normalize": normalize}}
    )
    (report,) = experiment.trainer(phantoms / tmp_path.name)
    assert np.isfinite(report.loss)
    model, saved, _ = load_model(phantoms / tmp_path.name)
    assert model.in_channels == channels
    assert saved.slices == SliceSettings.parse(slices)
    assert saved.window == window
    volume = as_volumetric(model, saved.slice_view)
    assert (volume.in_channels, volume.spatial_dims) == (1, 3)
    with torch.no_grad():
        assert torch.isfinite(volume(torch.randn(1, 1, *window))).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model": {"name": "unet_3d"}, "slices": {"radiological_view": True}},
            "slices: found settings for a 2D model",
        ),
        (
            {**TOY, "slices": {"channels": "neighbours"}, "predict": {"blend": "constant"}},
            "expected gaussian",
        ),
        ({**TOY, "slices": {"channels": "window"}}, r"slices\.channels"),
    ],
)
def test_slice_settings_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.parse(values)


def test_windows_of_a_normalised_ct_are_refused_before_training(phantoms, tmp_path):
    data = {**TOY["data"], "path": str(phantoms / "data")}
    experiment = Experiment.parse({**TOY, "data": data, "slices": {"channels": "ct_windows"}})
    with pytest.raises(ConfigError, match=r"Set preprocess\.normalize to hounsfield"):
        experiment.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / ".prepared").exists()


@pytest.fixture
def run_with_instances(tmp_path):
    """A run on two volumes of touching cubes; its predictions lack one of the cubes."""
    grid = Grid.from_spacing((12, 12, 4))
    run, data = tmp_path / "run", tmp_path / "data"
    for name in "ab":
        ids = np.zeros((1, 12, 12, 4), np.uint16)
        ids[0, :4, :4], ids[0, 4:8, :4], ids[0, 8:, 8:] = 1, 300, 2
        write(Volume(ids.astype(np.float32), grid), data / "images" / f"{name}.nii.gz")
        write(Volume(ids, grid, "label"), data / "instances" / f"{name}.nii.gz")
        predicted = np.where(ids == 300, 0, ids > 0).astype(np.uint8)
        write(Volume(predicted, grid, "label"), run / "predictions" / f"{name}.nii.gz")
    experiment = Experiment.parse({**TOY, "data": {"folds": 2, "path": str(data)}})
    (run / "config.yaml").write_text(experiment.to_yaml())
    RunFolder(run).write_record(RunRecord(kind="training"))
    (run / "splits.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    return run


def test_a_run_is_evaluated_by_instances_and_by_label_maps(run_with_instances, capsys):
    run = run_with_instances
    assert main(["evaluate", str(run), "--instances", "--report"]) == 0
    page = (run / "evaluation" / "instances" / "report.html").read_text(encoding="utf-8")
    assert 'data-case="b"' in page  # with a viewer
    summary = json.loads((run / "evaluation" / "instances" / "summary.json").read_text())
    figures = summary["labels"]["instance"]["pooled"]
    assert (figures["tp"], figures["fn"], figures["fp"]) == (2, 1, 0)
    assert figures["sensitivity"] == pytest.approx(2 / 3)
    assert main(["evaluate", str(run)]) == 0
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["labels"]["instance"]["dice"]["mean"] == pytest.approx(2 * 32 / (32 + 48))
    (run / "predictions" / "b.nii.gz").unlink()
    assert main(["evaluate", str(run), "--instances"]) == 1
    assert "1 of 1 predictions are missing: b" in capsys.readouterr().err


def test_instances_in_memory_by_the_public_name():
    import medseg

    found = Instances.from_map(np.array([[0, 1], [2, 2]]))
    assert medseg.evaluate_instances(found, found).pooled()["instance"].pq == 1
