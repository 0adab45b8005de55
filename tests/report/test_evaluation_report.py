from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.errors import DataError
from medseg.evaluation.calibration.cross_fitted import cross_fitted
from medseg.evaluation.cross_validation.table import FoldTable
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.table import METRICS, Table
from medseg.report.evaluation_report import ReportContext, write_evaluation_report
from medseg.report.report_case import ReportCase
from medseg.viz.viewer.viewer_case import ViewerCase
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.evaluation.calibration.test_cross_fitted import LABELS, folds
from tests.helpers.browser import Browser, needs_chromium

GRID = Grid.from_spacing((16, 14, 12), (1, 1, 2))
EVIL = '<script>alert("x")</script>'


class _Cells(HTMLParser):
    """Collects the texts of the cells of the table with an id, row by row."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._table, self._depth, self._open = table, 0, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table" and (self._depth or dict(attrs).get("id") == self._table):
            self._depth += 1
        elif self._depth == 1 and tag == "tr":
            self.rows.append([])
        elif self._depth == 1 and tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and self._depth:
            self._depth -= 1
        elif self._depth == 1 and tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open and self._depth == 1:
            self.rows[-1][-1] += data


def cells(page: str, table: str) -> list[list[str]]:
    parser = _Cells(table)
    parser.feed(page)
    return [[" ".join(text.split()) for text in row] for row in parser.rows]


def volumes(case: int) -> tuple[Volume, Volume, Volume]:
    random = np.random.default_rng(case)
    reference = np.zeros((1, *GRID.shape), np.uint8)
    reference[0, 3:9, 3:9, 3:9], reference[0, 10:14, 3:9, 3:9] = 1, 2
    predicted = np.roll(reference, case, axis=1) if case < 3 else np.where(reference == 2, 0, reference)
    image = Volume(random.normal(0, 100, (1, *GRID.shape)).astype(np.float32), GRID)
    return image, Volume(predicted, GRID, "label"), Volume(reference, GRID, "label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions, references and images of four cases, the last one without the second label, with their report."""
    root = tmp_path_factory.mktemp("report")
    for name in ("pred", "ref", "images"):
        (root / name).mkdir()
    for case in range(4):
        image, predicted, reference = volumes(case)
        medseg.write(image, root / "images" / f"case_{case}_0000.nii.gz")
        medseg.write(predicted, root / "pred" / f"case_{case}.nii.gz")
        medseg.write(reference, root / "ref" / f"case_{case}.nii.gz")
    (root / "labels.tsv").write_text(f"value\tname\n1\tliver\n2\t{EVIL}\n")
    arguments = [str(root / "pred"), str(root / "ref"), "--labels", str(root / "labels.tsv"), "--report"]
    assert main(["evaluate", *arguments, "--images", str(root / "images"), "-o", str(root / "out")]) == 0
    return root


