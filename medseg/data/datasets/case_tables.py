"""Datasets listed in a TSV or CSV table: one row per case, with paths relative to the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg.data.datasets.cases import AbsentChannels, Case, Dataset
from medseg.data.datasets.layout_registry import register_layout
from medseg.data.datasets.names import folder_name, path_inside
from medseg.errors import DataError
from medseg.labels.label_table import Labels
from medseg.storage.tsv import TsvTable, read_tsv

TABLE_NAME = "cases.tsv"
_TABLE_NAMES, _LABELS_NAMES, _CHANNELS_NAMES = (
    (f"{name}.tsv", f"{name}.csv") for name in ("cases", "labels", "channels")
)
_CHANNEL = "image_"
_NONE = ("", "na", "n/a", "nan", "none", "null")
"""Cells, in lower case, that say that a case has no such file or value."""


def is_case_table(path: Path) -> bool:
    """Return whether the path is a TSV or CSV file, or a folder with a ``cases.tsv`` or ``cases.csv``."""
    return path.suffix.lower() in (".tsv", ".csv") or _table_in(path, _TABLE_NAMES) is not None


@register_layout("table", recognise=is_case_table, lists_paths=True, lists_absent=True)
def read_table(
    path: Path, files_root: str | None = None, absent_channels: AbsentChannels = "refuse"
) -> Dataset:
    """Read a table of cases.

    Required columns are ``case`` and either ``image`` or one ``image_CHANNEL`` per channel; ``label``, ``instances``,
    ``label_probabilities``, ``subject``, ``labels`` and ``case_weight`` are optional. ``label_probabilities`` is a file
    with one channel per label for training with soft labels. ``labels`` lists the annotated labels of a case, separated by ``;`` or ``,``;
    an empty cell means all. ``case_weight`` says how often patches of
    a case are sampled in training; an empty cell means 1. An empty cell of a file, or ``NA`` or ``n/a``, means that the case has none. Other
    columns, such as an age, are reported and ignored unless their names resemble one of these. Names and values of labels
    are read from a ``labels.tsv`` next to the table. If there are only instances and no such file, the single class is
    called ``instance``. With a single column ``image``, the channel is called ``image``.

    Args:
        path: The table, tab-separated or with the suffix ``.csv`` comma-separated, or a folder with a ``cases.tsv`` or
            ``cases.csv``.
        files_root: Another folder that paths may point into.
        absent_channels: Whether empty cells of images are refused, or are channels that a case lacks (``"zeros"``).

    Returns:
        The dataset.

    Raises:
        DataError: A column is missing or misspelt, a row has more or fewer cells, a cell is empty (each with its line), or
            a path leaves the table's folder and `files_root`.
    """
    table = (_table_in(path, _TABLE_NAMES) or path / TABLE_NAME) if path.is_dir() else path
    read = read_tsv(table)
    columns = _image_columns(read)
    may_lack = absent_channels == "zeros"
    cases = [_case(read.where(row), row.cells, columns, table, files_root, may_lack) for row in read.rows]
    return Dataset(
        folder_name(table),
        table.parent,
        tuple(cases),
        _channel_names(table.parent, columns),
        labels_in_folder(table.parent, cases),
    )


def _channel_names(folder: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the channels that the columns name; a single column ``image`` can be named by ``channels.tsv``."""
    names = tuple(column.removeprefix(_CHANNEL) for column in columns)
    return channels_in_folder(folder, names) if columns == ["image"] else names


