"""The command ``medseg plan``."""

from __future__ import annotations

import shutil

import pytest
import yaml

from medseg.cli.data.plan import PRESETS as NAMED
from medseg.cli.main import main
from medseg.experiment.experiment import Experiment
from medseg.planning.nnunet.presets import PRESETS

pytestmark = pytest.mark.slow


def test_command_writes_a_plan_that_trains(phantoms, tmp_path, capsys):
    target = tmp_path / "plans" / "plan.yaml"
    assert (
        main(
            [
                "plan",
                str(phantoms),
                "-o",
                str(target),
                "--device",
                "cuda",
                "--memory",
                "150MiB",
                "--steps",
                "2",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "phantom_ct_unet_3d" in told
    assert "! Only 6 subjects" in told
    assert f"train:   medseg train {target}" in told
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "fingerprint.html",
        "fingerprint.json",
        "plan.yaml",
    ]
    stages = len(yaml.safe_load(target.read_text())["model"]["channels"])
    narrow = f"model.channels=[{','.join(['4'] * stages)}]"
    run = tmp_path / "run"
    assert (
        main(["train", str(target), narrow, "train.batch_size=2", "train.workers=0", "--run", str(run)]) == 0
    )
    assert (run / "model" / "model.safetensors").is_file()


def test_existing_plan_is_overwritten_only_on_request(phantoms, cache, tmp_path, capsys):
    target = tmp_path / "plan.yaml"
    target.write_text("edited: true\n")
    shutil.copy(cache, tmp_path / "fingerprint.json")
    assert main(["plan", str(phantoms), "-o", str(target)]) == 1
    assert "found an existing file" in capsys.readouterr().err
    assert target.read_text() == "edited: true\n"
    assert main(["plan", str(phantoms), "-o", str(target), "--overwrite"]) == 0
    assert Experiment.load(target).name == "phantom_ct_unet_3d"


def test_missing_dataset_is_reported(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "nothing")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_help_lists_all_presets():
    assert list(NAMED) == list(PRESETS)
