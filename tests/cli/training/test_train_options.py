"""Options of ``medseg train`` that become keys of the config, and the package as a program."""

from __future__ import annotations

import runpy
import sys

import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment


def test_decisions_about_headers_are_keys_of_the_config(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").touch()
    (tmp_path / "data").mkdir()

    def load(path, *overrides):
        seen.extend(overrides)
        raise ConfigError("stop.")

    monkeypatch.setattr(Experiment, "load", load)
    options = (
        "--orientation-from",
        "sform",
        "--trust-label-array",
        "--files-root",
        "/images",
        "--repairs",
        "r.yaml",
    )
    assert main(["train", "toy.yaml", "--data", "data", *options, "train.steps=2"]) == 1
    assert "stop." in capsys.readouterr().err
    keys = (
        "path=data",
        "orientation_from=sform",
        "trust_label_array=true",
        "files_root=/images",
        "repairs=r.yaml",
    )
    assert seen == ["train.steps=2", *(f"data.{key}" for key in keys)]


def test_the_package_is_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medseg", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("medseg", run_name="__main__")
    assert ended.value.code == 0
    assert "medseg" in capsys.readouterr().out


def test_a_report_of_an_estimate_is_refused(capsys):
    assert main(["predict", "model", "ct.nii", "--estimate", "--report", "report.html"]) == 1
    assert "--report: found it with --estimate" in capsys.readouterr().err
