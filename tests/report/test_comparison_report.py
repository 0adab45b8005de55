from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medseg.evaluation.cross_validation.compare_runs import compare_scores
from medseg.evaluation.cross_validation.run_scores import RunScores
from medseg.report.comparison_report import write_comparison_report
from medseg.report.report_case import ReportCase
from medseg.viz.viewer.viewer_case import ViewerCase
from tests.report.test_evaluation_report import cells, volumes

EVIL = '<script>alert("x")</script>'


def scores(name: str, shift: float) -> RunScores:
    random = np.random.default_rng(0)
    dice = random.beta(9, 2, (12, 2)) - 0.1 + shift
    if shift:
        dice += random.normal(0, 0.01, dice.shape)
    return RunScores((name,), dice, ("liver", EVIL), {f"case_{n:02}": f"s{n}" for n in range(12)})


def rows_of(page: str, start: str) -> list[list[str]]:
    table = page[page.index(start) :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    return [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]


def p_of(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def test_every_figure_is_that_of_the_comparison(tmp_path: Path) -> None:
    comparison = compare_scores([scores("runs/a", 0.0), scores("runs/b", 0.03)])
    write_comparison_report(tmp_path / "a.html", comparison)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    best, other = comparison.best, comparison.runs[0]
    first, second = rows_of(page, 'id="runs"')
    assert first == [
        "runs/b",
        f"{best.mean:.4f}",
        str(best.interval),
        "",
        "",
        f"{100 * best.share_first:.0f} %",
    ]
    assert second[3] == f"{other.difference:+.4f}".replace("-", "−")
    labels = rows_of(page, 'class="labels"')
    for row, found in zip(labels, other.by_label, strict=True):
        assert row[1:3] == ["12", f"{found.mean:+.4f}".replace("-", "−")]
        assert row[4:8] == [
            str(found.wins),
            str(found.losses),
            f"{found.permutation:.4f}",
            f"{found.holm:.4f}",
        ]
    assert page.count("<circle") == 24
    assert "few subjects" in page
    assert (
        "Failures in up to 22 % of patients may be absent from 12 subjects, and then from every interval."
        in page
    )


def test_names_cannot_become_code(tmp_path: Path) -> None:
    write_comparison_report(tmp_path / "a.html", compare_scores([scores(EVIL, 0.0), scores("b", 0.03)]))
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;" in page


def test_cases_with_the_largest_difference_between_runs_come_first_and_have_viewers(tmp_path: Path) -> None:
    comparison = compare_scores([scores("runs/a", 0.0), scores("runs/b", 0.03)])
    image, predicted, reference = volumes(1)
    case = sorted(comparison.scores[0].subjects)[0]
    maps = {"a": predicted, "b": predicted, "reference": reference}
    sources = [ReportCase(case, lambda: ViewerCase(case, image, maps))]
    write_comparison_report(tmp_path / "a.html", comparison, sources)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    header, *rows = cells(page, "cases")
    assert header[2:] == ["runs/a", "runs/b", "range"]
    means = {
        name: [float(np.nanmean(one.values[place])) for one in comparison.scores]
        for place, name in enumerate(sorted(comparison.scores[0].subjects))
    }
    expected = sorted(means, key=lambda name: (-abs(means[name][0] - means[name][1]), name))
    assert [row[1][:7] for row in rows] == expected
    for row in rows:
        assert row[2:4] == [f"{value:.4f}" for value in means[row[1][:7]]]
    assert page.count('class="open"') == 1
    assert page.count("no image") == len(rows) - 1
