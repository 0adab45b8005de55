"""The page of a check: one HTML file that runs no code and loads no other file.

The text and layout are in the template ``check_page.html.j2``; this module computes the values that it shows.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

from medseg.check.cases.check_case import CheckedCase
from medseg.check.check_report import Report
from medseg.check.codes import KINDS
from medseg.check.finding import Finding
from medseg.runtime.machine import installed_version
from medseg.storage.atomic import write_text
from medseg.viz.html_templates import render_html
from medseg.volumes.plausible import format_dimensions

_TEMPLATE = Path(__file__).with_name("check_page.html.j2")


def write_page(report: Report, path: str | Path) -> None:
    """Write the page of a check, atomically: counts, findings by code, and every case, those with findings first.

    Args:
        report: The report; its cases have images if they were requested.
        path: The HTML file.

    Raises:
        DataError: The file cannot be written.
    """
    groups = [
        (KINDS[code], list(findings)) for code, findings in groupby(report.findings, lambda one: one.code)
    ]
    page = render_html(
        _TEMPLATE,
        title=report.title,
        version=installed_version(),
        counts=report.counts,
        groups=groups,
        passed=report.passed,
        cases=_cases(report),
    )
    write_text(path, page + "\n")


def _cases(report: Report) -> list[dict[str, Any]]:
    """Return what the page shows of each case: the worst first, then those with most findings, then by id."""
    of_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        for case in finding.concerned:
            of_case[case].append(finding)

    def place(case: CheckedCase) -> tuple[int, int, str]:
        own = of_case[case.id]
        return min((one.rank for one in own), default=3), -len(own), case.id

    return [_shown(case, of_case[case.id]) for case in sorted(report.cases, key=place)]


def _shown(case: CheckedCase, findings: list[Finding]) -> dict[str, Any]:
    grid = case.grid
    return {
        "id": case.id,
        "image": base64.b64encode(case.png).decode(),
        "size": "" if grid is None else f"{format_dimensions(grid.shape)}, {grid.axcodes}",
        "severity": findings[0].severity if findings else "",
        "codes": list(dict.fromkeys(finding.code for finding in findings)),
    }
