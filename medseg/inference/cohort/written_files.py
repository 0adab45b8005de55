"""The files that a prediction consists of: a label map and its companions."""

from __future__ import annotations

from pathlib import Path

from medseg.io.companions.instance_files import instance_map_path, instance_table_path
from medseg.io.files import stem_of


def probabilities_path(target: Path) -> Path:
    """Return the file for the probabilities that belong to a label map."""
    return target.with_name(f"{stem_of(target)}_probabilities.nii")


def written_files(target: Path, *, instances: bool, probabilities: bool) -> list[Path]:
    """Return the label map and all files that are written with it.

    Args:
        target: The label map.
        instances: Whether ``NAME_instances`` and its table are written, too.
        probabilities: Whether ``NAME_probabilities.nii`` is written, too.

    Returns:
        The files, the label map first.
    """
    files = [target]
    if instances:
        instance_map = instance_map_path(target)
        files += [instance_map, instance_table_path(instance_map)]
    if probabilities:
        files.append(probabilities_path(target))
    return files
