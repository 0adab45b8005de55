"""What all reports share: the viewers of their cases, and the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from medseg.errors import DataError
from medseg.evaluation.statistics.bootstrap import Interval
from medseg.report.report_case import ReportCase
from medseg.runtime.machine import installed_version
from medseg.runtime.progress import Progress
from medseg.storage.atomic import write_text
from medseg.viz.html_templates import render_html
from medseg.viz.viewer.viewer_page import (
    SHELL_CASE,
    SHELL_TITLE,
    embedded_json,
    script_hash_source,
    viewer_scripts,
    viewer_shell,
)

MAX_BYTES = 28 * 10**6
_MOST_OF_A_CASE = 4 * 10**6
_FOLDER = Path(__file__).parent / "templates"


class ReportPage:
    """A report while it is written: it collects the viewers of its cases.

    Args:
        num_cases: Number of cases, which share the size of the page.
        max_bytes: Size of the page; volumes are reduced until they fit.
        progress: Called with the number of cases done, their total number and a word.
    """

    def __init__(self, num_cases: int, max_bytes: int = MAX_BYTES, progress: Progress | None = None) -> None:
        self._each = min(_MOST_OF_A_CASE, (max_bytes - len(viewer_shell())) // max(num_cases, 1))
        self._num_cases, self._progress = num_cases, progress
        self._views: list[str] = []
        self._done = 0

    def add(self, case: ReportCase) -> dict[str, Any]:
        """Read a case and add its viewer to the page.

        Args:
            case: The case.

        Returns:
            For the template: ``thumbnail``, ``view`` (the number of the viewer, None without one), ``problem`` and
            ``notes``.
        """
        found = case.page_content(self._each)
        view = None
        if found["viewer"] is not None:
            view = len(self._views)
            self._views.append(embedded_json(found["viewer"]))
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._num_cases, f"report: {case.id}")
        return {
            "thumbnail": found["thumbnail"],
            "problem": found["problem"],
            "view": view,
            "notes": list(case.notes),
        }

    def with_viewers(
        self, rows: Iterable[Mapping[str, Any]], cases: Iterable[ReportCase]
    ) -> list[dict[str, Any]]:
        """Add the viewers of cases to the page, in the order of its rows.

        Args:
            rows: Values of each row for the template, with the ``id`` of its case.
            cases: Where the volumes of the cases are; a row without a case here has no viewer.

        Returns:
            The rows with what `add` returns for their cases.
        """
        sources = {case.id: case for case in cases}
        return [{**row, **self.add(sources.get(row["id"], ReportCase(row["id"])))} for row in rows]

    def write(self, path: str | Path, template: str, **values: Any) -> None:
        """Write the page atomically.

        Args:
            path: The HTML file.
            template: File name of the template, in the folder ``templates``.
            **values: Values for the template.

        Raises:
            DataError: The file cannot be written.
        """
        script = (_FOLDER / "report.js").read_text(encoding="utf-8")
        shell = {"page": viewer_shell(), "title": SHELL_TITLE, "case": SHELL_CASE} if self._views else None
        scripts = (script, *(viewer_scripts() if self._views else ()))
        page = render_html(
            _FOLDER / template,
            {"number": format_figure, "p": p_value, "sortable": sortable},
            version=installed_version(),
            shell=embedded_json(shell) if shell else "",
            views=self._views,
            script=script,
            hashes=[script_hash_source(one) for one in scripts],
            **values,
        )
        write_text(path, page)


def remove_outdated_page(path: str | Path, kind: Literal["Evaluation", "Comparison"]) -> bool:
    """Remove the page of earlier tables, whose figures are no longer those of the tables next to it.

    Args:
        path: The HTML file, which need not exist.
        kind: First word of the lead of the page; files that are no such page are kept.

    Returns:
        Whether a page was removed.

    Raises:
        DataError: The file cannot be removed.
    """
    path = Path(path)
    try:
        if not path.is_file() or f'<p class="lead">{kind} by medseg '.encode() not in path.read_bytes():
            return False
        path.unlink()
    except OSError as error:
        raise DataError(
            f"{path}: found the page of earlier tables, which cannot be removed ({error.strerror}). Remove it."
        ) from None
    return True


def format_figure(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number as the page shows it.

    Args:
        value: The number; NaN and None are unknown.
        digits: Digits after the decimal point.
        sign: Whether positive numbers have a sign.

    Returns:
        Text; a dash for an unknown number.

    Examples:
        >>> format_figure(0.12345), format_figure(-2.0, 1, True), format_figure(-0.001, 2), format_figure(None)
        ('0.123', '−2.0', '0.00', '–')
        >>> format_figure(float("inf")), format_figure(float("-inf"))
        ('∞', '−∞')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}".replace(
        "-", "−"
    )  # no negative zero


def format_interval(interval: Interval, digits: int = 3, *, sign: bool = False) -> str:
    """Format both ends of an interval.

    Args:
        interval: The interval.
        digits: Digits after the point.
        sign: Whether positive numbers get a plus sign.

    Returns:
        Such as "0.81 to 0.92"; "unknown" if the ends are not known.
    """
    if math.isnan(interval.low):
        return "unknown"
    return f"{format_figure(interval.low, digits, sign)} to {format_figure(interval.high, digits, sign)}"


def p_value(value: float) -> str:
    """Return a p value as the page shows it.

    Args:
        value: The p value; NaN is unknown.

    Returns:
        Text of four digits; small values are not shown as 0.

    Examples:
        >>> p_value(0.01234), p_value(1e-6), p_value(float("nan"))
        ('0.0123', '< 0.0001', '–')
    """
    return "< 0.0001" if value < 0.0001 else format_figure(value, 4)


def sortable(value: float) -> str:
    """Return a number as JavaScript reads it.

    Args:
        value: The number; NaN is unknown.

    Returns:
        Text; empty for an unknown number.

    Examples:
        >>> sortable(0.5), sortable(float("-inf")), sortable(float("nan"))
        ('0.5', '-Infinity', '')
    """
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return "" if math.isnan(value) else f"{value:.6g}"
