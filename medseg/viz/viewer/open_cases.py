"""The cases of the viewer from files: an image with label maps, or the cases of a dataset with predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg.data.datasets.cases import UNDECIDED, Case, ReadingOptions
from medseg.data.datasets.layouts import read_dataset
from medseg.data.datasets.read_case import read_case_image, read_case_label
from medseg.errors import DataError, warn_once
from medseg.io.companions.label_names import label_names_of
from medseg.io.files import IMAGE_SUFFIXES, read_labels, stem_of
from medseg.labels.label_table import Labels
from medseg.viz.slice_images import Window
from medseg.viz.viewer.viewer_case import REFERENCE, ViewerCase
from medseg.volumes.volume import Volume

_FEW_VALUES = 30
_CONTINUED = 0.5  # share of the neighbours along the best axis that have the same value, in label maps and instance maps


def open_image(
    image: str | Path,
    label_maps: Sequence[str | Path] = (),
    *,
    reference: str | Path | None = None,
    overlays: Sequence[str | Path] = (),
    names: Labels | None = None,
    window: Window = None,
    reading: ReadingOptions | None = None,
) -> ViewerCase:
    """Read an image and its label maps for the viewer.

    Args:
        image: An image file, or a folder with a DICOM series.
        label_maps: Files of label maps.
        reference: File of the label map with which the first of `label_maps` is compared.
        overlays: Files of maps of numbers, such as the uncertainty that `medseg predict --uncertainty` writes.
        names: Names and colours of the values; None looks for them, see `medseg.io.companions.label_names.label_names_of`.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.
        reading: What the user decided about files whose headers are wrong.

    Returns:
        The case, named as the image file.

    Raises:
        DataError: A file cannot be read, or a label map is an image.
    """
    reading = reading or UNDECIDED
    files = _named(label_maps, None if reference is None else Path(reference))
    volume = reading.read_image(Path(image))
    maps = {
        name: read_labels(path, orientation_from=reading.orientation_from, like=volume)
        for name, path in files.items()
    }
    known = names
    for name, path in files.items():
        _require_label_map(maps[name], path)
        known = known or label_names_of(path)
    measured = {
        stem_of(path).removeprefix(f"{stem_of(image)}_"): reading.read_image(Path(path)) for path in overlays
    }
    notes = [_other_grid(name, maps[name], path, volume, image) for name, path in files.items()]
    notes += [
        _other_grid(name, shown, Path(path), volume, image)
        for path, (name, shown) in zip(overlays, measured.items(), strict=True)
    ]
    return ViewerCase(
        stem_of(image),
        volume,
        maps,
        labels=known,
        window=window,
        notes=tuple(filter(None, notes)),
        overlays=measured,
    )


def open_dataset(
    dataset: str | Path,
    predictions: Sequence[str | Path] = (),
    *,
    most: int = 10,
    names: Labels | None = None,
    window: Window = None,
    reading: ReadingOptions | None = None,
) -> list[ViewerCase]:
    """Read the first cases of a dataset for the viewer, with their label maps as reference.

    Args:
        dataset: Folder, ``dataset.json`` or table of the dataset.
        predictions: Folders with label maps that are named as the cases.
        most: Maximum number of cases.
        names: Names and colours of the values; those of the dataset if None.
        window: Intensity window; see `medseg.viz.slice_images.window_of`.
        reading: What the user decided about files whose headers are wrong.

    Returns:
        The cases, in the order of the dataset.

    Raises:
        DataError: The dataset or a file cannot be read, or no case has a label map in a folder of predictions.
    """
    found = read_dataset(dataset, reading=reading)
    by_folder = {
        _folder_name(place, predictions): _by_stem(Path(folder)) for place, folder in enumerate(predictions)
    }
    for folder, files in zip(predictions, by_folder.values(), strict=True):
        if not set(files) & set(found.ids):
            raise DataError(
                f"{folder}: found no label map of a case, expected files such as {found.ids[0]}.nii.gz. "
                "Give the folder that medseg predict wrote."
            )
    cases = [case for case in found.cases if all(case.id in files for files in by_folder.values())]
    return [
        _opened(
            case, {name: files[case.id] for name, files in by_folder.items()}, names or found.labels, window
        )
        for case in cases[:most]
    ]


def _opened(case: Case, predictions: Mapping[str, Path], names: Labels | None, window: Window) -> ViewerCase:
    orientation_from = case.reading.orientation_from
    files = dict(predictions)
    if (reference := case.label or case.instances) is not None:
        files[REFERENCE] = reference
    image = read_case_image(case)
    maps = {
        name: read_labels(path, orientation_from=orientation_from, like=image) for name, path in files.items()
    }
    if case.probabilities is not None and REFERENCE not in files and names is not None:
        classes = read_case_label(case, names, image.grid)
        maps[REFERENCE] = classes.with_data(names.to_values(classes.data))
    if case.label is None and case.instances is not None:
        names = _instance_names(maps.values())
    return ViewerCase(case.id, image, maps, labels=names, window=window)


def _instance_names(maps: Iterable[Volume]) -> Labels:
    ids = {int(value) for volume in maps for value in np.unique(volume.data)} - {0}
    return Labels.from_names({f"instance {value}": value for value in ids})


def _require_label_map(labels: Volume, path: Path) -> None:
    """Raise `DataError` if the whole numbers of a file are intensities: many, and seldom the same in neighbouring voxels."""
    data = labels.data[0]
    values = np.unique(data)
    if len(values) <= _FEW_VALUES:
        return
    shares = []
    for axis in range(3):
        one, other = (
            np.take(data, range(start, data.shape[axis] - 1 + start), axis=axis) for start in (0, 1)
        )
        shares.append(float((one == other)[one != 0].mean()) if (one != 0).any() else 0.0)
    if max(shares) < _CONTINUED:
        raise DataError(
            f"{path}: found {len(values)} values from {values[0]} to {values[-1]}, and only {max(shares):.0%} of neighbouring voxels "
            "with the same one, expected a label map. Give the label map, not an image; a map of numbers can be an overlay."
        )


def _other_grid(name: str, shown: Volume, path: Path, image: Volume, image_path: str | Path) -> str:
    """Return a remark for the page, and warn, if a map is on another grid than the image; empty otherwise."""
    turned = shown.reoriented_like(image.grid).grid
    if turned.matches(image.grid):
        return ""
    warn_once(
        f"{path}: found {turned}, expected the grid of {image_path} ({image.grid}); it is shown at its own place, resampled "
        "to the image. Give the map of this image."
    )
    return (
        f"{name} is on another grid than the image, and is shown at its own place, resampled to the image: found {turned}, "
        f"expected {image.grid}."
    )


def _named(label_maps: Sequence[str | Path], reference: Path | None) -> dict[str, Path]:
    """Return the label maps by the names that the viewer shows."""
    if len(label_maps) == 1:
        names = ["prediction" if reference is not None else "labels"]
    else:
        names = [stem_of(path) for path in label_maps]
    if len({*names, REFERENCE}) <= len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    files = {name: Path(path) for name, path in zip(names, label_maps, strict=True)}
    return files if reference is None else {**files, REFERENCE: reference}


def _folder_name(place: int, folders: Sequence[str | Path]) -> str:
    return "prediction" if len(folders) == 1 else f"{Path(folders[place]).name} ({place + 1})"


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: found no folder, expected one with label maps. Check the path.")
    return {stem_of(path): path for path in sorted(folder.iterdir()) if path.name.endswith(IMAGE_SUFFIXES)}
