"""Cases and datasets: which files belong together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medseg.data.datasets.names import LONGEST_ID, is_valid_id
from medseg.errors import DataError, did_you_mean
from medseg.io.dicom.uneven_gaps import Uneven
from medseg.io.files import read, read_grid
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.labels.label_sets import AnnotatedLabels
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import pluralise
from medseg.storage.portable_names import FORBIDDEN
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

_MOST_LISTED = 100
AbsentChannels = Literal["refuse", "zeros"]
"""What is done with cases without a file for some of their channels."""


@dataclass(frozen=True)
class ReadingOptions:
    """What the user decided about files that can be read in several ways, and about where files may be.

    Attributes:
        orientation_from: Description of the geometry to use where a NIfTI header leaves it open or contradicts itself; None
            refuses files in which left and right are a guess. See `medseg.read`.
        trust_label_array: Whether a label map or instance map with as many voxels as its image, but another grid, is placed
            on the grid of the image as it is stored.
        files_root: Folder that absolute paths and paths with ``..`` in a ``dataset.json`` or a table of cases may point
            into; None allows only the folder of the dataset.
        series: UID of the DICOM series to read in folders with several, or its number in the list of a folder; None if only one of
            them is a volume. See `medseg.read`.
        uneven: What to do with DICOM series with uneven gaps between slices: ``"refuse"``, or ``"resample"`` to interpolate slices.
        repairs: File of repairs to apply to a dataset, as `medseg.data.datasets.repairs` describes it.
        label_values: Old and new label value of a repair.
        round_labels: Whether label values within 0.1 of whole numbers are rounded, by a repair.
        absent_channels: What to do with cases without a file for some of their channels: ``"refuse"``, or ``"zeros"`` to use zeros
            after normalisation.
    """

    orientation_from: OrientationFrom | None = None
    trust_label_array: bool = False
    files_root: str | None = None
    series: str | int | None = None
    uneven: Uneven = "refuse"
    repairs: str | None = None
    label_values: tuple[tuple[int, int], ...] = ()
    round_labels: bool = False
    absent_channels: AbsentChannels = "refuse"

    def updated(self, later: ReadingOptions) -> ReadingOptions:
        """Return these options, with what `later` decides about geometries, DICOM series and label maps.

        Args:
            later: Options given for one command, such as an evaluation of the cases of a run.

        Returns:
            The options. What `later` leaves open stays.
        """
        return replace(
            self,
            orientation_from=later.orientation_from or self.orientation_from,
            trust_label_array=later.trust_label_array or self.trust_label_array,
            series=self.series if later.series is None else later.series,
            uneven=self.uneven if later.uneven == "refuse" else later.uneven,
            absent_channels=self.absent_channels
            if later.absent_channels == "refuse"
            else later.absent_channels,
        )

    def read_image(self, path: Path) -> Volume:
        """Read an image with these options; see `medseg.read`."""
        return read(path, orientation_from=self.orientation_from, series=self.series, uneven=self.uneven)

    def read_grid(self, path: Path) -> Grid:
        """Read the grid of an image with these options; see `medseg.io.read_grid`."""
        return read_grid(path, orientation_from=self.orientation_from, series=self.series, uneven=self.uneven)


UNDECIDED = ReadingOptions()


@dataclass(frozen=True)
class Case:
    """One study of one subject.

    Attributes:
        id: Name, unique in its dataset. It becomes part of file names, so it may contain letters of any script, digits,
            spaces and most signs, but no slash, colon, quote, wildcard or control character; see
            `medseg.data.datasets.names.is_valid_id`.
        images: One file per channel, or one file (or DICOM folder) that holds all channels.
        label: Label map, or None.
        subject: The person. All cases of a subject are in the same fold of a split. The default is the id.
        instances: Instance map (ids, 0 is background), or None. Without a label map, all instances belong to one class.
        annotated: Names of the labels that are annotated, or None for all. Nothing is known about the other labels.
        first_stage: Label map that the first stage of a cascade predicted, or None.
        reading: What the user decided about files whose headers are wrong.
        absent: Indices of channels without a file; `images` then holds the files of the others.
        weight: How often patches of the case are sampled in training, in proportion to the other cases; 0 for never.
        probabilities: File with one channel of probabilities per label, for training with soft labels, or None. Without a
            label map, the most probable label of each voxel takes its place.

    Raises:
        DataError: The id has other characters, there is no image, or the weight is negative or not finite.

    Examples:
        >>> case = Case("liver_1", (Path("images/liver_1.nii.gz"),), label=Path("labels/liver_1.nii.gz"))
        >>> case.subject, len(case.files)
        ('liver_1', 2)
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    subject: str = ""
    instances: Path | None = None
    annotated: AnnotatedLabels | None = None
    first_stage: Path | None = None
    reading: ReadingOptions = UNDECIDED
    absent: tuple[int, ...] = ()
    weight: float = 1.0
    probabilities: Path | None = None

    def __post_init__(self) -> None:
        if not is_valid_id(self.id):
            raise DataError(
                f"case: found the id {self.id!r}, expected one that is a file name on every system: 1 to {LONGEST_ID} characters without "
                f"{' '.join(FORBIDDEN)} and control characters, no dot, dash or space at the beginning, no dot or space at "
                "the end, and no name that Windows reserves, such as con. Rename the case."
            )
        if not self.images:
            raise DataError(f"case {self.id}: found no image, expected at least one. Add its image files.")
        if not 0 <= self.weight < math.inf:
            raise DataError(
                f"case {self.id}: case weight: found {self.weight:g}, expected a number that is not negative. Correct it."
            )
        object.__setattr__(self, "subject", self.subject or self.id)

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, followed by the label map, the instance map, the first-stage map and the probabilities if they exist."""
        others = (self.label, self.instances, self.first_stage, self.probabilities)
        return (*self.images, *(path for path in others if path is not None))

    @property
    def is_labelled(self) -> bool:
        """Whether the case has a label map, or a file from which it can be derived."""
        return any(path is not None for path in (self.label, self.instances, self.probabilities))


@dataclass(frozen=True)
class Dataset:
    """Cases with the meaning of their channels and labels.

    Attributes:
        name: Name shown in reports.
        root: Folder that contains all files.
        cases: Cases, sorted by id.
        channel_names: One name per channel of an image.
        labels: Label table, or None if the layout has none.

    Raises:
        DataError: Two cases have the same id.
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
        """The ids of all cases, sorted."""
        return tuple(case.id for case in self.cases)

    @property
    def labelled_cases(self) -> tuple[Case, ...]:
        """The cases with a label map, or with instances or probabilities from which it can be derived."""
        return tuple(case for case in self.cases if case.is_labelled)

    def case(self, case_id: str) -> Case:
        """Return the case with this id.

        Args:
            case_id: Id of the case.

        Returns:
            The case.

        Raises:
            DataError: There is none; the message suggests the nearest id.
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        hint = did_you_mean(case_id, self.ids) or f" It has {pluralise(len(self.cases), 'case')}."
        raise DataError(f"{self.root}: no case {case_id!r}.{hint} Give the id of a case of this dataset.")

    def subset(self, ids: Iterable[str]) -> Dataset:
        """Return the dataset with only these cases.

        Args:
            ids: Ids of the cases to keep.

        Returns:
            A dataset with the same channels and labels.

        Raises:
            DataError: An id is unknown.
        """
        chosen = {case_id: self.case(case_id) for case_id in ids}
        return replace(self, cases=tuple(chosen.values()))

    def with_instance_maps(self, where: str) -> Dataset:
        """Return the dataset with its label maps read as instance maps: each value above 0 is one instance.

        Args:
            where: File and field that states this, for messages.

        Returns:
            A dataset whose only label is the named one, or ``instance`` without names. Cases that have an instance map are not
            changed.

        Raises:
            DataError: The dataset names several labels.
        """
        labels = self.labels or Labels.from_names({"instance": 1})
        if len(labels.foreground) != 1 or labels.regions:
            raise DataError(
                f"{where}: found instance maps and the labels {', '.join(labels.names)}, expected one label besides background, "
                "because values are ids of instances. Name the kind of the instances alone, or give label maps and instance "
                "maps in a table of cases (columns label and instances)."
            )
        cases = (
            replace(case, label=None, instances=case.label) if case.instances is None else case
            for case in self.cases
        )
        return replace(self, cases=tuple(cases), labels=labels)


def require_unique(cases: Iterable[Case], where: str) -> None:
    """Raise `DataError` if two cases have the same id; the message names the first image of both."""
    seen: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            raise DataError(
                f"{where}: found two cases {case.id!r}: {seen[case.id].images[0]} and {case.images[0]}, expected different ids. "
                "Rename or remove one."
            )
        seen[case.id] = case


def require_files(cases: Iterable[Case], where: str) -> None:
    """Raise one `DataError` that lists all missing files of `cases`."""
    missing = [
        f"{path} ({_link_of(path)}case {case.id})"
        for case in cases
        for path in case.files
        if not path.exists()
    ]
    if missing:
        more = f"\n  and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        listed = "".join(f"\n  {line}" for line in missing[:_MOST_LISTED])
        raise DataError(
            f"{where}: {len(missing)} file{'s are' if len(missing) > 1 else ' is'} missing:{listed}{more}\n"
            "Restore them, or remove their cases from the list."
        )


def with_absent_channels(cases: Iterable[Case], channels: int) -> tuple[Case, ...]:
    """Return cases whose missing image files are absent channels.

    A case stays as it is if all of its image files exist, if none exists, or if it has another number of files than
    channels. So does one with a broken link, which is a damaged dataset.

    Args:
        cases: Cases whose files may be missing.
        channels: Number of channels of the dataset.

    Returns:
        The cases. Those with absent channels have only the files that exist.
    """
    return tuple(_with_absent(case, channels) for case in cases)


def _with_absent(case: Case, channels: int) -> Case:
    missing = [not path.exists() and not path.is_symlink() for path in case.images]
    if len(case.images) != channels or not any(missing) or all(missing):
        return case
    kept = tuple(path for path, gone in zip(case.images, missing, strict=True) if not gone)
    return replace(case, images=kept, absent=tuple(index for index, gone in enumerate(missing) if gone))


def require_each_channel(cases: Sequence[Case], names: Sequence[str], where: str | Path) -> None:
    """Raise if a channel is absent in all cases, so that nothing could be learned from it.

    Args:
        cases: The training cases.
        names: Names of the channels.
        where: The dataset, for the message.

    Raises:
        DataError: There is such a channel.
    """
    for index, name in enumerate(names):
        if cases and all(index in case.absent for case in cases):
            raise DataError(
                f"{where}: channel {name}: found a file in none of {len(cases)} training cases, expected some. Add files, or remove the channel "
                "from the dataset."
            )


def _link_of(path: Path) -> str:
    """Return where a link leads, for a message; an empty string for anything else."""
    return f"a link to {path.readlink()}, " if path.is_symlink() else ""
