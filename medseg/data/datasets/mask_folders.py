"""Datasets of folders with paired files: ``images/ID.png`` with ``masks/ID.png``."""

from __future__ import annotations

from pathlib import Path

from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.image_folders import IMAGES, read_paired_folders
from medseg.data.datasets.layout_registry import register_layout

MASKS = "masks"


def is_mask_folder(path: Path) -> bool:
    """Return whether a folder contains ``images`` and ``masks``."""
    return (path / IMAGES).is_dir() and (path / MASKS).is_dir()


@register_layout("masks", recognise=is_mask_folder)
def read_mask_folder(path: Path) -> Dataset:
    """Read images with the masks of the same name; see `read_paired_folders`."""
    return read_paired_folders(path, images=IMAGES, labels=MASKS)
