from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.evaluation.label_maps.metric_options import MetricOptions
from medseg.evaluation.label_maps.metrics import LabelMetrics
from medseg.evaluation.label_maps.table import KEYS, METRICS, Statistics, Table

COLUMNS = (*KEYS, *METRICS)
NAN, INF = math.nan, math.inf


def row(case: str, name: str, value: int, dice: float, hd95: float) -> LabelMetrics:
    distances = (hd95, hd95 / 2, hd95 / 2)
    return LabelMetrics(
        case, value, name, dice, dice / 2, *distances, dice, dice, dice, 1.0, 1.0, 2.0, -1.0, -50.0
    )


ROWS = (
    row("a", "liver", 1, 0.8, 2.0),
    row("a", "spleen", 2, 0.0, INF),
    row("a", "rare", 3, NAN, NAN),
    row("b", "liver", 1, 0.6, 4.0),
    row("b", "spleen", 2, 0.5, 9.0),
    row("b", "rare", 3, NAN, NAN),
)
TABLE = Table(ROWS, MetricOptions(tolerance_mm=2.0))


def test_means_leave_out_absent_labels_and_infinite_distances() -> None:
    means = TABLE.mean()
    assert means["liver"]["dice"] == pytest.approx(0.7)
    assert means["spleen"]["dice"] == pytest.approx(0.25)
    assert means["spleen"]["hd95_mm"] == 9
    assert math.isnan(means["rare"]["dice"])
    assert TABLE.cases == ("a", "b")
    assert TABLE.labels == ("liver", "spleen", "rare")


def test_foreground_mean_is_the_mean_of_label_means() -> None:
    uneven = Table((*ROWS, row("c", "liver", 1, 1.0, 0.0)))
    assert uneven.foreground_mean()["dice"] == pytest.approx((0.8 + 0.25) / 2)
    assert TABLE.foreground_mean()["hd95_mm"] == pytest.approx((3 + 9) / 2)


def test_statistics_count_what_they_leave_out() -> None:
    found = TABLE.statistics()["spleen"]["hd95_mm"]
    assert found == Statistics(mean=9, std=0, median=9, n=1, infinite=1)
    values = [1.0, 2.0, 6.0, NAN]
    assert Statistics.from_values(values) == Statistics(3, pytest.approx(np.std(values[:3])), 2, 3, 0)


def test_tsv_reads_back(tmp_path: Path) -> None:
    table = Table((*ROWS, replace(ROWS[0], case="tab\tin\nname")))
    table.write_tsv(tmp_path / "deep" / "cases.tsv")
    with (tmp_path / "deep" / "cases.tsv").open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    assert tuple(lines[0]) == COLUMNS
    assert COLUMNS[:6] == ("case", "label_value", "label", "dice", "iou", "hd95_mm")
    assert [float(line["dice"]) for line in lines[:2]] == [0.8, 0.0]
    assert float(lines[1]["hd95_mm"]) == INF
    assert math.isnan(float(lines[2]["dice"]))
    assert lines[-1]["case"] == "tab in name"  # white space becomes single spaces, so that a row is one line


def test_summary_is_strict_json(tmp_path: Path) -> None:
    TABLE.write_summary(tmp_path / "summary.json")
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads(text)
    assert list(summary) == sorted(summary)
    assert summary["tolerance_mm"] == 2
    assert summary["cases"] == 2
    assert summary["labels"]["rare"]["dice"] == {
        "mean": None,
        "std": None,
        "median": None,
        "n": 0,
        "infinite": 0,
    }
    assert summary["labels"]["spleen"]["hd95_mm"]["infinite"] == 1
    assert summary["foreground_mean"]["dice"] == pytest.approx(0.475)
    assert summary["medseg_version"]


def test_text_is_aligned_and_counts_what_is_left_out() -> None:
    lines = repr(TABLE).splitlines()
    assert lines[0].split("  ")[0] == "label"
    assert lines[0].endswith("volume error %")
    assert lines[2].split() == [
        "liver",
        "2",
        "0.700",
        "0.600",
        "to",
        "0.800",
        "0.350",
        "3.00",
        "0.700",
        "-50.0",
    ]
    assert lines[4].startswith("foreground mean")
    assert len({len(line) for line in lines[:5]}) == 1
    end = lines.index("")
    assert lines[end + 1].split()[:5] == ["label", "n", "bias", "ml", "95"]
    assert [line.split()[:2] for line in lines[end + 3 : -1]] == [
        ["liver", "2"],
        ["spleen", "2"],
        ["rare", "2"],
    ]
    assert lines[-1].startswith("volumes, prediction minus reference")
    assert lines[5:end] == [
        "2 cases of 2 subjects, which are few; surface Dice at 2 mm",
        "empty masks: both, not counted; one, overlaps 0, infinite distances left out",
        "failures in up to 78 % of patients may be absent from 2 subjects, and then from every interval",
        "1 label occurs in no case",
        "HD95 leaves out cases where only prediction or reference is empty: spleen (1)",
    ]


def test_html_escapes_names() -> None:
    page = Table((row("a", "<script>", 1, 0.5, 1.0),))._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert page.count("<tr>") == 2  # one label needs no foreground mean


def test_an_empty_table_can_be_shown_and_written(tmp_path: Path) -> None:
    empty = Table(())
    assert "0 cases" in repr(empty)
    empty.write_summary(tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["foreground_mean"]["dice"] is None