def _table_in(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the table of a folder, separated by tabs or commas; None if there is none.

    Raises:
        DataError: There are both.
    """
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{folder}: found {' and '.join(file.name for file in found)}, expected one of them. Remove the other one."
        )
    return found[0] if found else None


def channels_in_folder(folder: Path, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the channels in the ``channels.tsv`` or ``channels.csv`` of a folder.

    The table has one row per channel and the column ``name``. A channel called ``CT`` is treated as Hounsfield units.

    Args:
        folder: Folder of the dataset.
        default: Names without such a table, one per channel.

    Returns:
        One name per channel.

    Raises:
        DataError: The table cannot be read, has another number of channels, or names one twice or not at all.
    """
    path = _table_in(folder, _CHANNELS_NAMES)
    if path is None:
        return default
    table = read_tsv(path)
    table.check_columns(("name",), expected="name", ignore_others=True)
    names = tuple(row.cells["name"] for row in table.rows)
    if len(names) != len(default):
        raise DataError(
            f"{path}: name: found {len(names)} ({', '.join(names)}), expected {len(default)}, one per channel of the images. Correct the table."
        )
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{path}: name: found {', '.join(map(repr, names))}, expected a different name for each channel. Correct the table."
        )
    return names


def labels_in_folder(folder: Path, cases: Sequence[Case]) -> Labels | None:
    """Return the label table in the ``labels.tsv`` or ``labels.csv`` of a folder.

    Without such a file, the table has the single class ``instance`` if the cases have instance maps and no label maps; otherwise
    there is none.

    Args:
        folder: Folder of the dataset.
        cases: All cases of the dataset.

    Returns:
        The label table, or None.

    Raises:
        DataError: The ``labels.tsv`` cannot be read.
    """
    table = _table_in(folder, _LABELS_NAMES)
    if table is not None:
        return Labels.from_tsv(table)
    alone = all(case.label is None for case in cases) and any(case.instances is not None for case in cases)
    return Labels.from_names({"instance": 1}) if alone else None


def names_in(cell: str) -> tuple[str, ...] | None:
    """Return the names in a cell, separated by ``;`` or ``,``; None for an empty cell."""
    names = tuple(name.strip() for name in re.split("[;,]", cell) if name.strip())
    return names or None


def _image_columns(table: TsvTable) -> list[str]:
    """Return the columns that hold images, in order, after a check of all names."""
    channels = [name for name in table.columns if name.startswith(_CHANNEL) and name != _CHANNEL]
    expected = "case and either image or image_CHANNEL for each channel, and optionally label, instances, label_probabilities, subject, labels and case_weight"
    optional = (
        "image",
        *channels,
        "subject",
        "label",
        "labels",
        "instances",
        "label_probabilities",
        "case_weight",
    )
    table.check_columns(("case",), optional, expected=expected, ignore_others=True)
    if ("image" in table.columns) == bool(channels):
        raise DataError(
            f"{table.path}: found columns {', '.join(table.columns)}, expected {expected}, separated by {'commas' if table.path.suffix.lower() == '.csv' else 'tabs'}. Fix the header."
        )
    return channels or ["image"]


def _case(
    where: str, row: dict[str, str], columns: list[str], table: Path, files_root: str | None, may_lack: bool
) -> Case:
    row = {name: "" if name != "case" and cell.lower() in _NONE else cell for name, cell in row.items()}
    empty = [name for name in ("case", *columns) if not row[name]]
    absent = tuple(index for index, name in enumerate(columns) if not row[name])
    lacks_some = may_lack and bool(row["case"]) and len(absent) < len(columns)
    if empty and not lacks_some:
        raise DataError(f"{where}: {', '.join(empty)}: found an empty cell. Fill it, or remove the row.")

    def path(name: str) -> Path:
        return path_inside(table.parent, row[name], f"{where}: {name}", files_root)

    images = tuple(path(name) for name in columns if row[name])
    label, instances, probabilities = (
        path(name) if row.get(name) else None for name in ("label", "instances", "label_probabilities")
    )
    try:
        return Case(
            row["case"],
            images,
            label,
            row.get("subject", ""),
            instances,
            names_in(row.get("labels", "")),
            absent=absent,
            weight=_weight(row.get("case_weight", "")),
            probabilities=probabilities,
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _weight(cell: str) -> float:
    """Return the weight in a cell; 1 for an empty one."""
    try:
        return float(cell or 1)
    except ValueError:
        raise DataError(
            f"case_weight: found {cell!r}, expected a number such as 2. Correct the cell."
        ) from None
