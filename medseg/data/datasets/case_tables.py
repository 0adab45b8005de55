"""A dataset as a TSV table: one row a case, paths relative to the table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.names import folder_name, path_inside
from medseg.errors import DataError, did_you_mean
from medseg.labels.label_table import Labels

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
    header, rows = _rows(table)
    columns = _image_columns(header, table)
    cases = [_case(line, dict(zip(header, row, strict=True)), columns, table) for line, row in rows]
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


def _rows(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and every other row that is not empty with its line number."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: byte {error.start}: not UTF-8 text. Save it as UTF-8.") from None
    reader = csv.reader(io.StringIO(text), delimiter="\t")
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:  # a cell longer than any table's
        raise DataError(f"{table}: line {reader.line_num}: {error}. Mend the row.") from None
    if not rows:
        raise DataError(f"{table}: found an empty table. Write a header with case, image and label.")
    header = rows[0][1]
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{table}: line {line}: found {len(row)} cells, expected {len(header)}. "
                "Separate them by single tabs."
            )
    return header, rows[1:]


def _image_columns(header: list[str], table: Path) -> list[str]:
    """Names of the columns that hold images, in order, after a check of all names."""
    channels = [name for name in header if name.startswith(_CHANNEL) and name != _CHANNEL]
    known = {"case", "subject", "image", "label", "labels", "instances", *channels}
    for name in header:
        if name not in known or header.count(name) > 1:
            what = "doubled" if name in known else "unknown"
            raise DataError(
                f"{table}: {what} column {name!r}.{did_you_mean(name, sorted(known))} Expected case, subject, "
                "image or image_CHANNEL, label, labels and instances. Rename or remove it."
            )
    if "case" not in header or ("image" in header) == bool(channels):
        raise DataError(
            f"{table}: found columns {', '.join(header)}, expected case and either image or image_CHANNEL "
            "for each channel. Mend the header (tabs between the names)."
        )
    return channels or ["image"]


def _case(line: int, row: dict[str, str], columns: list[str], table: Path) -> Case:
    where = f"{table}: line {line}"
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
