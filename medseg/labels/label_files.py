"""The rows of a ``labels.tsv`` file; `medseg.labels.label_table.Labels` gives them their meaning."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.errors import DataError
from medseg.labels.colours import Colour, colour_from_hex, colour_to_hex

RowKind = Literal["label", "region", "ignore"]
_KINDS: tuple[RowKind, ...] = ("label", "region", "ignore")


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
            KeyError: A column is missing.
        """
        found, *members = (cells.get("kind") or "label").split()
        kind = next((kind for kind in _KINDS if kind == found), None)
        if kind is None or (kind == "region") != bool(members):
            raise ValueError(f"kind {cells.get('kind')!r}")
        colour = colour_from_hex(cells["colour"]) if cells.get("colour") else None
        value = int(cells.get("value") or cells["index"])
        return cls(value, cells["name"].strip(), colour, kind, tuple(map(int, members)))


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}). Give a table of labels.") from None
    try:
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [LabelRow.from_cells(cells) for cells in table]
        for kind in ("label", "region"):
            names = [row.name for row in rows if row.kind == kind]
            if len(set(names)) < len(names):
                raise ValueError(f"found the name {max(names, key=names.count)!r} twice")
        ignored = sum(row.kind == "ignore" for row in rows)
        if ignored > 1:
            raise ValueError(f"found {ignored} rows of kind ignore, expected one")
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: {error}: expected tab-separated columns value, name and optionally colour (#rrggbb) and kind "
            "(label, ignore or region 1 2 3). Fix the header or the row."
        ) from None
    return rows
