from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case
from medseg.inference.cohort.case_records import CaseRecord, CaseRecords, CaseState, Prediction
from medseg.inference.cohort.output_files import OutputFiles
from medseg.inference.quality.case_quality import CaseQuality, Flag, FlagKind, LabelEstimate
from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import label_volumes
from medseg.report.prediction_report import write_prediction_report
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.report.test_evaluation_report import cells

GRID = Grid.from_spacing((10, 10, 8), (1, 1, 2))
EVIL = '<script>alert("x")</script>'
LABELS = Labels.from_names({"liver": 1, EVIL: 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of three predicted cases, one of them with a remark, a failed one and one without a record."""
    records, random = CaseRecords(tmp_path / "out"), np.random.default_rng(0)
    (tmp_path / "out").mkdir()
    for number in range(3):
        medseg.write(
            Volume(random.normal(size=(1, 10, 10, 8)).astype(np.float32), GRID), tmp_path / f"{number}.nii.gz"
        )
        data = np.zeros((1, 10, 10, 8), np.uint8)
        data[0, : 2 * number + 2, :5] = 1
        label_map = Volume(data, GRID, "label")
        medseg.write(label_map, tmp_path / "out" / f"case_{number}.nii.gz")
        notes = ("volume beyond what was seen",) if number == 2 else ()
        prediction = Prediction("hash", notes=notes, volumes=label_volumes(label_map, LABELS))
        records.write(CaseRecord(f"case_{number}", CaseState.PREDICTED, prediction, seconds=1.5))
    records.write(CaseRecord("case_3", CaseState.FAILED, message=f"found {EVIL}, expected an image"))
    return tmp_path


def written(folder: Path) -> str:
    cases = [
        (f"case_{number}", Case(f"case_{number}", (folder / f"{number}.nii.gz",))) for number in range(5)
    ]
    write_prediction_report(
        folder / "a.html", cases, OutputFiles(folder / "out"), LABELS, models=("Predictor(x)",)
    )
    return (folder / "a.html").read_text(encoding="utf-8")


def test_failed_cases_come_first_then_those_with_remarks(folder: Path) -> None:
    page = written(folder)
    table = page[page.index('id="cases"') :]
    order = dict.fromkeys(re.findall(r"case_\d", re.sub(r"<script.*", "", table, flags=re.DOTALL)))
    assert list(order) == ["case_3", "case_4", "case_2", "case_0", "case_1"]
    assert "volume beyond what was seen" in table
    assert "not predicted" in table
    assert page.count('class="open"') == 3


def test_flagged_cases_come_before_those_with_other_remarks_and_show_estimates(folder: Path) -> None:
    records = CaseRecords(folder / "out")
    record = records.get("case_1")
    assert record is not None
    assert record.prediction is not None
    flag = Flag(FlagKind.BORDER, "voxels of liver at the border", "9 %", "at most 2 %")
    estimate = LabelEstimate("liver", 0.87, 0.71, 0.93, 1.25, 3.5)
    quality = CaseQuality((estimate,), coverage=0.9).with_flags([flag])
    prediction = replace(record.prediction, notes=(flag.note("case_1"),), quality=quality)
    records.write(replace(record, prediction=prediction))
    page = written(folder)
    table = re.sub(r"<script.*", "", page[page.index('id="cases"') :], flags=re.DOTALL)
    order = dict.fromkeys(re.findall(r"case_\d", table))
    assert list(order) == ["case_3", "case_4", "case_1", "case_2", "case_0"]
    assert "<li><b>voxels of liver at the border</b>: found 9 %, expected at most 2 %</li>" in table
    assert "<td>–</td><td>0.87</td><td>0.00 to 0.93</td>" in table
    assert "of cases that are like those of the cross-validation" not in page
    assert "<b>1</b><span>to review</span>" in page


def test_cases_can_be_sorted_by_the_lowest_expected_dice(folder: Path) -> None:
    assert "lowest expected Dice" not in written(folder)
    records = CaseRecords(folder / "out")
    record = records.get("case_1")
    assert record is not None
    assert record.prediction is not None
    labels = (
        LabelEstimate("liver", 0.87, 0.7, 0.9),
        LabelEstimate(EVIL, 0.5, 0.2, 0.9),
        LabelEstimate("rare"),
    )
    records.write(replace(record, prediction=replace(record.prediction, quality=CaseQuality(labels))))
    page = written(folder)
    header, *rows = cells(page, "cases")
    column = header.index("lowest expected Dice")
    assert {row[1][:6]: row[column] for row in rows}["case_1"].startswith("0.50")
    assert {row[1][:6]: row[column] for row in rows}["case_2"] == "–"
    assert '<td data-value="0.5">' in page
    assert '<td data-value="">' in page


@pytest.mark.parametrize("known", [True, False])
def test_the_coverage_is_named_only_if_there_is_an_interval(known: bool, folder: Path) -> None:
    records = CaseRecords(folder / "out")
    record = records.get("case_1")
    assert record is not None
    assert record.prediction is not None
    estimate = LabelEstimate("liver", 0.87, 0.71, 0.93, 1.25, 3.5) if known else LabelEstimate("liver")
    quality = CaseQuality((estimate,), coverage=0.9)
    records.write(replace(record, prediction=replace(record.prediction, quality=quality)))
    page = written(folder)
    assert ("in 90 % of cases that are like those of the cross-validation" in page) is known
    assert ("<td>1.25 to 3.50</td><td>0.87</td><td>0.71 to 0.93</td>" in page) is known


def test_the_viewer_shows_the_uncertainty_if_it_was_written(folder: Path) -> None:
    assert '"overlays": []' in written(folder)
    numbers = np.linspace(0, 1, 800, dtype=np.float32).reshape(1, 10, 10, 8)
    for number in range(3):
        medseg.write(Volume(numbers, GRID), folder / "out" / f"case_{number}_uncertainty.nii")
    outputs = OutputFiles(folder / "out", uncertainty=True)
    cases = [("case_0", Case("case_0", (folder / "0.nii.gz",)))]
    write_prediction_report(folder / "b.html", cases, outputs, LABELS)
    page = (folder / "b.html").read_text(encoding="utf-8")
    assert '"overlays": [{"name": "uncertainty", "data": ' in page


def test_volumes_are_those_of_the_records(folder: Path) -> None:
    page = written(folder)
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index('id="labels"') : page.index("</table>")], re.DOTALL)
    liver = re.findall(r"<td>(.*?)</td>", rows[1])
    volumes = [(2 * number + 2) * 5 * 8 * 2 / 1000 for number in range(3)]
    assert liver == ["3", "", *(f"{np.percentile(volumes, p):.2f}" for p in (0, 25, 50, 75, 100))]
    assert re.findall(r"<td>(.*?)</td>", rows[2])[:2] == ["0", "3"]


def test_names_and_messages_cannot_become_code(folder: Path) -> None:
    page = written(folder)
    assert EVIL not in page
    assert "&lt;script&gt;alert" in page
    assert str(folder) not in page
