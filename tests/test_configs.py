"""Every shipped experiment loads, builds its model and, on phantoms, trains."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.experiment.experiment import Experiment
from medseg.models.summary import summarize
from medseg.yaml_dialect import read_yaml
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "configs"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "slurm")
NAMES = [str(path.relative_to(FOLDER)) for path in FILES]


def test_there_are_some():
    assert len(FILES) >= 12


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_loads_and_its_model_takes_its_patch(path):
    experiment = Experiment.load(path)
    assert experiment.name == f"{path.parent.name}_{path.stem}"
    channels = 1 if experiment.slices.channels == "ct_windows" else 2
    with torch.device("meta"):  # random weights would take most of the time
        model = experiment.model.build(experiment.slices.num_channels(channels), 3)
    summary = summarize(model, (model.in_channels, *experiment.patch.size))  # without computing anything
    assert summary.output_shape == (3, *experiment.patch.size)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_its_comment_shows_the_command_that_runs_it(path):
    assert f"medseg train {path.relative_to(FOLDER.parent)}" in path.read_text()


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_experiments_on_phantoms_differ_in_the_network_alone(dims):
    files = [path for path in FILES if path.parent.name == "phantom" and path.stem.endswith(dims)]
    settings = [read_yaml(path) for path in files]
    assert len(files) == 3
    assert {one.pop("name") for one in settings} == {f"phantom_{path.stem}" for path in files}
    assert {one["model"].pop("name") for one in settings} == {path.stem for path in files}
    assert settings[0] == settings[1] == settings[2]


@pytest.mark.parametrize("name", ["attention_unet_2d", "resunet_3d"])
def test_it_trains_on_phantoms(name, tmp_path):
    path = FOLDER / "phantom" / f"{name}.yaml"
    size = [16] * len(Experiment.load(path).patch.size)
    experiment = Experiment.load(
        path, "train.steps=2", "data.phantom.cases=5", f"patch.size={size}", "preprocess.spacing=[14, 14, 18]",
        "model.channels=[4, 8, 8, 8]", "train.validation_batches=1",
    )  # fmt: skip
    reports = list(experiment.trainer(tmp_path / "run"))
    assert [report.step for report in reports] == [2]
    assert math.isfinite(reports[0].loss)
