"""Cases and datasets: which files belong together, and reading them onto one grid."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError, did_you_mean, error_message
from medseg.io.files import read, read_grid, read_labels
from medseg.io.instance_files import InstanceFile
from medseg.labels.label_sets import AnnotatedLabels, unannotated_classes
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import pluralise
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MOST_LISTED = 100
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """One subject's study. Ids become file names, so they hold only letters, digits and ``. _ -``.

    Attributes:
        id: unique in its dataset.
        images: one file per channel, or one file (or DICOM folder) that holds all channels.
        label: label map, or None.
        subject: the person; splits are by subject. The id where nothing else is known.
        instances: instance map (ids, 0 is background), or None. Where there is no label map, all instances are
            of one class.
        annotated: names of the labels that its annotators drew, or None for all: of the others nothing is known.
        previous: label map that an earlier stage of a cascade predicted, or None.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    subject: str = ""
    instances: Path | None = None
    annotated: AnnotatedLabels | None = None
    first_stage: Path | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise DataError(
                f"case {self.id!r}: expected an id of 1 to 128 letters, digits, dots, underscores and dashes "
                "that begins with none of '.-'. Name the case otherwise."
            )
        if not self.images:
            raise DataError(f"case {self.id}: found no image, expected at least one. Give its image files.")
        object.__setattr__(self, "subject", self.subject or self.id)

    @property
    def files(self) -> tuple[Path, ...]:
        """Images and, where there are any, the label map, the instance map and the label map of an earlier stage."""
        others = (self.label, self.instances, self.first_stage)
        return (*self.images, *(path for path in others if path is not None))


