"""Reading the files of a case onto the grid of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import Case, ReadingOptions
from medseg.errors import DataError, error_message, warn_once
from medseg.io.companions.instance_files import InstanceFile
from medseg.io.files import WHOLE_WITHIN, read_labels, read_stored_labels
from medseg.io.segmentation_files import segmentation_kind
from medseg.labels.label_sets import unannotated_classes
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import pluralise
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LARGEST_ID = 2**31 - 1
"""Largest number of an instance in a file."""
ROUNDED_WITHIN = 0.1
"""Largest distance to a whole number at which a repair may round label values."""
_PROBABILITY_ERROR = 0.01  # of stored probabilities and of their sum
LARGEST_EXACT = 1 << 24  # whole numbers up to here are exact in float32


def read_case_image(case: Case, channels: int | None = None) -> Volume:
    """Read all channels of a case onto the grid and orientation of its first file.

    Args:
        case: Its image files are read in order; each may hold several channels, unless the case lacks some channels.
        channels: Total number of channels that the case must have; None accepts any number.

    Returns:
        Volume `(C, X, Y, Z)`, in the first file's orientation and with its geometry header. Absent channels are 0.

    Raises:
        DataError: A file is unreadable, two files have different grids, or the number of channels is not `channels`.
    """
    first, *others = (case.reading.read_image(path) for path in case.images)
    parts = [first.data]
    for path, volume in zip(case.images[1:], others, strict=True):
        parts.append(_aligned_to_grid(volume, first.grid, path, case, "channel").data)
    if case.absent:
        parts = _with_zeros(parts, case)
    data = np.concatenate(parts) if len(parts) > 1 else first.data
    if channels is not None and len(data) != channels:
        files = ", ".join(path.name for path in case.images)
        raise DataError(
            error_message(
                f"case {case.id} ({files})",
                "wrong number of channels",
                found=len(data),
                expected=channels,
                fix="Give every channel, in the order of the dataset's channel names",
            )
        )
    _warn_of_large_integers(data, case)
    # int32 with float32 promotes to float64, which no later step needs
    image = first.with_data(data.astype(np.float32) if data.dtype == np.float64 else data)
    return replace(image, absent=case.absent) if case.absent else image


def _with_zeros(parts: Sequence[NDArray[Any]], case: Case) -> list[NDArray[Any]]:
    """Return the channels of a case with zeros in the places of absent ones."""
    for path, part in zip(case.images, parts, strict=True):
        if len(part) != 1:
            raise DataError(
                f"{path}: channels: found {len(part)}, expected 1, because case {case.id} lacks the files of other channels. Give one file per "
                "channel."
            )
    present, zeros = iter(parts), np.zeros_like(parts[0])
    return [
        zeros if index in case.absent else next(present) for index in range(len(parts) + len(case.absent))
    ]


def _warn_of_large_integers(data: NDArray[Any], case: Case) -> None:
    """Warn if whole numbers are too large to be distinguished in float32, which preprocessing uses."""
    if data.dtype.kind not in "iu" or data.dtype.itemsize < 4:
        return
    largest = max(int(data.max()), -int(data.min()))
    if largest > LARGEST_EXACT:
        warn_once(
            f"{case.images[0]}: intensities: found whole numbers up to {largest}, expected at most {LARGEST_EXACT}, beyond which "
            "float32 rounds them. Check the data type, or rescale the image."
        )


def read_case_label(case: Case, labels: Labels, grid: Grid | None = None) -> Volume:
    """Read the label map of a case as class indices on the grid of its image.

    Args:
        case: A case with a label map, with probabilities, or with an instance map and a single foreground label.
        labels: Label table from the values in the file to classes.
        grid: Grid of the image; None reads it from the first image.

    Returns:
        Label volume `(1, X, Y, Z)` of class indices 0 … K-1, and K for ignored voxels, uint8 or uint16, on the grid of the
        image. A map that is stored in another orientation is reoriented. If the case has only an instance map, every
        voxel of an instance is class 1. If it has probabilities and no label map, the most probable class is taken; the
        first one in the order of the labels wins a tie.

    Raises:
        DataError: There is no label map, its grid differs, it contains a value that `labels` lacks or a label that is not
            annotated in this case, or the case has only instances although there are several labels.
    """
    if case.label is None and case.probabilities is not None:
        probabilities = read_case_probabilities(case, labels, grid)
        return Volume(most_probable(probabilities.data)[None], probabilities.grid, "label")
    if case.label is None and case.instances is not None:
        if len(labels.foreground) != 1:
            raise DataError(
                f"case {case.id}: found instances without a label map, expected one, because there are "
                f"{len(labels.foreground)} labels. Add label maps, or declare a single label."
            )
        ids = read_case_instances(case, grid)
        return ids.with_data((ids.data > 0).astype(np.uint8))
    if case.label is None:
        raise DataError(
            f"case {case.id}: found no label map, expected one. Add its label map, or remove the case."
        )
    grid = grid or case.reading.read_grid(case.images[0])
    volume = _aligned_labels(case, case.label, grid, "label map")
    classes = labels.to_classes(volume.data, str(case.label))
    _check_annotated(case, labels, classes)
    return Volume(classes, grid, "label")


def _check_annotated(case: Case, labels: Labels, classes: NDArray[Any]) -> None:
    for index in unannotated_classes(labels, case.annotated, f"case {case.id}"):
        count = int((classes == index).sum())
        if count:
            raise DataError(
                f"case {case.id}: {case.label}: found {count} voxels of value {labels.values[index]} "
                f"({labels.names[index]}), expected none, because only {', '.join(case.annotated or ())} are annotated in this "
                "case. Add the label to the annotated ones, or fix the label map."
            )


def read_case_probabilities(case: Case, labels: Labels, grid: Grid | None = None) -> Volume:
    """Read the label probabilities of a case on the grid of its image.

    The file has one channel per label in the order of the label table, with or without the background. Without it, the
    background has the rest. Files that ``medseg predict --probabilities`` writes have this form.

    Args:
        case: A case with label probabilities.
        labels: Label table of the dataset.
        grid: Grid of the image; None reads it from the first image.

    Returns:
        Probabilities `(K, X, Y, Z)` float32 with the sum 1, on the grid of the image; the background comes first.

    Raises:
        DataError: There is no such file, its grid or its number of channels differs, or the values of a voxel are no
            probabilities.
    """
    path = case.probabilities
    if path is None:
        raise DataError(f"case {case.id}: found no label probabilities, expected a file of them. Add it.")
    grid = grid or case.reading.read_grid(case.images[0])
    volume = _aligned_to_grid(case.reading.read_image(path), grid, path, case, "label probabilities")
    count = len(labels)
    if volume.channels not in (count - 1, count):
        raise DataError(
            f"{path}: label probabilities: found {pluralise(volume.channels, 'channel')}, expected {count} for {', '.join(labels.names)}, "
            f"or {count - 1} without {labels.names[0]}. Store one channel per label, in this order."
        )
    values = volume.data.astype(np.float32)
    total = values.sum(0)
    complete = volume.channels == count
    wrong = ~((values >= -_PROBABILITY_ERROR).all(0) & (total <= 1 + _PROBABILITY_ERROR))
    wrong |= (total < 1 - _PROBABILITY_ERROR) & complete
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0].tolist())
        found = ", ".join(f"{value:.4g}" for value in values[:, *first][:6])
        raise DataError(
            f"{path}: label probabilities: found {found} in the voxel {first} and others in {pluralise(int(wrong.sum()), 'voxel')}, "
            f"expected numbers from 0 to 1 with the sum {'1' if complete else 'at most 1'}. Store shares, such as the share of "
            "raters that chose each label; regions that overlap are no labels."
        )
    values = values.clip(0, 1)
    if not complete:
        values = np.concatenate([1 - values.sum(0, keepdims=True).clip(0, 1), values])
    return Volume(values / values.sum(0), grid)


def most_probable(probabilities: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return the most probable class `(X, Y, Z)` of probabilities `(K, X, Y, Z)`; the first one wins a tie."""
    classes: NDArray[Any] = probabilities.argmax(0).astype(np.min_scalar_type(len(probabilities)))
    return classes


