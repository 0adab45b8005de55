"""Instance maps on disk: ids in an image file, and a table of label values and scores next to it.

``nuclei_7.png`` (or ``.nii.gz``, any format of label maps) holds an id per voxel, 0 for background; a table
``nuclei_7.tsv`` may hold the columns id, label_value and score. Without the table, every id is an instance of
the label with value 1 and has score 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.io.files import read_labels, stem_of, suffix_of, write
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.storage.atomic import write_text
from medseg.storage.tsv import read_tsv, to_tsv
from medseg.volumes.volume import Volume

_COLUMNS = ("id", "label_value", "score")


@dataclass(frozen=True)
class InstanceFile:
    """The content of an instance map and its table.

    Attributes:
        ids: Volume `(1, X, Y, Z)` of instance ids.
        values: Label value by id; None if all instances belong to one label.
        scores: Score by id; None if there are no scores.
    """

    ids: Volume
    values: dict[int, int] | None = None
    scores: dict[int, float] | None = None


def read_instances(path: str | Path, *, orientation_from: OrientationFrom | None = None) -> InstanceFile:
    """Read an instance map, and its table if there is one.

    Args:
        path: The instance map.
        orientation_from: As for `medseg.read_labels`.

    Returns:
        The ids per voxel, with the label values and scores of the table if there is one.

    Raises:
        DataError: The file is no label map, or the table has unknown columns, duplicate ids, ids or label values below 1,
            scores that are not finite, or cells that are not numbers.
    """
    path = Path(path)
    ids = read_labels(path, orientation_from=orientation_from)
    table = instance_table_path(path)
    return InstanceFile(ids, *_read_table(table)) if table.is_file() else InstanceFile(ids)


def write_instances(instances: Instances, like: Volume, path: str | Path, labels: Labels) -> None:
    """Write an instance map on the grid of `like`, and its table of label values and scores.

    Args:
        instances: Instances in a volume `(X, Y, Z)`. Where they overlap, the higher score wins; instances that are
            covered completely are left out of the table.
        like: Volume with the grid and header to write.
        path: The instance map to create or replace, in a format of `medseg.write`.
        labels: Values of the classes.

    Raises:
        DataError: The shape is not that of `like`, or a file cannot be written.
    """
    if instances.shape != like.grid.shape:
        raise DataError(
            f"{path}: found instances in an image of {instances.shape}, expected {like.grid.shape}. Give the volume "
            "that they were found in."
        )
    ids = instances.to_map()
    present = np.unique(ids)
    rows = [
        (k, labels.values[instances.classes[k - 1]], float(instances.scores[k - 1]))
        for k in present[present > 0]
    ]
    stored = ids.astype(np.uint16) if len(instances) < 1 << 16 else ids
    write(like.with_data(stored[None], kind="label"), path)
    write_text(instance_table_path(Path(path)), to_tsv(_COLUMNS, rows))


def instance_table_path(path: Path) -> Path:
    """Return the path of the table of an instance map.

    Args:
        path: The instance map.

    Returns:
        ``CASE.tsv`` in the same folder; the file need not exist.

    >>> instance_table_path(Path("case.nii.gz")).name
    'case.tsv'
    """
    return path.with_name(f"{stem_of(path)}.tsv")


def instance_map_path(label_map: Path) -> Path:
    """Return the path of the instance map that belongs to a predicted label map.

    Args:
        label_map: The label map.

    Returns:
        ``CASE_instances`` with the same suffix, in the same folder; the file need not exist.

    >>> instance_map_path(Path("case.nii.gz")).name
    'case_instances.nii.gz'
    """
    return label_map.with_name(f"{stem_of(label_map)}_instances{suffix_of(label_map)}")


def _read_table(path: Path) -> tuple[dict[int, int] | None, dict[int, float] | None]:
    table = read_tsv(path)
    table.check_columns(("id",), ("label_value", "score"), renamed={"class": "label_value"})
    values: dict[int, int] = {}
    scores: dict[int, float] = {}
    for row in table.rows:
        try:
            number = int(row.cells["id"])
            value = int(row.cells.get("label_value", 1))
            score = float(row.cells.get("score", 1))
        except ValueError:
            found = ", ".join(row.cells.values())
            raise DataError(f"{table.where(row)}: found {found}, expected numbers. Fix the row.") from None
        if number in scores:
            raise DataError(
                f"{table.where(row)}: found id {number} again, expected each id once. Fix the row."
            )
        if number < 1 or value < 1:
            name, wrong = ("id", number) if number < 1 else ("label value", value)
            raise DataError(f"{table.where(row)}: found {name} {wrong}, expected at least 1. Fix the row.")
        if not math.isfinite(score):
            raise DataError(
                f"{table.where(row)}: found score {score}, expected a finite number. Fix the row."
            )
        values[number], scores[number] = value, score
    return (values if "label_value" in table.columns else None), (
        scores if "score" in table.columns else None
    )