@dataclass(frozen=True)
class Dataset:
    """Cases with the meaning of their channels and labels.

    Attributes:
        name: shown in reports.
        root: the folder that all files lie in.
        cases: sorted by id, each id once.
        channel_names: one per channel of an image.
        labels: table of label values, or None where the layout does not say.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    labels: Labels | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.cases, key=lambda case: case.id))
        require_unique(ordered, str(self.root))
        object.__setattr__(self, "cases", ordered)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all cases, sorted."""
        return tuple(case.id for case in self.cases)

    @property
    def labelled_cases(self) -> tuple[Case, ...]:
        """The cases that have a label map, or an instance map to make it of."""
        return tuple(case for case in self.cases if case.label is not None or case.instances is not None)

    def case(self, case_id: str) -> Case:
        """The case with this id.

        Raises:
            DataError: there is none; the message names the nearest id.
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        hint = did_you_mean(case_id, self.ids) or f" It has {pluralise(len(self.cases), 'case')}."
        raise DataError(f"{self.root}: no case {case_id!r}.{hint} Give the id of a case of this dataset.")

    def subset(self, ids: Iterable[str]) -> Dataset:
        """The same dataset with only these cases.

        Raises:
            DataError: an unknown id.
        """
        chosen = {case_id: self.case(case_id) for case_id in ids}
        return replace(self, cases=tuple(chosen.values()))


def require_unique(cases: Iterable[Case], where: str) -> None:
    """Raise a `DataError` that names both first images of cases with the same id."""
    seen: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            raise DataError(
                f"{where}: case {case.id!r} is there twice: {seen[case.id].images[0]} and {case.images[0]}. "
                "Rename or remove one."
            )
        seen[case.id] = case


def require_files(cases: Iterable[Case], where: str) -> None:
    """Raise one `DataError` that lists every file of `cases` that does not exist."""
    missing = [f"{path} (case {case.id})" for case in cases for path in case.files if not path.exists()]
    if missing:
        more = f"\n  and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        listed = "".join(f"\n  {line}" for line in missing[:_MOST_LISTED])
        raise DataError(
            f"{where}: {len(missing)} file{'s are' if len(missing) > 1 else ' is'} missing:{listed}{more}\n"
            "Restore them, or take their cases off the list."
        )


def read_case_image(case: Case, channels: int | None = None) -> Volume:
    """Read all channels of a case onto the grid and orientation of its first file.

    Args:
        case: its files are read in order; each may hold several channels.
        channels: how many the case must have in all; None accepts any number.

    Returns:
        Volume `(C, X, Y, Z)`, in the first file's orientation and with its geometry header.

    Raises:
        DataError: a file is unreadable, two files lie on different grids, or the number of channels is not
            `channels`.
    """
    first, *others = (read(path) for path in case.images)
    parts = [first.data]
    for path, volume in zip(case.images[1:], others, strict=True):
        parts.append(_aligned_to_grid(volume, first.grid, path, case.images[0], "channel").data)
    data = np.concatenate(parts) if others else first.data
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
    # int32 beside float32 promotes to float64, which no later step needs
    return first.with_data(data.astype(np.float32) if data.dtype == np.float64 else data)


def read_case_label(case: Case, labels: Labels, grid: Grid | None = None) -> Volume:
    """Read the label map of a case as class indices on the grid of its image.

    Args:
        case: must have a label map.
        labels: table from the values in the file to classes.
        grid: the image's grid; None reads it from the first image.

    Returns:
        Label volume `(1, X, Y, Z)` of class indices 0 … K−1, and K for voxels to ignore, uint8 or uint16, on the
        image's grid; a map that is stored in another orientation is turned. Of a case with instances only, class 1 is
        every voxel of an instance.

    Raises:
        DataError: no label map, another grid, or a value that `labels` does not hold, or of a label that was not
            drawn in this case; instances only, and more than one class they could be of.
    """
    if case.label is None and case.instances is not None:
        if len(labels.foreground) != 1:
            raise DataError(
                f"case {case.id}: found instances without a label map, expected one, because there are "
                f"{len(labels.foreground)} labels. Add label maps, or name one label."
            )
        ids = read_case_instances(case, grid)
        return ids.with_data((ids.data > 0).astype(np.uint8))
    if case.label is None:
        raise DataError(f"case {case.id}: found no label map, expected one. Give its label, or leave it out.")
    grid = grid or read_grid(case.images[0])
    volume = _aligned_to_grid(read_labels(case.label), grid, case.label, case.images[0], "label map")
    classes = labels.to_classes(volume.data, str(case.label))
    _check_annotated(case, labels, classes)
    return Volume(classes, grid, "label")


def _check_annotated(case: Case, labels: Labels, classes: NDArray[Any]) -> None:
    for index in unannotated_classes(labels, case.annotated, f"case {case.id}"):
        count = int((classes == index).sum())
        if count:
            raise DataError(
                f"case {case.id}: {case.label}: found {count} voxels of value {labels.values[index]} "
                f"({labels.names[index]}), expected none, because of this case only {', '.join(case.annotated or ())} "
                "should have been drawn. Name the label among the drawn ones, or mend the label map."
            )


def read_case_first_stage(case: Case, labels: Labels, grid: Grid | None = None) -> Volume:
    """Read the label map that an earlier stage predicted for a case as class indices on the grid of its image.

    Args:
        case: must have such a map.
        labels: of the earlier stage.
        grid: the image's grid; None reads it from the first image.

    Returns:
        As `read_case_label`.

    Raises:
        DataError: no such map, another grid, or a value that `labels` does not hold.
    """
    if case.first_stage is None:
        raise DataError(
            f"case {case.id}: found no label map of the earlier stage, expected one. Predict it with that stage."
        )
    grid = grid or read_grid(case.images[0])
    what = "label map of the earlier stage"
    volume = _aligned_to_grid(read_labels(case.first_stage), grid, case.first_stage, case.images[0], what)
    return Volume(labels.to_classes(volume.data, str(case.first_stage)), grid, "label")


def read_case_instances(case: Case, grid: Grid | None = None) -> Volume:
    """Read the instance map of a case on the grid of its image.

    Args:
        case: must have an instance map.
        grid: the image's grid; None reads it from the first image.

    Returns:
        Label volume `(1, X, Y, Z)` of ids, int32, on the image's grid.

    Raises:
        DataError: no instance map, another grid, or ids that are negative or too large.
    """
    if case.instances is None:
        raise DataError(
            f"case {case.id}: found no instance map, expected one. Give its instances, or leave it out."
        )
    grid = grid or read_grid(case.images[0])
    volume = _aligned_to_grid(
        read_labels(case.instances), grid, case.instances, case.images[0], "instance map"
    )
    low, high = int(volume.data.min()), int(volume.data.max())
    if low < 0 or high > _LARGEST_ID:
        raise DataError(
            f"{case.instances}: found ids {low} to {high}, expected 0 to {_LARGEST_ID}. Number the instances anew."
        )
    return Volume(volume.data.astype(np.int32), grid, "label")


def read_case_objects(case: Case, labels: Labels, grid: Grid | None = None) -> InstanceFile:
    """Read the instance map of a case with the value of the label that each instance is of.

    Without a label map all are of the one class there is; with one, an instance is of the class that most of its
    voxels have.

    Raises:
        DataError: as `read_case_instances` and `read_case_label`; an instance that lies on background alone.
    """
    ids = read_case_instances(case, grid)
    classes = read_case_label(case, labels, ids.grid).data
    inside = (ids.data > 0) & (classes > 0) & (classes < len(labels))  # and not to be ignored
    pairs, counts = np.unique(np.stack([ids.data[inside], classes[inside]]), axis=1, return_counts=True)
    values: dict[int, int] = {}
    for (number, index), _ in sorted(zip(pairs.T.tolist(), counts, strict=True), key=lambda one: one[1]):
        values[number] = labels.values[index]  # the most frequent comes last
    lost = sorted(set(np.unique(ids.data[ids.data > 0]).tolist()) - values.keys())
    if lost:
        raise DataError(
            f"{case.instances}: instances outside of every label: found ids {', '.join(map(str, lost[:5]))} ({len(lost)}), "
            f"expected some voxel of each on a label of {case.label}. Mend one of the maps."
        )
    return InstanceFile(ids, values)


def _aligned_to_grid(volume: Volume, grid: Grid, path: Path, image: Path, what: str) -> Volume:
    """Place a file that belongs to an image on the image's grid, or raise."""
    fix = "Resample it to the grid of that image, or use the file that belongs to it"
    return align_to_grid(volume, grid, where=f"{path}: {what}", grid_of=image, fix=fix)
