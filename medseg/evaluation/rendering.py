"""Tables as text and HTML, whatever they hold."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np


def as_text(cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Aligned columns under a header and a rule, and notes below; the first column is flush left."""
    header, *body = cells
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *body)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*(line.rstrip() for line in lines), *notes])


def as_html(cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The same as an HTML table, escaped."""
    header, *body = cells
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join(
        f"<tr><th>{html.escape(row[0])}</th>"
        + "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in body
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{below}"


def finite(value: float) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return value if np.isfinite(value) else None


def installed_version() -> str:
    """medseg's version, for files that are kept."""
    try:
        return version("medseg")
    except PackageNotFoundError:  # used from a source folder that is not installed
        return "unknown"
