"""Measurement of one case."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import UNDECIDED, Case
from medseg.data.datasets.read_case import read_case_image, read_case_label, read_repaired_labels
from medseg.data.preprocessing.prepare import check_image
from medseg.errors import DataError, MedsegError
from medseg.labels.label_table import Labels
from medseg.planning.fingerprint.fingerprint import FORMAT, CaseMeasures
from medseg.planning.fingerprint.histogram import Histogram
from medseg.storage.stamps import file_stamps, short_hash
from medseg.volumes.boxes import bounding_box_of_channels
from medseg.volumes.orientation import AXES, reorientation


@dataclass(frozen=True)
class MeasuredCase:
    """The measurements of a case and the histograms of its foreground.

    Attributes:
        case: The measurements.
        histograms: One histogram per channel; empty if the case has no foreground.
    """

    case: CaseMeasures
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True)
class UnreadableCase:
    """A case that cannot be used.

    Attributes:
        id: Id of the case.
        reason: The error message.
    """

    id: str
    reason: str


def measure_case(
    case: Case, labels: Labels | None, channels: int, root: Path
) -> MeasuredCase | UnreadableCase:
    """Measure a labelled case; an error in its files is returned as `UnreadableCase`, so that all errors can be listed.

    Args:
        case: A case with a label map.
        labels: Labels of the dataset; None uses the values of the label map.
        channels: Number of channels that the image must have.
        root: Folder of the dataset; the stamp contains paths relative to it.

    Returns:
        The measurements, or the error.
    """
    try:
        return _measure(case, labels, channels, root)
    except MedsegError as error:
        return UnreadableCase(case.id, str(error))


def _measure(case: Case, labels: Labels | None, channels: int, root: Path) -> MeasuredCase:
    stamp = case_stamp(
        case, root
    )  # before reading, so that a file that changes meanwhile is measured again next time
    image = read_case_image(case)
    check_image(image, channels, where=f"case {case.id}")
    if labels is None:
        labels = (
            Labels.from_values(read_repaired_labels(case.label, case.reading).data)
            if case.label
            else Labels.from_names({})
        )
    classes = read_case_label(case, labels, image.grid).data[0]
    grid = image.grid.reoriented(AXES)
    known = (classes > 0) & (classes < len(labels))  # without ignored voxels
    histograms = _foreground(image.data, known, f"case {case.id}")
    counts = np.bincount(classes.ravel(), minlength=len(labels))[: len(labels)]
    measures = CaseMeasures(
        id=case.id,
        stamp=stamp,
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
    )
    return MeasuredCase(measures, histograms)


def _foreground(data: NDArray[Any], inside: NDArray[np.bool_], where: str) -> tuple[Histogram, ...]:
    """Return one histogram per channel of `(C, X, Y, Z)` inside a mask; none if the mask is empty."""
    if not inside.any():
        return ()
    histograms = []
    for channel in data:
        with np.errstate(over="ignore"):
            values = channel[inside].astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{where}: found intensities beyond 3e38, expected float32. Rescale the image.")
        histograms.append(Histogram.from_values(values))
    return tuple(histograms)


def _shape_after_crop(data: NDArray[Any]) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in bounding_box_of_channels(data))


def _in_ras(shape: tuple[int, ...], axcodes: str) -> tuple[int, int, int]:
    x, y, z = (shape[axis] for axis in reorientation(axcodes, AXES)[0])
    return (x, y, z)


def case_stamp(case: Case, root: Path) -> str:
    """Return a hash that changes when a file of the case is renamed, its size or modification time changes, or it is read in another way."""
    decided = [] if case.reading == UNDECIDED else [asdict(case.reading)]
    return short_hash([FORMAT, file_stamps(case.files, root), *decided])
