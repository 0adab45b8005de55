"""A dataset as a TSV table: one row a case, paths relative to the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.names import folder_name, path_inside
from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.storage.tsv import TsvTable, read_tsv

TABLE_NAME = "cases.tsv"
LABELS_NAME = "labels.tsv"
_CHANNEL = "image_"


def read_table(path: Path) -> Dataset:
    """Read a table with the columns case and image (or image_CHANNEL for each channel), and perhaps label,
    instances, subject and labels.

    The column labels names the labels that were drawn in a case, with ``;`` or ``,`` between them; empty for all. An
    empty label or instances means that the case has none. Names and values of labels are read from ``labels.tsv``
    beside the table, where there is one; with instances alone and no such table, the one class is called
    ``instance``. With a single column ``image`` the channel is called ``image``.

    Raises:
        DataError: a missing or unknown column, a row with more or fewer cells, an empty cell (each with its
            line), or a path that leaves the table's folder.
    """
    table = path / TABLE_NAME if path.is_dir() else path
    read = read_tsv(table)
    columns = _image_columns(read)
    cases = [_case(read.where(row), row.cells, columns, table) for row in read.rows]
    return Dataset(
        folder_name(table),
        table.parent,
        tuple(cases),
        tuple(column.removeprefix(_CHANNEL) for column in columns),
        labels_beside(table.parent, cases),
    )


def labels_beside(folder: Path, cases: Sequence[Case]) -> Labels | None:
    """Labels of the ``labels.tsv`` in a folder, without it the one class ``instance`` of cases that have instance maps
    and no label map, else None.

    Raises:
        DataError: a ``labels.tsv`` that cannot be read.
    """
    table = folder / LABELS_NAME
    if table.is_file():
        return Labels.from_tsv(table)
    alone = all(case.label is None for case in cases) and any(case.instances is not None for case in cases)
    return Labels.from_names({"instance": 1}) if alone else None


def names_in(cell: str) -> tuple[str, ...] | None:
    """Names with ``;`` or ``,`` between them; None for an empty cell."""
    names = tuple(name.strip() for name in re.split("[;,]", cell) if name.strip())
    return names or None


def _image_columns(table: TsvTable) -> list[str]:
    """Return the columns that hold images, in order, after a check of all names."""
    channels = [name for name in table.columns if name.startswith(_CHANNEL) and name != _CHANNEL]
    expected = "case and either image or image_CHANNEL for each channel, and optionally label, instances, subject and labels"
    optional = ("image", *channels, "subject", "label", "labels", "instances")
    table.check_columns(("case",), optional, expected=expected)
    if ("image" in table.columns) == bool(channels):
        raise DataError(
            f"{table.path}: found columns {', '.join(table.columns)}, expected {expected}, separated by tabs. Fix the header."
        )
    return channels or ["image"]


def _case(where: str, row: dict[str, str], columns: list[str], table: Path) -> Case:
    empty = [name for name in ("case", *columns) if not row[name]]
    if empty:
        raise DataError(f"{where}: {', '.join(empty)}: found an empty cell. Fill it, or remove the row.")
    images = tuple(path_inside(table.parent, row[name], f"{where}: {name}") for name in columns)
    label, instances = (
        path_inside(table.parent, row[name], f"{where}: {name}") if row.get(name) else None
        for name in ("label", "instances")
    )
    try:
        annotated = names_in(row.get("labels", ""))
        return Case(row["case"], images, label, row.get("subject", ""), instances, annotated)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