def test_every_figure_is_that_of_the_summary(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    summary = json.loads((folder / "out" / "summary.json").read_text())
    header, *rows = cells(page, "labels")
    assert [row[0] for row in rows] == ["liver", EVIL]
    for row in rows:
        found = dict(zip(header[:8], row, strict=False))
        own, interval = summary["labels"][row[0]], summary["label_intervals"][row[0]]["dice"]
        assert found["cases"] == str(own["dice"]["n"])
        assert found["Dice"] == f"{own['dice']['mean']:.3f}"
        assert found["95 % interval"] in (f"{interval['low']:.3f} to {interval['high']:.3f}", row[8])
        assert found["median"] == f"{own['dice']['median']:.3f}"
        assert found["HD95 mm"] == f"{own['hd95_mm']['mean']:.2f}"
    assert rows[1][-1] == "1"  # the label that was missed in one case
    assert f"<b>{summary['foreground_mean']['dice']:.3f}</b>" in page


def test_the_agreement_of_volumes_is_that_of_the_summary(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    summary = json.loads((folder / "out" / "summary.json").read_text())["volume_agreement"]
    _, *rows = cells(page, "agreement")
    assert [row[0] for row in rows] == ["liver", EVIL]
    assert set(summary) == {"liver", EVIL}
    for row in rows:
        own = summary[row[0]]
        for value, interval, name in zip(row[2::2], row[3::2], ("bias", "low", "high"), strict=True):
            ends = own[f"{name}_interval"]
            assert value.replace("−", "-") == f"{own[name]:+.2f}"
            assert interval.replace("−", "-") == f"{ends['low']:+.2f} to {ends['high']:+.2f}"
    assert rows[0][2] == "+0.00"


def test_cases_are_listed_worst_first_with_the_figures_of_the_table(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in (folder / "out" / "cases.tsv").read_text().splitlines()]
    dice: dict[str, list[float]] = {}
    for line in lines[1:]:
        dice.setdefault(line[0], []).append(float(line[3]))
    expected = sorted(dice, key=lambda case: (np.mean(dice[case]), case))
    _, *rows = cells(page, "cases")
    assert [row[1].split()[0] for row in rows] == expected
    assert [row[2] for row in rows] == [f"{np.mean(dice[case]):.3f}" for case in expected]
    assert rows[[row[1].split()[0] for row in rows].index("case_3")][5] == "∞"


def test_the_page_loads_nothing_and_names_cannot_become_code(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?://|src=\"(?!data:)", outside)
    assert str(folder) not in page
    assert [path.name for path in (folder / "out").iterdir() if path.name.startswith(".")] == []


def test_without_images_there_is_a_page_without_viewers(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder / "pred"), str(folder / "ref"), "--report", "-o", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 0
    assert (tmp_path / "report.html").stat().st_size < 100_000
    assert "no image" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report"], "--output FOLDER"),
        (["--images", "x", "-o", "out"], "--report"),
        (["--report", "--instances"], "--output FOLDER"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: list[str], message: str, capsys) -> None:
    assert main(["evaluate", str(folder / "pred"), str(folder / "ref"), *options]) == 1
    assert message in capsys.readouterr().err


def test_an_image_that_cannot_be_read_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    rows = [
        replace(row, case=f"case_{case}")
        for case in range(2)
        for row in medseg.evaluate(*volumes(case)[1:]).rows
    ]

    def broken() -> ViewerCase:
        raise DataError("case_1.nii.gz: found 3 bytes, expected an image. Copy it again.")

    image, predicted, reference = volumes(0)
    maps = {"prediction": predicted, "reference": reference}
    cases = [
        ReportCase("case_0", lambda: ViewerCase("case_0", image, maps), ("volume beyond what was seen",)),
        ReportCase("case_1", broken),
    ]
    write_evaluation_report(tmp_path / "a.html", Table(tuple(rows)), cases, ReportContext("two"))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "found 3 bytes, expected an image" in page
    assert "volume beyond what was seen" in page
    assert page.count('class="open"') == 1


def test_a_learning_curve_is_drawn(tmp_path: Path) -> None:
    curves = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "mean_dice": 0.5},
        {"step": 3, "mean_dice": None},
    ]
    write_evaluation_report(tmp_path / "a.html", Table(()), [], ReportContext("empty", curves=curves))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "training loss" in page
    assert "validation Dice" in page


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser(width=1000, height=700) as browser:
        yield browser


@pytest.mark.slow
@needs_chromium
def test_a_click_opens_the_viewer_of_the_case_and_headers_sort(browser: Browser, folder: Path) -> None:
    browser.open(folder / "out" / "report.html", "document.body?.dataset.ready === 'true'")
    names = "[...cases.tBodies[0].rows].map((row) => row.cells[1].firstChild.textContent.trim())"
    first, *_ = browser.run(names)
    browser.run(
        "cases.tHead.rows[0].cells[2].click()"
    )  # worst first is the order at the start, so best first now
    assert browser.run(names)[-1] == first
    browser.run("filter.value = 'case_2'; filter.dispatchEvent(new Event('input'))")
    assert browser.run("[...cases.tBodies[0].rows].filter((row) => !row.hidden).length") == 1
    browser.run(
        "window.ready = false; addEventListener('message', (event) => { ready = event.data === 'medseg-viewer-ready'; })"
    )
    browser.run("document.querySelector('button.open[data-case=case_2]').click()")
    browser.wait_for("window.ready")
    assert browser.run("document.querySelector('dialog').open")
    browser.run("document.querySelector('dialog button').click()")
    browser.wait_for("!document.querySelector('dialog iframe')")
    assert browser.requests == []
    assert browser.errors == []


def test_the_calibration_of_a_cross_validation_is_that_of_the_summary(tmp_path: Path) -> None:
    samples = folds((2.5,), size=1000)
    calibration = cross_fitted(samples, LABELS)
    rows = [
        LabelMetrics(
            **{**dict.fromkeys(METRICS, 0.5), "case": f"case_{case}", "label_value": 1, "label": "edema"}
        )
        for case in range(4)
    ]
    result = FoldTable(
        Table(tuple(rows)), folds={f"case_{case}": case % 2 for case in range(4)}, calibration=calibration
    )
    write_evaluation_report(tmp_path / "report.html", result, [], ReportContext("Folds"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    _, *shown = cells(page, "calibration")
    figures = result.summary()["calibration"]
    for name, where, before, after in shown:
        part = {"near foreground": "near", "whole image": "whole"}[where]
        for when, text in (("before", before), ("after", after)):
            own = figures[when][part]
            label = name.removeprefix("error of ")
            expected = (
                own["by_label"].get(label)
                or own[{"Brier score": "brier", "negative log-likelihood": "nll"}.get(name, "ece")]
            )
            assert text == f"{expected:.4f}"
    assert len(shown) == 2 * (3 + 2)
    assert page.count("near foreground</figcaption>") == 2
    write_evaluation_report(
        tmp_path / "without.html", replace(result, calibration="none"), [], ReportContext("Folds")
    )
    assert "Calibration" not in (tmp_path / "without.html").read_text(encoding="utf-8")
