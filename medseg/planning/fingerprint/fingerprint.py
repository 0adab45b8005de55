"""The fingerprint of a dataset: what was measured on its cases, as types that are stored as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.config import Config
from medseg.errors import MedsegError
from medseg.planning.fingerprint.histogram import IntensityStatistics
from medseg.storage.atomic import write_text
from medseg.storage.json_files import read_object

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
FORMAT = 1  # of the file; part of every stamp


class CaseMeasures(Config):
    """What was measured on one case. Axes are X, Y, Z after turning to RAS+.

    Attributes:
        id: of the case. stamp: of its files' names, sizes and times; a changed file changes it.
        orientation: axis codes of the image as stored.
        shape: voxels. shape_after_crop: after cutting margins that are 0 in every channel.
        spacing: mm. voxel_mm3: volume of a voxel. shear: largest cosine between two axes.
        label_voxels: value of each label present → its voxels, background left out.
        ranges: least and greatest intensity of the whole image, per channel.
        foreground: intensities of labelled voxels per channel; empty for a case without any.
    """

    id: str
    stamp: str
    orientation: str
    shape: Triple
    shape_after_crop: Triple
    spacing: Spacing
    voxel_mm3: float
    shear: float
    label_voxels: dict[int, int]
    ranges: tuple[tuple[float, float], ...]
    foreground: tuple[IntensityStatistics, ...]

    @property
    def voxels(self) -> int:
        """Voxels of the image."""
        x, y, z = self.shape
        return x * y * z

    @property
    def relative_size(self) -> float:
        """Share of the image that the crop to non-zero leaves."""
        x, y, z = self.shape_after_crop
        return x * y * z / self.voxels

    @property
    def foreground_fraction(self) -> float:
        """Share of the image's voxels that carry a label."""
        return sum(self.label_voxels.values()) / self.voxels

    def label_ml(self, value: int) -> float:
        """Volume of a label, millilitres."""
        return self.label_voxels.get(value, 0) * self.voxel_mm3 / 1000


class Finding(Config):
    """Something about a dataset that a user should know before training on it.

    Attributes:
        code: short name of the kind. text: one sentence or two. cases: ids concerned; empty for the whole dataset.
        severe: whether training is likely to suffer.
    """

    code: str
    text: str
    cases: tuple[str, ...] = ()
    severe: bool = True


class Fingerprint(Config):
    """What was measured on all labelled cases of a dataset.

    Attributes:
        format: version of the file.
        dataset: its name. channel_names: one per channel.
        labels: name → value, background first.
        named: whether the dataset itself names its labels; else they are called by their values.
        regions: names of the regions that a network is to predict instead. ignore: value of voxels not annotated.
        unlabelled: cases without label map, which were not measured.
        subjects: persons among the measured cases.
        cases: sorted by id.
        intensities: of the foreground of all cases, each weighing the same, per channel.
        findings: severe ones first.
    """

    format: Literal[1] = 1
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
        """Median over the cases of what the crop to non-zero leaves."""
        return float(np.median([case.relative_size for case in self.cases]))

    @property
    def foreground_labels(self) -> dict[str, int]:
        """Name → value without the background."""
        return {name: value for name, value in self.labels.items() if value != 0}

    @property
    def num_outputs(self) -> int:
        """Outputs of a network: regions, or labels with the background."""
        return len(self.regions) or len(self.labels)

    @property
    def counted_labels(self) -> int:
        """Labels as nnU-Net's planner counts them: entries of its table, with background, regions and ignore."""
        named = len(self.regions) + 1 if self.regions else len(self.labels)
        return named + (self.ignore is not None)

    def medians(self) -> tuple[Spacing, Spacing]:
        """Median spacing (mm) and median shape (voxels) of the cases as stored."""
        spacing = np.median([case.spacing for case in self.cases], axis=0)
        shape = np.median([case.shape for case in self.cases], axis=0)
        return _triple(spacing), _triple(shape)

    def save(self, path: str | Path) -> None:
        """Write as JSON, a line per case, in one step."""
        plain = self.to_plain()
        cases = plain.pop("cases")
        head = json.dumps(plain, indent=1)
        lines = ",\n".join("  " + json.dumps(case) for case in cases)
        write_text(path, f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n')

    @classmethod
    def read(cls, path: str | Path) -> Fingerprint:
        """Read what `save` wrote.

        Raises:
            DataError, ConfigError: not such a file.
        """
        return cls.parse(read_object(Path(path)), source=str(path))


def saved_fingerprint(path: str | Path) -> Fingerprint | None:
    """The fingerprint stored at `path`, or None where there is none that this version can use."""
    if not Path(path).is_file():
        return None
    try:
        return Fingerprint.read(path)
    except MedsegError:
        return None


def _triple(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Spacing:
    x, y, z = (float(value) for value in values)
    return (x, y, z)
