"""Measurement of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_image, read_case_label, read_repaired_labels
from medseg.data.fingerprint.fingerprint import FORMAT, CaseMeasures
from medseg.data.preprocessing.channel_methods import channel_method
from medseg.data.preprocessing.histogram import Histogram, foreground_histograms
from medseg.data.preprocessing.prepare import check_image
from medseg.errors import DataError
from medseg.io.companions.companion_files import companion_files
from medseg.io.file_content import permission_denied
from medseg.labels.instance_ids import STATE_INSTANCES, look_like_instances
from medseg.labels.label_table import Labels
from medseg.storage.file_state import FileState
from medseg.storage.stamps import short_hash
from medseg.volumes.boxes import bounding_box_of_channels
from medseg.volumes.grid import Grid
from medseg.volumes.orientation import AXES, reorientation


@dataclass(frozen=True)
class MeasuredCase:
    """The measurements of a case and the histograms of its foreground.

    Attributes:
        case: The measurements.
        histograms: One histogram per channel, None for an absent one; empty if the case has no foreground.
    """

    case: CaseMeasures
    histograms: tuple[Histogram | None, ...]


def measure_case(case: Case, labels: Labels | None, channel_names: Sequence[str], root: Path) -> MeasuredCase:
    """Measure a labelled case, whose files are read once.

    Args:
        case: A case with a label map.
        labels: Labels of the dataset; None uses the values of the label map.
        channel_names: Names of the channels that the image must have.
        root: Folder of the dataset, to which names of files are relative.

    Returns:
        The measurements.

    Raises:
        DataError: A file of the case cannot be used.
    """
    # before reading, so that a file that changes meanwhile is measured again next time
    state = _state(case)
    image = read_case_image(case)
    check_image(image, len(channel_names), where=f"case {case.id}")
    if labels is None:
        labels = (
            Labels.from_values(read_repaired_labels(case.label, case.reading, like=case.images[0]).data)
            if case.label
            else Labels.from_names({})
        )
    classes = _classes(case, labels, image.grid)
    grid = image.grid.reoriented(AXES)
    histograms = foreground_histograms(image.data, _foreground(classes, labels), f"case {case.id}")
    counts = np.bincount(classes.ravel(), minlength=len(labels))[: len(labels)]
    measures = CaseMeasures(
        id=case.id,
        files=_names(case, root),
        stamp=state.stamp,
        content=state.content,
        orientation=image.grid.axcodes,
        shape=grid.shape,
        shape_after_crop=_in_ras(_shape_after_crop(image.data), image.grid.axcodes),
        spacing=grid.spacing,
        voxel_mm3=grid.voxel_volume,
        shear=grid.shear,
        label_voxels={
            value: int(count) for value, count in zip(labels.values, counts, strict=True) if value and count
        },
        ranges=tuple((float(channel.min()), float(channel.max())) for channel in image.data),
        foreground=tuple(histogram.intensities() for histogram in histograms),
        histograms=tuple(
            histogram.pack() if channel_method(name) == "ct" and index not in image.absent else ""
            for index, (name, histogram) in enumerate(zip(channel_names, histograms, strict=False))
        ),
        absent=image.absent,
    )
    return MeasuredCase(measures, _of_present(histograms, image.absent))


def _classes(case: Case, labels: Labels, grid: Grid) -> NDArray[Any]:
    """Return the class indices `(X, Y, Z)` of a case; an error says so if the values look like ids of instances."""
    try:
        classes: NDArray[Any] = read_case_label(case, labels, grid).data[0]
        return classes
    except DataError as error:
        if case.label is None or not look_like_instances(
            _values(case, case.label, grid), len(labels.foreground)
        ):
            raise
        raise DataError(f"{error} The values are consecutive numbers. {STATE_INSTANCES}") from None


def _values(case: Case, label: Path, grid: Grid) -> list[int]:
    """Return the values that occur in a label map; none if it cannot be read."""
    try:
        return [int(value) for value in np.unique(read_repaired_labels(label, case.reading, like=grid).data)]
    except DataError:
        return []


def _of_present(histograms: Sequence[Histogram], absent: Sequence[int]) -> tuple[Histogram | None, ...]:
    return tuple(None if index in absent else histogram for index, histogram in enumerate(histograms))


def case_histograms(case: Case, labels: Labels, channels: int) -> tuple[Histogram | None, ...]:
    """Read a labelled case for the histograms of its foreground alone.

    Args:
        case: A case with a label map.
        labels: Labels that the network learns.
        channels: Number of channels that the image must have.

    Returns:
        One histogram per channel, None for an absent one; an empty tuple if the case has no foreground.

    Raises:
        DataError: A file of the case cannot be used.
    """
    image = read_case_image(case)
    check_image(image, channels, where=f"case {case.id}")
    classes = read_case_label(case, labels, image.grid).data[0]
    found = foreground_histograms(image.data, _foreground(classes, labels), f"case {case.id}")
    return _of_present(found, image.absent)


def _foreground(classes: NDArray[Any], labels: Labels) -> NDArray[np.bool_]:
    """Return the voxels of any label; those to ignore are not known to be foreground."""
    return (classes > 0) & (classes < len(labels))


def _shape_after_crop(data: NDArray[Any]) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in bounding_box_of_channels(data))


def _in_ras(shape: tuple[int, ...], axcodes: str) -> tuple[int, int, int]:
    x, y, z = (shape[axis] for axis in reorientation(axcodes, AXES)[0])
    return (x, y, z)


def is_unchanged(case: Case, known: CaseMeasures, root: Path) -> bool:
    """Return whether measurements are those of a case; its files are read only if their stamp differs.

    Args:
        case: A case with a label map.
        known: Earlier measurements of a case of this id.
        root: Folder of the dataset.

    Returns:
        False if a file was changed or renamed, is missing, or is now read in another way.
    """
    if known.files != _names(case, root):
        return False
    try:
        return FileState(known.stamp, known.content).still_holds(_files(case))
    except OSError:
        return False


def _state(case: Case) -> FileState:
    try:
        return FileState.of(_files(case))
    except PermissionError as error:
        raise permission_denied(Path(error.filename or case.images[0])) from None
    except OSError as error:
        raise DataError(
            f"{error.filename or case.images[0]}: cannot be read ({error.strerror or error}). Check the file."
        ) from None


def _files(case: Case) -> list[Path]:
    """Return the files of a case, each followed by its companion files, such as the raw data of an MHD header."""
    return [one for file in case.files for one in (file, *companion_files(file))]


def _names(case: Case, root: Path) -> str:
    """Return a hash of the names of the files, which a moved dataset keeps, and of how they are read."""
    names = [str(file.relative_to(root) if file.is_relative_to(root) else file) for file in case.files]
    parts: list[object] = [len(case.images), case.label is not None, case.instances is not None]
    parts += ["probabilities"] if case.probabilities is not None else []
    # Paths, and what was decided about cases that lack channels, do not change the voxels of this one.
    reading = replace(case.reading, files_root=None, repairs=None, absent_channels="refuse")
    return short_hash([FORMAT, names, parts, asdict(reading), *([case.absent] if case.absent else [])])
