"""Datasets of folders with paired files: ``images/ID.png`` with ``labels/ID.png`` or ``instances/ID.png``."""

from __future__ import annotations

from pathlib import Path

from medseg.data.datasets.case_tables import channels_in_folder, labels_in_folder
from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.layout_registry import register_layout
from medseg.data.datasets.names import folder_name, sanitised_id, visible_files
from medseg.errors import DataError, did_you_mean
from medseg.io.files import read, stem_of, suffix_of

IMAGES, LABELS, INSTANCES = "images", "labels", "instances"
_COLOURS = {1: ("image",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


class UnpairedMapsError(DataError):
    """Maps in a folder have no image of the same name.

    Args:
        message: Text of the error.
        dataset: The dataset without these maps.
        maps: The maps.

    Attributes:
        dataset: The dataset without these maps.
        maps: The maps.
    """

    def __init__(self, message: str, dataset: Dataset, maps: tuple[Path, ...]) -> None:
        super().__init__(message)
        self.dataset = dataset
        self.maps = maps


def is_image_folder(path: Path) -> bool:
    """Return whether there is a folder ``images`` next to one of label maps or instance maps."""
    return (path / IMAGES).is_dir() and any((path / name).is_dir() for name in (LABELS, INSTANCES))


@register_layout("images", recognise=is_image_folder)
def read_image_folder(path: Path) -> Dataset:
    """Read the images in ``images`` with the maps of the same name in ``labels`` and ``instances``.

    Args:
        path: Folder that contains these folders.

    Returns:
        The dataset; see `read_paired_folders`.

    Raises:
        DataError: As for `read_paired_folders`, for example because a map has no image of the same name.
    """
    return read_paired_folders(path, images=IMAGES, labels=LABELS, instances=INSTANCES)


def read_paired_folders(path: Path, *, images: str, labels: str, instances: str | None = None) -> Dataset:
    """Read images and the maps of the same name from sibling folders, in any format; natural images are single slices.

    Colours are channels. An instance map holds one id per instance (16 bits for more than 255), and 0 for background.
    Label names are read from a ``labels.tsv`` next to the folders. If there are only instances and no such file, the
    single class is called ``instance``.

    Args:
        path: Folder that contains the others.
        images: Name of the folder of images.
        labels: Name of the folder of label maps, which may be missing.
        instances: Name of the folder of instance maps, which may be missing; None for none.

    Returns:
        The dataset. Its channels are named by a ``channels.tsv`` next to the folders, else by the number of channels of the first
        image.

    Raises:
        DataError: There is no image, a folder has two files of the same name, maps lack an image (all are listed), the
            first image cannot be read, or ``channels.tsv`` names another number of channels.
    """
    image_files, label_files = _files_by_stem(path / images), _files_by_stem(path / labels)
    instance_files = {} if instances is None else _files_by_stem(path / instances)
    if not image_files:
        raise DataError(
            f"{path / images}: found no image, expected files such as {images}/001.png. Check the path."
        )
    cases = tuple(
        Case(sanitised_id(stem), (image,), label_files.get(stem), instances=instance_files.get(stem))
        for stem, image in image_files.items()
    )
    first = read(next(iter(image_files.values())))
    plain = _COLOURS.get(first.channels) or tuple(f"channel_{i}" for i in range(first.channels))
    names = channels_in_folder(path, plain)
    dataset = Dataset(folder_name(path), path, cases, names, labels_in_folder(path, cases))
    _require_images(dataset, image_files, label_files, instance_files, images)
    return dataset


def _require_images(
    dataset: Dataset,
    image_files: dict[str, Path],
    label_files: dict[str, Path],
    instance_files: dict[str, Path],
    images: str,
) -> None:
    """Raise `UnpairedMapsError` if a map has no image of the same name."""
    unpaired = [[stem for stem in maps if stem not in image_files] for maps in (label_files, instance_files)]
    for maps, lonely in zip((label_files, instance_files), unpaired, strict=True):
        if lonely:
            shown = ", ".join(maps[stem].name for stem in lonely[:10])
            files = [label_files[stem] for stem in unpaired[0]] + [
                instance_files[stem] for stem in unpaired[1]
            ]
            raise UnpairedMapsError(
                f"{maps[lonely[0]].parent}: maps without an image: found {len(lonely)} ({shown}), expected an image of "
                f"the same name in {images}.{did_you_mean(lonely[0], image_files)} Add it, or remove the map.",
                dataset,
                tuple(files),
            )


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name without suffix; an empty dictionary if there is no such folder."""
    files: dict[str, Path] = {}
    for file in visible_files(folder):
        if suffix_of(file) in ("", ".img"):  # .img holds the voxels of the .hdr of the same name
            continue
        stem = stem_of(file)
        if stem in files:
            raise DataError(
                f"{folder}: found {files[stem].name} and {file.name}, expected one file of that name. Remove one."
            )
        files[stem] = file
    return files
