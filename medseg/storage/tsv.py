"""Tables of tab-separated or comma-separated values, read strictly and written alike.

A table is UTF-8 text with a header. Cells are separated by single tabs, and a quotation mark is an ordinary
character, so a cell holds neither tabs nor line breaks. Empty lines are skipped. In a ``.csv`` file, commas separate the
cells, and quotation marks enclose cells that contain commas.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import DataError, did_you_mean, shown_text, warn_once

MAX_BYTES = 128 * 2**20  # a million rows; larger files take long and a multiple of their size in memory
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


_MISSPELT = 0.78  # ``lable`` resembles ``label`` by 0.8, but ``age`` resembles ``image`` by 0.75


@dataclass(frozen=True)
class TsvRow:
    """One row of a table.

    Attributes:
        line: Line in the file, from 1.
        cells: Text by column, without surrounding white space.
    """

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class TsvTable:
    """The columns and rows of a table.

    Attributes:
        path: The file.
        columns: Names of the columns, in order.
        rows: Rows below the header, in order.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[TsvRow, ...]

    def where(self, row: TsvRow) -> str:
        """Return the place of a row, for messages: ``cases.tsv: line 3``."""
        return f"{self.path}: line {row.line}"

    def check_columns(
        self,
        required: Sequence[str],
        optional: Collection[str] = (),
        *,
        expected: str = "",
        renamed: Mapping[str, str] | None = None,
        ignore_others: bool = False,
    ) -> None:
        """Raise unless the table has the columns that it should have.

        Args:
            required: Columns that must be there.
            optional: Columns that may be there.
            expected: Words for the expected columns; their names if empty.
            renamed: New names of columns by their old names.
            ignore_others: Whether other columns are reported and ignored, unless their names resemble a known one.

        Raises:
            DataError: A column is missing, unknown or was renamed.
        """
        words = expected or " ".join(
            [", ".join(required), *([f"and optionally {', '.join(optional)}"] if optional else [])]
        )
        ignored = []
        for name in self.columns:
            if renamed and name in renamed:
                raise DataError(f"{self.path}: column {name!r}: renamed to {renamed[name]!r}. Rename it.")
            if name not in required and name not in optional:
                hint = did_you_mean(name.lower(), [*required, *optional], _MISSPELT if ignore_others else 0.6)
                if ignore_others and not hint:
                    ignored.append(repr(name))
                    continue
                raise DataError(
                    f"{self.path}: unknown column {name!r}.{hint} Expected {words}. Rename or remove it."
                )
        if not set(required) <= set(self.columns):
            raise DataError(
                f"{self.path}: found columns {', '.join(self.columns) or 'none'}, expected {words}, separated by {'commas' if self.path.suffix.lower() == '.csv' else 'tabs'}. "
                "Fix the header."
            )
        if ignored:
            warn_once(
                f"{self.path}: columns: found {', '.join(ignored)}, expected {words}. They are ignored; remove them, or rename them "
                "if they are misspelt."
            )


def read_tsv(path: str | Path) -> TsvTable:
    """Read a table of tab-separated values, or of comma-separated ones from a ``.csv`` file.

    Args:
        path: UTF-8 file, with or without a byte order mark.

    Returns:
        The columns and rows; cells without white space at either end, empty lines left out.

    Raises:
        DataError: The file cannot be read, is larger than `MAX_BYTES` or empty, is not UTF-8 or holds control characters; a column occurs twice; a row has more or fewer
            cells than the header.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(
                f"{path}: found {size:,} bytes, expected at most {MAX_BYTES:,}, as tables have. Give the right file."
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read: byte {error.start}: not UTF-8 text. Save it as UTF-8."
        ) from None
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise DataError(
            f"{path}: line {line}: found the control character {control[0]!r}, expected text. Copy the file again, or remove it."
        )
    commas = path.suffix.lower() == ".csv"
    reader = (
        csv.reader(io.StringIO(text, newline=""), strict=True)
        if commas
        else csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:  # a cell longer than any sensible one
        raise DataError(f"{path}: line {reader.line_num}: {error}. Fix the row.") from None
    if not lines:
        raise DataError(f"{path}: found an empty table, expected a header and rows. Write a header.")
    columns = lines[0][1]
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{path}: doubled column {name!r}. Rename or remove one.")
    for line, row in lines[1:]:
        if len(row) != len(columns):
            raise DataError(
                f"{path}: line {line}: found {len(row)} cells, expected {len(columns)}. Separate them by {'commas' if commas else 'single tabs'}."
            )
    return TsvTable(
        path,
        tuple(columns),
        tuple(TsvRow(line, dict(zip(columns, row, strict=True))) for line, row in lines[1:]),
    )


def to_tsv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    r"""Format a table as text that `read_tsv` reads.

    Args:
        columns: Names of the columns.
        rows: Cells of each row. Floats get six significant digits (``nan`` and ``inf`` as such), None becomes an
            empty cell, tabs and line breaks in text become spaces, and other control characters are written as escapes.

    Returns:
        The header and one line per row, each with a line break at its end.

    >>> to_tsv(["case", "dice"], [["a", 0.25], ["b", float("nan")]])
    'case\tdice\na\t0.25\nb\tnan\n'
    """
    return "".join("\t".join(map(_cell, row)) + "\n" for row in (columns, *rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else re.sub(r"[\t\r\n]+", " ", str(value))
    return _CONTROL.sub(lambda found: shown_text(found[0]), text)
