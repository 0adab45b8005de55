"""What ``medseg inspect`` says about labels, and files and options of ``medseg check``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.check.check_report import Report
from medseg.check.finding import Finding
from medseg.cli.data.inspect import _describe_dataset
from medseg.cli.main import main
from medseg.data.datasets.cases import Case, Dataset
from medseg.labels.label_table import Labels
from tests.helpers.nifti_files import save


def test_regions_ignored_values_and_partial_annotation_are_described() -> None:
    labels = Labels.from_names({"background": 0, "liver": 1, "tumour": 2}).with_regions(
        {"organ": [1, 2], "tumour": [2]}
    )
    cases = tuple(
        Case(f"c{n}", (Path("image.nii"),), label=Path("label.nii"), annotated=("liver",) if n else None)
        for n in range(3)
    )
    text = _describe_dataset(Dataset("set", Path("set"), cases, ("CT",), replace(labels, ignore=9)), cases)
    for line in (
        "  3 cases, 3 with a label map, 3 subjects",
        "  labels: 0 background, 1 liver, 2 tumour",
        "  regions: organ (1, 2), tumour (2)",
        "  ignored: 9",
        "  2 cases partially annotated",
    ):
        assert line in text.splitlines()


def test_findings_of_one_kind_beyond_the_limit_are_counted() -> None:
    findings = tuple(
        Finding("LABEL_EMPTY", f"{n}.nii", "voxels", "0 labelled voxels", case=f"{n}") for n in range(5)
    )
    report = Report("set", findings)
    assert report.text(0).count("LABEL_EMPTY") == 5
    lines = report.text(2).splitlines()
    assert len(lines) == 4
    assert lines[-1] == "warning LABEL_EMPTY: 3 more (--all lists them)"


def test_a_report_is_written_and_repairs_need_a_dataset(tmp_path: Path, capsys) -> None:
    save(tmp_path / "ct.nii", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
    assert main(["check", str(tmp_path / "ct.nii"), "--json", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())
    assert main(["check", str(tmp_path / "ct.nii"), "--repair", str(tmp_path / "repairs.yaml")]) != 0
    assert "--repair: found 0 datasets, expected one" in capsys.readouterr().err
    assert not (tmp_path / "repairs.yaml").exists()
