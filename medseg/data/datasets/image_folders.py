"""A dataset as folders of pictures or volumes: ``images/ID.png`` with ``labels/ID.png`` or ``instances/ID.png``."""

from __future__ import annotations

from pathlib import Path

from medseg.data.datasets.case_tables import labels_beside
from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.names import folder_name, sanitised_id, visible_files
from medseg.errors import DataError, did_you_mean
from medseg.io.files import read, stem_of, suffix_of

IMAGES, LABELS, INSTANCES = "images", "labels", "instances"
_COLOURS = {1: ("image",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def is_image_folder(path: Path) -> bool:
    """Whether there is a folder ``images`` beside one of label maps or instance maps."""
    return (path / IMAGES).is_dir() and any((path / name).is_dir() for name in (LABELS, INSTANCES))


def read_image_folder(path: Path) -> Dataset:
    """Read images with the maps of the same name, whatever the formats: pictures are one slice each.

    Colours are channels. An instance map holds an id per object (16 bits for more than 255), 0 for background.
    Names of labels are read from ``labels.tsv`` beside the folders; with instances alone and no such table, the
    one class is called ``instance``.

    Raises:
        DataError: no images; two files of one name in a folder; maps without an image, all of them listed; or a first
            image that cannot be read.
    """
    images, labels, instances = (_by_stem(path / name) for name in (IMAGES, LABELS, INSTANCES))
    if not images:
        raise DataError(
            f"{path / IMAGES}: found no image, expected files such as {IMAGES}/001.png. Check the path."
        )
    for maps in (labels, instances):
        lonely = [stem for stem in maps if stem not in images]
        if lonely:
            shown = ", ".join(maps[stem].name for stem in lonely[:10])
            raise DataError(
                f"{maps[lonely[0]].parent}: maps without an image: found {len(lonely)} ({shown}), expected an image of "
                f"the same name in {IMAGES}.{did_you_mean(lonely[0], images)} Add it, or remove the map."
            )
    cases = tuple(
        Case(sanitised_id(stem), (image,), labels.get(stem), instances=instances.get(stem))
        for stem, image in images.items()
    )
    first = read(next(iter(images.values())))
    names = _COLOURS.get(first.channels) or tuple(f"channel_{i}" for i in range(first.channels))
    return Dataset(folder_name(path), path, cases, names, labels_beside(path, cases))


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix; empty if there is no such folder."""
    files: dict[str, Path] = {}
    for file in visible_files(folder):
        if suffix_of(file) in ("", ".img"):  # .img holds the voxels of the .hdr beside it
            continue
        stem = stem_of(file)
        if stem in files:
            raise DataError(
                f"{folder}: found {files[stem].name} and {file.name}, expected one file of that name. Remove one."
            )
        files[stem] = file
    return files