def read_repaired_labels(
    path: Path, reading: ReadingOptions, *, like: Volume | Grid | Path | None = None
) -> Volume:
    """Read a label map with the repairs of its values.

    Args:
        path: The file.
        reading: What was decided about it.
        like: The image that it belongs to, see `medseg.read_labels`.

    Returns:
        Volume `(1, X, Y, Z)` of an integer type, with values as in files, on the file's own grid.

    Raises:
        DataError: The file cannot be read, or values are not whole numbers, also after the repair.
    """
    if isinstance(like, Path) and segmentation_kind(path):
        like = reading.read_grid(like)
    if not reading.round_labels and not reading.label_values:
        return read_labels(path, orientation_from=reading.orientation_from, like=like)
    stored = read_stored_labels(path, orientation_from=reading.orientation_from, like=like)
    return stored.with_data(repaired_values(stored.data, reading, path), kind="label")


def repaired_values(data: NDArray[Any], reading: ReadingOptions, where: Path | str) -> NDArray[Any]:
    """Return label values after the repairs of a case.

    Args:
        data: Values as stored.
        reading: What was decided about them.
        where: The file, for messages.

    Returns:
        Whole numbers of the same shape, in the type of the file if it is an integer type that holds them.

    Raises:
        DataError: A value is too far from a whole number.
    """
    if data.dtype.kind == "f":
        within = ROUNDED_WITHIN if reading.round_labels else WHOLE_WITHIN
        rounded = np.round(data)
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(data - rounded) < within)
        if off.any():
            raise DataError(
                f"{where}: label values: found {float(data[off].ravel()[0]):.4g} and others in {int(off.sum())} voxels, expected values "
                f"within {within:g} of whole numbers. Remove the repair of this file."
            )
        data = rounded.astype(np.int32)
    if not reading.label_values:
        return data
    largest = max(new for _, new in reading.label_values)
    mapped = data.astype(np.promote_types(data.dtype, np.min_scalar_type(largest)))
    for old, new in reading.label_values:
        mapped[data == old] = new
    return mapped


