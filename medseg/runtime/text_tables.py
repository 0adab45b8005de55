"""Tables as aligned text and as HTML; `medseg.storage.tsv` writes tab-separated values."""

from __future__ import annotations

import html
from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], alignment: str = "") -> list[str]:
    """Align the cells of a table in columns.

    Args:
        rows: Cells of each row, the same number in all rows.
        alignment: One letter per column, ``l`` or ``r``; by default the first column is left-aligned and the others
            are right-aligned.

    Returns:
        One line of text per row, with columns padded to equal width and separated by two spaces.

    >>> align_columns([("liver", "0.95"), ("spleen", "0.9")])
    ['liver   0.95', 'spleen   0.9']
    """
    if not rows:
        return []
    sides = alignment or "l" + "r" * (len(rows[0]) - 1)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]


def text_table(rows: Sequence[Sequence[str]], notes: Sequence[str] = (), *, total: bool = False) -> str:
    """Format a table as aligned text.

    Args:
        rows: The header and the rows of the body.
        notes: Lines below the table.
        total: Whether the last row is a total, which a rule separates from the others.

    Returns:
        Lines of text with a rule below the header, without a line break at the end.

    >>> print(text_table([("label", "Dice"), ("liver", "0.95")], notes=["1 case"]))
    label  Dice
    -----------
    liver  0.95
    1 case
    """
    lines = align_columns(rows)
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join([*lines, *notes])


def html_table(rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Format a table as HTML; the first column holds the names of the rows.

    Args:
        rows: The header and the rows of the body.
        notes: Paragraphs below the table.

    Returns:
        A ``<table>`` element and one ``<p>`` element per note, with all text escaped.
    """
    header, *body = rows
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join(
        f"<tr><th>{html.escape(row[0])}</th>"
        + "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in body
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{below}"
