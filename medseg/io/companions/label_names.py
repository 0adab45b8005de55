"""The names of a label map's values: from a table next to the file, or from the file's header."""

from __future__ import annotations

from pathlib import Path

from medseg.io.files import NIFTI, stem_of, suffix_of
from medseg.io.nifti.nifti_label_names import nifti_label_names
from medseg.io.segmentation_files import segmentation_kind, segmentation_names
from medseg.labels.label_table import Labels
from medseg.labels.segments import unique_labels


def label_names_of(path: str | Path) -> Labels | None:
    """Return the labels that are known for the file of a label map.

    The first of these counts: a table ``NAME.tsv`` or ``NAME_labels.tsv`` next to the file ``NAME``, ``labels.tsv`` next to it,
    and what the file itself holds: the segments of a segmentation of DICOM or 3D Slicer, or the header of a NIfTI file, see
    `medseg.io.nifti.nifti_label_names`.

    Args:
        path: The file of a label map.

    Returns:
        The labels; None if nothing names them.

    Raises:
        DataError: ``labels.tsv`` or the file's own table is no valid table of labels.
    """
    path = Path(path)
    for name in (f"{stem_of(path)}.tsv", f"{stem_of(path)}_labels.tsv", "labels.tsv"):
        table = path.with_name(name)
        if table.is_file():
            return Labels.from_tsv(table)
    if path.exists() and (kind := segmentation_kind(path)):
        found = segmentation_names(path, kind)
        return found if found.foreground else None
    names = nifti_label_names(path) if path.is_file() and suffix_of(path) in NIFTI else {}
    return unique_labels(names, str(path)) if names else None
