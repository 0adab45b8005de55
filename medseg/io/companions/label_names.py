"""The names of a label map's values: from a table beside the file, or from the file's header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseg.errors import shown_text, warn_once
from medseg.io.files import NIFTI, stem_of, suffix_of
from medseg.io.nifti.nifti_label_names import nifti_label_names
from medseg.labels.colours import Colour
from medseg.labels.label_files import LARGEST_VALUE
from medseg.labels.label_table import Labels


def label_names_of(path: str | Path) -> Labels | None:
    """Return the labels that are known for the file of a label map.

    The first of these counts: a table with the name of the file and the suffix ``.tsv`` beside it, ``labels.tsv`` beside it,
    and the header of a NIfTI file, see `medseg.io.nifti.nifti_label_names`.

    Args:
        path: The file of a label map.

    Returns:
        The labels; None if nothing names them.

    Raises:
        DataError: ``labels.tsv`` or the file's own table is no valid table of labels.
    """
    path = Path(path)
    for table in (path.with_name(f"{stem_of(path)}.tsv"), path.with_name("labels.tsv")):
        if table.is_file():
            return Labels.from_tsv(table)
    names = nifti_label_names(path) if path.is_file() and suffix_of(path) in NIFTI else {}
    return _labels(names, path) if names else None


def _labels(names: Mapping[int, tuple[str, Colour | None]], path: Path) -> Labels:
    """Return a table; names that occur twice are made different by their value, and impossible values are left out."""
    kept = {
        value: (shown_text(name), colour)
        for value, (name, colour) in names.items()
        if 0 < value <= LARGEST_VALUE
    }
    if left_out := sorted(set(names) - set(kept) - {0}):
        warn_once(
            f"{path}: header: found names of the values {left_out[:5]}, expected values from 1 to {LARGEST_VALUE}; they are ignored."
        )
    seen: dict[str, int] = {"background": 0}
    colours: dict[str, Colour] = {}
    for value, (name, colour) in sorted(kept.items()):
        unique = name
        while unique in seen:
            unique = f"{unique} ({value})"
        seen[unique] = value
        if colour is not None:
            colours[unique] = colour
    return Labels.from_names(seen, colours)
