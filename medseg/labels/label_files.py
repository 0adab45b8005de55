"""The rows of a ``labels.tsv`` file; `medseg.labels.label_table.Labels` gives them their meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.errors import DataError
from medseg.labels.colours import Colour, colour_from_hex, colour_to_hex
from medseg.storage.tsv import read_tsv

RowKind = Literal["label", "region", "ignore"]
LARGEST_VALUE = 2**31 - 1
"""Largest value of int32, the largest integer type that all formats and tools support."""
_LONGEST_SHOWN = 40
_KINDS: tuple[RowKind, ...] = ("label", "region", "ignore")
_EXPECTED = (
    "expected tab-separated columns value, name and optionally colour (#rrggbb) and kind (label, ignore or "
    "region 1 2 3)"
)


@dataclass(frozen=True)
class LabelRow:
    """One row of a table of labels.

    Attributes:
        value: Value in label maps.
        name: Name of the label or region.
        colour: Display colour, or None if the file has none.
        kind: ``"label"``, ``"region"``, or ``"ignore"`` for the value of voxels to be ignored.
        members: Values of the labels in a region; empty for other kinds.
    """

    value: int
    name: str
    colour: Colour | None
    kind: RowKind = "label"
    members: tuple[int, ...] = ()

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> LabelRow:
        """Parse the cells of a row by column name.

        Args:
            cells: Content of each cell by column name.

        Returns:
            The row.

        Raises:
            ValueError: A cell has an unexpected content.
        """
        found, *members = (cells.get("kind") or "label").split()
        kind = next((kind for kind in _KINDS if kind == found), None)
        if kind is None or (kind == "region") != bool(members):
            raise ValueError(
                f"kind: found {_shortened(cells['kind'])}, expected label, ignore, or region and values such as region 1 2 3"
            )
        colour = colour_from_hex(cells["colour"]) if cells.get("colour") else None
        value = _value(cells.get("value") or cells.get("index") or "", "value")
        name = cells["name"].strip()
        if not name:
            raise ValueError("name: found an empty cell, expected a name")
        return cls(value, name, colour, kind, tuple(_value(member, "kind") for member in members))


def _value(text: str, field: str) -> int:
    """Return the value that digits stand for; `int` would also read underscores and values that no file holds."""
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > LARGEST_VALUE:
        raise ValueError(
            f"{field}: found {_shortened(text)}, expected a whole number from 0 to {LARGEST_VALUE}"
        )
    return int(text)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")


def label_rows_to_tsv(rows: Sequence[LabelRow]) -> str:
    """Return rows as the text of a ``labels.tsv`` file.

    The columns are ``value``, ``name`` and ``colour`` (``#rrggbb``). If there are regions or an ignore value, a column
    ``kind`` holds ``label``, ``ignore``, or ``region`` and the values of its labels, such as ``region 1 2 3``.

    Args:
        rows: Rows with colours.

    Returns:
        Text that ends in a newline.
    """
    has_kinds = any(row.kind != "label" for row in rows)
    # Names are written exactly, unlike the cells of `medseg.storage.tsv.to_tsv`, so that they can be compared later.
    lines = ["value\tname\tcolour" + ("\tkind" if has_kinds else "")]
    for row in rows:
        cells = [str(row.value), row.name, colour_to_hex(row.colour) if row.colour else ""]
        if has_kinds:
            cells.append(" ".join([row.kind, *map(str, row.members)]))
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def read_label_rows(path: Path) -> list[LabelRow]:
    """Read a table with the columns ``value`` (or ``index``) and ``name``, and optionally ``colour`` and ``kind``.

    Args:
        path: File that `label_rows_to_tsv` describes; a row with an empty ``kind`` is a label.

    Returns:
        The rows in the order of the file. Names are unique among labels and among regions, and at most one row has
        the kind ``ignore``.

    Raises:
        DataError: The file cannot be read, or a row is not valid.
    """
    table = read_tsv(path)
    if "name" not in table.columns or not {"value", "index"} & set(table.columns):
        raise DataError(f"{path}: found columns {', '.join(table.columns)}, {_EXPECTED}. Fix the header.")
    rows: list[LabelRow] = []
    for row in table.rows:
        try:
            rows.append(LabelRow.from_cells(row.cells))
        except ValueError as error:
            raise DataError(f"{table.where(row)}: {error}. Fix the row.") from None
    for kind in ("label", "region"):
        names = [row.name for row in rows if row.kind == kind]
        if len(set(names)) < len(names):
            name = max(names, key=names.count)
            raise DataError(
                f"{path}: found the name {name!r} twice, expected unique names. Rename one of them."
            )
    ignored = sum(row.kind == "ignore" for row in rows)
    if ignored > 1:
        raise DataError(f"{path}: found {ignored} rows of kind ignore, expected one. Remove the others.")
    lines: dict[int, int] = {}
    for found, source in zip(rows, table.rows, strict=True):
        if found.kind != "region" and lines.setdefault(found.value, source.line) != source.line:
            raise DataError(
                f"{table.where(source)}: value: found {found.value} again, which line {lines[found.value]} has, expected unique "
                "values. Change one of them."
            )
    return rows
