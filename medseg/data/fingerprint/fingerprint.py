"""The fingerprint of a dataset: measurements of its cases, stored as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.config import Config
from medseg.data.preprocessing.histogram import IntensityStatistics
from medseg.errors import MedsegError
from medseg.storage.atomic import write_text
from medseg.storage.formats import check_format
from medseg.storage.json_files import read_object

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
FORMAT = (
    2  # version of the file; part of every `CaseMeasures.files`, so that a change measures all cases again
)


class CaseMeasures(Config):
    """The measurements of one case. Axes are X, Y, Z after reorientation to RAS+.

    Attributes:
        id: Id of the case.
        files: Hash of the names of its files, relative to the dataset, and of how they are read.
        stamp: Hash of their sizes, times and numbers on the disk; see `FileState`.
        content: Hash of their bytes.
        orientation: Axis codes of the image as stored.
        shape: Voxels per axis.
        shape_after_crop: Voxels per axis after cropping margins that are 0 in every channel.
        spacing: Voxel size in mm.
        voxel_mm3: Volume of a voxel in mm³.
        shear: Largest cosine between two axes.
        label_voxels: Number of voxels by label value, without background and absent labels.
        ranges: Minimum and maximum of the whole image, per channel.
        foreground: Intensities of labelled voxels, per channel; empty for a case without any.
        histograms: Histograms of these voxels, packed, of the channels that are normalised as CT; an empty text for others.
        absent: Indices of channels that the case lacks; their ranges and intensities are 0 and do not count.
    """

    id: str
    files: str
    stamp: str
    content: str
    orientation: str
    shape: Triple
    shape_after_crop: Triple
    spacing: Spacing
    voxel_mm3: float
    shear: float
    label_voxels: dict[int, int]
    ranges: tuple[tuple[float, float], ...]
    foreground: tuple[IntensityStatistics, ...]
    histograms: tuple[str, ...] = ()
    absent: tuple[int, ...] = ()

    @property
    def voxels(self) -> int:
        """The number of voxels of the image."""
        x, y, z = self.shape
        return x * y * z

    def has(self, channel: int) -> bool:
        """Return whether the case has a file of a channel, by the index of the channel."""
        return channel not in self.absent

    @property
    def relative_size(self) -> float:
        """The fraction of the image that the crop to non-zero keeps."""
        x, y, z = self.shape_after_crop
        return x * y * z / self.voxels

    @property
    def foreground_fraction(self) -> float:
        """The fraction of the image's voxels that have a label."""
        return sum(self.label_voxels.values()) / self.voxels

    def label_ml(self, value: int) -> float:
        """Return the volume of a label in ml.

        Args:
            value: Value of the label.

        Returns:
            Volume in ml; 0 if the label is absent.
        """
        return self.label_voxels.get(value, 0) * self.voxel_mm3 / 1000


class Finding(Config):
    """A property of a dataset that a user should know before training on it.

    Attributes:
        code: Short name of the kind of finding.
        text: One or two sentences.
        cases: Ids of the cases concerned; empty for the whole dataset.
        severe: Whether training is likely to suffer.
    """

    code: str
    text: str
    cases: tuple[str, ...] = ()
    severe: bool = True


class Fingerprint(Config):
    """The measurements of all labelled cases of a dataset.

    Attributes:
        format: Format version of the file.
        dataset: Name of the dataset.
        channel_names: Name of each channel.
        labels: Value by label name, background first.
        named: Whether the dataset names its labels; if not, they are named by their values.
        regions: Names of the regions that a network predicts instead of labels.
        ignore: Value of unannotated voxels; None if there is none.
        unlabelled: Number of cases without a label map, which were not measured.
        subjects: Number of subjects of the measured cases.
        cases: Measurements per case, sorted by id.
        intensities: Foreground intensities per channel over all cases, which have equal weight.
        findings: The findings, severe ones first.
    """

    format: Literal[2] = 2
    dataset: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    named: bool = True
    regions: tuple[str, ...] = ()
    ignore: int | None = None
    unlabelled: int = 0
    subjects: int
    cases: tuple[CaseMeasures, ...]
    intensities: tuple[IntensityStatistics, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def median_relative_size(self) -> float:
        """The median over the cases of the fraction that the crop to non-zero keeps."""
        return float(np.median([case.relative_size for case in self.cases]))

    @property
    def foreground_labels(self) -> dict[str, int]:
        """The value by label name, without the background."""
        return {name: value for name, value in self.labels.items() if value != 0}

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network: regions, or labels with the background."""
        return len(self.regions) or len(self.labels)

    @property
    def counted_labels(self) -> int:
        """The number of labels as nnU-Net's planner counts them: with background, regions and ignore."""
        named = len(self.regions) + 1 if self.regions else len(self.labels)
        return named + (self.ignore is not None)

    def medians(self) -> tuple[Spacing, Spacing]:
        """Return the median spacing (mm) and the median shape (voxels) of the cases as stored."""
        spacing = np.median([case.spacing for case in self.cases], axis=0)
        shape = np.median([case.shape for case in self.cases], axis=0)
        return _triple(spacing), _triple(shape)

    def save(self, path: str | Path) -> None:
        """Write JSON with one line per case, atomically.

        Args:
            path: The file.
        """
        plain = self.to_plain()
        cases = plain.pop("cases")
        head = json.dumps(plain, indent=1)
        lines = ",\n".join("  " + json.dumps(case) for case in cases)
        write_text(path, f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n')

    @classmethod
    def read(cls, path: str | Path) -> Fingerprint:
        """Read a file written by `save`.

        Args:
            path: The file.

        Returns:
            The fingerprint.

        Raises:
            DataError: The file cannot be read, or a newer or older medseg has written it.
            ConfigError: A key is missing, unknown or has a wrong value.
        """
        values = read_object(Path(path))
        check_format(values.get("format"), FORMAT, path, "fingerprint")
        return cls.parse(values, source=str(path))


def saved_fingerprint(path: str | Path) -> Fingerprint | None:
    """Return the fingerprint stored at `path`, or None if there is none that this version can use.

    Args:
        path: A file used as a cache.

    Returns:
        The fingerprint, or None.
    """
    if not Path(path).is_file():
        return None
    try:
        return Fingerprint.read(path)
    except MedsegError:
        return None


def _triple(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Spacing:
    x, y, z = (float(value) for value in values)
    return (x, y, z)
