"""The report of a check: sorted findings as text and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg.check.cases.check_case import CheckedCase
from medseg.check.codes import SEVERITIES
from medseg.check.datasets.check_dataset import CheckedDataset
from medseg.check.finding import Finding
from medseg.runtime.formatting import pluralise, single_line
from medseg.runtime.machine import installed_version

FORMAT = 1
MOST_PER_CODE = 20


@dataclass(frozen=True)
class Report:
    """The findings of a check.

    Attributes:
        title: What was checked.
        findings: Findings, the worst first.
        cases: The checked cases.
        passed: What was checked without a finding, one sentence each, such as the self-test of a model.
        datasets: The checked datasets, including those of runs.
    """

    title: str
    findings: tuple[Finding, ...]
    cases: tuple[CheckedCase, ...] = ()
    passed: tuple[str, ...] = ()
    datasets: tuple[CheckedDataset, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(
            set(self.findings), key=lambda one: (one.rank, one.code, one.case, one.file, one.field)
        )
        object.__setattr__(self, "findings", tuple(ordered))

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings by severity, all severities included."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    @property
    def summary(self) -> str:
        """The counts in words."""
        counts = ", ".join(pluralise(count, severity) for severity, count in self.counts.items())
        cases = f" in {pluralise(len(self.cases), 'case')}" if self.cases else ""
        return f"{counts}{cases}"

    def text(self, most: int = MOST_PER_CODE) -> str:
        """Return the counts, then one line per finding.

        Args:
            most: Largest number of findings with the same code to list; 0 lists all.

        Returns:
            Lines of text.
        """
        lines = [f"{single_line(self.title)}: {self.summary}"]
        shown: Counter[str] = Counter()
        total = Counter(finding.code for finding in self.findings)
        for finding in self.findings:
            shown[finding.code] += 1
            if not most or shown[finding.code] <= most:
                lines.append(str(finding))
            elif shown[finding.code] == most + 1:
                left = total[finding.code] - most
                lines.append(f"{finding.severity} {finding.code}: {left} more (--all lists them)")
        return "\n".join([*lines, *self.passed])

    def plain(self) -> dict[str, Any]:
        """Return the report as plain values: counts, and the fields of each finding."""
        return {
            "format": FORMAT,
            "medseg": installed_version(),
            "checked": self.title,
            "cases": len(self.cases),
            "counts": self.counts,
            "findings": [
                {
                    "code": one.code,
                    "severity": one.severity,
                    "case": one.case or None,
                    "cases": list(one.concerned),
                    "file": one.file,
                    "field": one.field,
                    "found": one.found,
                    "expected": one.expected,
                    "remedy": one.remedy,
                }
                for one in self.findings
            ],
            "passed": list(self.passed),
        }

    def json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n"


def merged(reports: Sequence[Report]) -> Report:
    """Return one report of several paths.

    Args:
        reports: Reports, at least one.

    Returns:
        A report with all findings and cases.
    """
    if len(reports) == 1:
        return reports[0]
    return Report(
        ", ".join(dict.fromkeys(one.title for one in reports)),
        tuple(_located(finding, one) for one in reports for finding in one.findings),
        tuple(case for one in reports for case in one.cases),
        tuple(line for one in reports for line in one.passed),
        tuple(dataset for one in reports for dataset in one.datasets),
    )


def _located(finding: Finding, report: Report) -> Finding:
    """Return a finding with the path of its dataset in front of its file, because the merged report has several."""
    return replace(finding, file=f"{report.title}/{finding.file}") if report.datasets else finding
