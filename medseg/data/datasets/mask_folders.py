"""Datasets of folders with paired files: ``images/ID.png`` with ``masks/ID.png`` or ``segmentations/ID.png``."""

from __future__ import annotations

from pathlib import Path

from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.image_folders import IMAGES, read_paired_folders
from medseg.data.datasets.layout_registry import register_layout
from medseg.errors import DataError

MASKS = ("masks", "segmentations")
"""Names of the folder of masks."""


def is_mask_folder(path: Path) -> bool:
    """Return whether a folder contains ``images`` and one of `MASKS`."""
    return (path / IMAGES).is_dir() and any((path / name).is_dir() for name in MASKS)


@register_layout("masks", recognise=is_mask_folder)
def read_mask_folder(path: Path) -> Dataset:
    """Read images with the masks of the same name; see `read_paired_folders`.

    Args:
        path: Folder that contains ``images`` and one of `MASKS`.

    Returns:
        The dataset.

    Raises:
        DataError: There are several folders of masks, or `read_paired_folders` raises it.
    """
    found = [name for name in MASKS if (path / name).is_dir()]
    if len(found) > 1:
        raise DataError(
            f"{path}: found the folders {' and '.join(found)}, expected one of them next to {IMAGES}. Move the other one elsewhere."
        )
    return read_paired_folders(path, images=IMAGES, labels=found[0] if found else MASKS[0])
