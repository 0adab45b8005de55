from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from medseg.evaluation.calibration.reliability import Bin
from medseg.evaluation.statistics.agreement import Agreement
from medseg.report.svg_plots import bland_altman, line_plot, reliability_plot, strip_plot, ticks

NS = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_a_strip_plot_has_a_named_point_per_case_in_the_order_of_its_values() -> None:
    values = {"liver": {"a": 0.2, "b": 0.9, "c": float("nan")}, "<spleen>": {"a": 0.5}}
    root = parsed(strip_plot(values, {"liver": (255, 0, 0)}, low=0, high=1))
    points = root.findall("circle")
    assert [point.find("title").text for point in points] == ["a: 0.2", "b: 0.9", "a: 0.5"]
    x = [float(point.get("cx")) for point in points]
    assert x[0] < x[2] < x[1]
    assert points[0].get("fill") == "rgb(255, 0, 0)"
    assert "<spleen>" in [text.findtext("title") for text in root.findall("text")]


def test_a_label_without_values_has_a_row_and_no_point() -> None:
    root = parsed(strip_plot({"rare": {"a": float("nan")}}, {}, low=0, high=1))
    assert root.findall("circle") == []


def test_bland_altman_draws_the_mean_and_the_limits_of_agreement() -> None:
    predicted, reference = np.array([11.0, 19.0, 32.0]), np.array([10.0, 20.0, 30.0])
    agreement = Agreement.of(predicted, reference, ["a", "b", "c"])
    root = parsed(bland_altman(["a", "b", "c"], predicted, reference, agreement, (0, 0, 255)))
    assert len(root.findall("rect")) == 3
    difference = predicted - reference
    lines = {line.find("title").text for line in root.findall("line") if line.find("title") is not None}
    mean, sd = difference.mean(), difference.std(ddof=1)
    assert lines == {
        f"mean: {mean:.4g}",
        f"+1.96 sd: {mean + 1.96 * sd:.4g}",
        f"−1.96 sd: {mean - 1.96 * sd:.4g}",
    }
    assert [point.find("title").text for point in root.findall("circle")] == ["a: +1", "b: -1", "c: +2"]


def test_bland_altman_of_equal_volumes_can_be_drawn() -> None:
    equal = Agreement.of(np.ones(2), np.ones(2), ["a", "b"])
    parsed(bland_altman(["a", "b"], np.ones(2), np.ones(2), equal, (0, 0, 255)))


def test_lines_rise_where_values_do() -> None:
    svg = line_plot({"loss": ([1, 2, 3], [3.0, 2.0, 1.0]), "Dice": ([2], [0.5])}, across="step")
    (line,) = parsed(svg).findall("polyline")[:1]
    y = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert y == sorted(y)
    assert len(parsed(svg).findall("circle")) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (1e-4, 9e-4), (5, 5), (0, 250_000)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert 1 <= len(found) <= 12
    steps = {f"{b - a:.3g}" for a, b in itertools.pairwise(found)}
    assert all(re.match(r"[125]", step.lstrip("0.")) for step in steps)


def test_a_reliability_diagram_has_a_point_per_bin_at_its_place() -> None:
    bins = (Bin(0.0, 0.5, 0.25, 0.3, 0.2), Bin(0.5, 1.0, 0.75, 0.9, 0.6))
    svg = reliability_plot(bins)
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    scale = (points[1][0] - points[0][0]) / (0.9 - 0.3)
    assert points[1][0] == pytest.approx(50 + 0.9 * scale, abs=0.2)
    assert points[0][1] - points[1][1] == pytest.approx(248 * 0.4, abs=0.2)
    assert "probability 0.900, right 0.600, 75.0% of the voxels" in svg