def read_case_first_stage(case: Case, labels: Labels, grid: Grid | None = None) -> Volume:
    """Read the label map that the first stage of a cascade predicted, as class indices on the grid of the image.

    Args:
        case: A case with such a map.
        labels: Label table of the first stage.
        grid: Grid of the image; None reads it from the first image.

    Returns:
        Label volume `(1, X, Y, Z)` like that of `read_case_label`.

    Raises:
        DataError: There is no such map, its grid differs, or it contains a value that `labels` lacks.
    """
    if case.first_stage is None:
        raise DataError(
            f"case {case.id}: found no label map of the first stage, expected one. Predict it with that stage."
        )
    grid = grid or case.reading.read_grid(case.images[0])
    volume = _aligned_labels(case, case.first_stage, grid, "label map of the first stage")
    return Volume(labels.to_classes(volume.data, str(case.first_stage)), grid, "label")


def read_case_instances(case: Case, grid: Grid | None = None) -> Volume:
    """Read the instance map of a case on the grid of its image.

    Args:
        case: A case with an instance map.
        grid: Grid of the image; None reads it from the first image.

    Returns:
        Label volume `(1, X, Y, Z)` of ids, int32, on the grid of the image.

    Raises:
        DataError: There is no instance map, its grid differs, or ids are negative or too large.
    """
    if case.instances is None:
        raise DataError(
            f"case {case.id}: found no instance map, expected one. Add its instances, or remove the case."
        )
    grid = grid or case.reading.read_grid(case.images[0])
    volume = _aligned_labels(case, case.instances, grid, "instance map")
    low, high = int(volume.data.min()), int(volume.data.max())
    if low < 0 or high > LARGEST_ID:
        raise DataError(
            f"{case.instances}: found ids {low} to {high}, expected 0 to {LARGEST_ID}. Renumber the instances."
        )
    return Volume(volume.data.astype(np.int32), grid, "label")


def read_case_objects(case: Case, labels: Labels, grid: Grid | None = None) -> InstanceFile:
    """Read the instance map of a case with the label value of each instance.

    Without a label map, all instances belong to the only class. With one, an instance belongs to the class of most of
    its voxels.

    Args:
        case: A case with an instance map.
        labels: Label table of the dataset.
        grid: Grid of the image; None reads it from the first image.

    Returns:
        The ids `(1, X, Y, Z)` on the grid of the image, and the label value of each id.

    Raises:
        DataError: The maps are refused by `read_case_instances` or `read_case_label`, or an instance covers only
            background.
    """
    ids = read_case_instances(case, grid)
    classes = read_case_label(case, labels, ids.grid).data
    inside = (ids.data > 0) & (classes > 0) & (classes < len(labels))  # and not ignored
    pairs, counts = np.unique(np.stack([ids.data[inside], classes[inside]]), axis=1, return_counts=True)
    values: dict[int, int] = {}
    for (number, index), _ in sorted(zip(pairs.T.tolist(), counts, strict=True), key=lambda one: one[1]):
        values[number] = labels.values[index]  # the most frequent comes last
    lost = sorted(set(np.unique(ids.data[ids.data > 0]).tolist()) - values.keys())
    if lost:
        raise DataError(
            f"{case.instances}: instances outside of every label: found ids {', '.join(map(str, lost[:5]))} ({len(lost)}), "
            f"expected at least one voxel of each on a label of {case.label}. Fix one of the maps."
        )
    return InstanceFile(ids, values)


def _aligned_labels(case: Case, path: Path, grid: Grid, what: str) -> Volume:
    """Read a label map or instance map of a case onto the grid of its image, or raise."""
    volume = read_repaired_labels(path, case.reading, like=grid)
    return _aligned_to_grid(volume, grid, path, case, what)


def _aligned_to_grid(volume: Volume, grid: Grid, path: Path, case: Case, what: str) -> Volume:
    """Place a file that belongs to an image on the image's grid, or raise."""
    if grid.in_pixels and not volume.grid.in_pixels and min(grid.shape) > 1:
        size = "x".join(f"{value:g}" for value in volume.grid.spacing)
        warn_once(
            f"{case.images[0]}: voxel size: found none, expected {size} mm as in {path}; the image is used with 1 mm per voxel. Add its voxel "
            "size: for a TIFF, in a JSON file next to it."
        )
    fix = "Resample it to the grid of that image, or use the file that belongs to it"
    trusted = volume.is_label and case.reading.trust_label_array
    if volume.is_label and not trusted and volume.grid.shape == grid.shape:
        fix += "; if only its header is wrong, give --trust-label-array (data.trust_label_array in a config)"
    return align_to_grid(
        volume, grid, where=f"{path}: {what}", grid_of=case.images[0], fix=fix, trust_array=trusted
    )
