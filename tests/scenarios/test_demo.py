"""The demo: phantoms, training, prediction, evaluation and figures by one command."""

from __future__ import annotations

import json

import pytest

import medseg
from medseg.cli.main import main
from medseg.cli.training.demo import DEMO
from medseg.train.reports.reporting import read_metrics
from medseg.yaml_dialect import read_yaml
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

TINY = [
    "train.steps=12", "train.report_every=4", "train.validate_every=6", "train.validation_batches=1",
    "data.phantom.cases=5", "preprocess.spacing=[12, 12, 16]", "model.channels=[4, 8]", "model.num_blocks=1",
    "patch.size=[16, 16, 16]", "predict.overlap=0",
]  # fmt: skip


def test_the_demo_is_the_shipped_config():
    config = ROOT / "configs" / "phantom" / "unet_3d.yaml"
    assert read_yaml(config) == DEMO


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", "--run", str(folder), *TINY]) == 0
    return folder


def test_a_run_holds_every_part(run):
    present = {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents")}
    assert present == {
        "config.yaml", "run.json", "environment.json", "splits.json", "labels.tsv", "preprocessing.yaml", "metrics.jsonl", "prepared.json", "last", "best", "model",
        "predictions", "evaluation", "figures",
    }  # fmt: skip
    assert list(run.glob("events.out.tfevents*"))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["medseg"] == medseg.__version__
    (split,) = json.loads((run / "splits.json").read_text())
    assert len(split["validation"]) == 1
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [4, 6, 8, 12]
    assert [path.name for path in (run / "predictions").glob("*.nii.gz")] == [
        f"{split['validation'][0]}.nii.gz"
    ]
    assert {path.name for path in (run / "evaluation").iterdir()} == {"cases.tsv", "summary.json"}
    figures = sorted(path.name for path in (run / "figures").iterdir())
    assert figures == [f"{split['validation'][0]}.png", "training.png"]
    assert all(path.stat().st_size > 2000 for path in (run / "figures").iterdir())


def test_the_prediction_is_on_the_grid_of_its_image(run):
    (path,) = (run / "predictions").glob("*.nii.gz")
    image = medseg.read(run.parent / "phantom_ct_5_0" / "imagesTr" / path.name)
    labels = medseg.read_labels(path)
    assert labels.grid.affine.tobytes() == image.grid.affine.tobytes()
    assert labels.grid.shape == image.grid.shape


def test_the_model_works_from_a_copy_without_the_run(run, tmp_path):
    import shutil

    import numpy as np

    shutil.copytree(run / "model", tmp_path / "shared")
    (path,) = (run / "predictions").glob("*.nii.gz")
    labels = medseg.load(tmp_path / "shared")(run.parent / "phantom_ct_5_0" / "imagesTr" / path.name)
    assert np.array_equal(labels.data, medseg.read_labels(path).data)


def test_phantoms_and_prepared_cases_are_created_once(run):
    stamps = {
        path: path.stat().st_mtime_ns for path in run.parent.rglob("*.nii.gz") if "phantom_ct" in str(path)
    }
    prepared = sorted(path.name for path in (run.parent / ".prepared").glob("*-*"))
    assert len(prepared) == 5
    assert main(["train", "--resume", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert sorted(path.name for path in (run.parent / ".prepared").glob("*-*")) == prepared


def test_a_second_demo_does_not_overwrite_the_first(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["demo", "--run", str(run), *TINY]) == 1
    assert "found other files" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
