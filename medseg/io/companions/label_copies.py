"""Copies of a label map in other forms: one mask per label, overlapping layers of 3D Slicer, and a table of its labels.

In a label map of regions, such as a whole tumour and its core, later regions cover earlier ones. The copies undo this: a voxel of a region
belongs to every region that contains all labels of that region.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.io.files import TIFF, WRITABLE, stem_of, suffix_of, write
from medseg.labels.label_table import Label, Labels
from medseg.labels.segments import Segment, layered
from medseg.storage.atomic import replacing, replacing_folder
from medseg.storage.portable_names import folded, portable_name
from medseg.volumes.volume import Volume


def masks_folder(label_map: Path) -> Path:
    """Return the folder of the masks that belong to a label map: ``NAME_labels``."""
    return label_map.with_name(f"{stem_of(label_map)}_labels")


def layers_path(label_map: Path) -> Path:
    """Return the file of the layers that belong to a label map: ``NAME_layers.seg.nrrd``."""
    return label_map.with_name(f"{stem_of(label_map)}_layers.seg.nrrd")


def label_table_path(label_map: Path) -> Path:
    """Return the table of the labels of a label map: ``NAME_labels.tsv``."""
    return label_map.with_name(f"{stem_of(label_map)}_labels.tsv")


def masks_of(label_map: Volume, labels: Labels) -> Iterator[tuple[Label, NDArray[np.bool_]]]:
    """Yield each label or region with its mask.

    Args:
        label_map: Values as in files.
        labels: The labels; if there are regions, these.

    Yields:
        Name, value and colour, and a mask `(X, Y, Z)`; empty for a label that does not occur.

    >>> import medseg
    >>> labels = medseg.Labels.from_names({"edema": 1, "core": 2}).with_regions({"whole": (1, 2), "core": (2,)})
    >>> grid = medseg.Grid.from_spacing((2, 1, 1))
    >>> label_map = medseg.Volume(np.array([1, 2], np.uint8).reshape(1, 2, 1, 1), grid, "label")
    >>> {label.name: mask.ravel().tolist() for label, mask in masks_of(label_map, labels)}
    {'whole': [True, True], 'core': [False, True]}
    """
    if not labels.regions:
        for label in labels.foreground:
            yield label, label_map.data[0] == label.value
        return
    for region in labels.regions:
        inside = [one.output_value for one in labels.regions if set(one.values) <= set(region.values)]
        yield Label(region.name, region.output_value, region.colour), np.isin(label_map.data[0], inside)


def write_masks(label_map: Volume, path: Path, labels: Labels) -> None:
    """Write one file per label into `masks_folder`: 1 inside, 0 outside, on the grid of the label map.

    Args:
        label_map: Values as in files.
        path: File of the label map; its suffix is that of the masks if the format can hold them, else they are .nii.gz files.
        labels: The labels. Files are named after them, with ``_`` for letters that file names cannot hold.

    Raises:
        DataError: A file cannot be written; masks of an earlier label map are then unchanged.
    """
    folder = masks_folder(path)
    suffix = suffix_of(path) if suffix_of(path) in (*WRITABLE, *TIFF, ".png") else ".nii.gz"
    taken: set[str] = set()
    with replacing_folder(folder) as temporary:
        for label, mask in masks_of(label_map, labels):
            name = portable_name(label.name.lstrip(". ")) or "label"
            name = f"{name}_{label.value}" if folded(name) in taken else name
            taken.add(folded(name))
            one = Labels.from_names({label.name: 1}, colours={label.name: label.colour})
            write(label_map.with_data(mask[None].astype(np.uint8)), temporary / f"{name}{suffix}", names=one)


def write_layers(label_map: Volume, path: Path, labels: Labels) -> None:
    """Write the labels or regions as segments of 3D Slicer, which overlap where regions do, to `layers_path`.

    Args:
        label_map: Values as in files.
        path: File of the label map.
        labels: The labels, which become names and colours of the segments.

    Raises:
        DataError: The grid is sheared, which 3D Slicer cannot show, or the file cannot be written.
    """
    target = layers_path(path)
    if not labels.regions:
        write(label_map, target, names=labels)
        return
    found = [
        (Segment(label.value, label.name, label.colour), {k: mask[..., k] for k in range(mask.shape[2])})
        for label, mask in masks_of(label_map, labels)
    ]
    write(layered(label_map.grid, found, str(target)).volume, target, names=labels)


def write_label_table(path: Path, labels: Labels) -> None:
    """Write value, name and colour of the labels that a label map may hold to `label_table_path`.

    Args:
        path: File of the label map.
        labels: The labels; if there are regions, these with the values that represent them.

    Raises:
        DataError: The file cannot be written.
    """
    if labels.regions:
        items = {one.name: one.output_value for one in labels.regions}
        labels = Labels.from_names(items, colours={one.name: one.colour for one in labels.regions})
    with replacing(label_table_path(path)) as temporary:
        temporary.write_text(labels.to_tsv(), encoding="utf-8")
