"""The files that a prediction consists of, and whether they exist already.

This is the only place that knows how output files are named, which of them belong together, and when a case counts as
already predicted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from medseg.data.datasets.cases import Case
from medseg.errors import ConfigError, DataError, collected_warnings
from medseg.inference.cohort.case_records import CaseRecords
from medseg.inference.cohort.cohort_tables import CASES, FAILED, RUN, VOLUMES
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.written_files import FOLDER, NO_KINDS, FileKind, FileKinds, written_files
from medseg.io.files import NATURAL_IMAGES, is_dicom, stem_of, suffix_of
from medseg.io.probability_files import BYTES_PER_PROBABILITY
from medseg.io.segmentation_files import DICOM_SEGMENTATIONS
from medseg.storage.manifest import NAME as MANIFEST
from medseg.storage.portable_names import folded, ignores_case

_MOST_COUNTED = 1000


class PredictionState(StrEnum):
    """The state of the prediction of a case, by its output files.

    Attributes:
        MISSING: Some files do not exist, were written by another program, or were not written completely; or they or the
            image were changed afterwards.
        CURRENT: All files exist and come from this image and model with these settings.
        OTHER_MODEL: All files exist; they come from another model or other settings.
    """

    MISSING = "missing"
    CURRENT = "current"
    OTHER_MODEL = "other model"


@dataclass(frozen=True)
class OutputFiles:
    """The files that are written for each case: a label map, and others if they are wanted.

    Attributes:
        folder: Folder of the label maps. Other files are written next to them.
        suffix: Suffix of the label maps, such as ``.nii.gz``.
        instances: Whether ``NAME_instances`` and its table are written, too.
        probabilities: Whether ``NAME_probabilities.nii`` is written, too.
        uncertainty: Whether ``NAME_uncertainty.nii`` is written, too.
        logit_sample: Whether a sample of the logits of cases with references is written, too, see
            `medseg.inference.uncertainty.logit_sample`.
        evidence: Whether sums over the probabilities are recorded, too, see `medseg.inference.uncertainty.case_evidence`.
        copies: Copies of the label map in other forms: kinds of `medseg.inference.cohort.written_files.COPIES`.

    Examples:
        >>> outputs = OutputFiles(Path("out"), probabilities=True)
        >>> [path.name for path in outputs.files_of(outputs.label_map_path("case_1"))]
        ['case_1.nii.gz', 'case_1_probabilities.nii']
    """

    folder: Path
    suffix: str = ".nii.gz"
    instances: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    logit_sample: bool = False
    evidence: bool = False
    copies: FileKinds = NO_KINDS

    @property
    def kinds(self) -> FileKinds:
        """The kinds of files that are written with each label map."""
        wanted = {
            FileKind.INSTANCES: self.instances,
            FileKind.PROBABILITIES: self.probabilities,
            FileKind.UNCERTAINTY: self.uncertainty,
            FileKind.LOGIT_SAMPLE: self.logit_sample,
        }
        return frozenset(kind for kind, is_wanted in wanted.items() if is_wanted) | self.copies

    def label_map_path(self, name: str) -> Path:
        """Return the path of the label map called `name`."""
        return self.folder / f"{name}{self.suffix}"

    def files_of(self, label_map: Path) -> list[Path]:
        """Return the label map and all files that are written with it."""
        return written_files(label_map, self.kinds)

    def least_bytes(self, cases: Iterable[Case], num_outputs: int) -> int:
        """Return a lower bound of the bytes that the output files of cases take; only headers are read.

        Args:
            cases: Cases to predict. Those whose header cannot be read, and DICOM series, are not counted; nor are cases
                after the first thousand.
            num_outputs: Number of labels or regions of which probabilities are written.

        Returns:
            Bytes; 0 if only compressed label maps are written, whose size is not known before.
        """
        per_voxel = BYTES_PER_PROBABILITY * (num_outputs * self.probabilities + self.uncertainty)
        per_voxel += self.suffix == ".nii"
        if not per_voxel:
            return 0
        voxels = 0
        for case in islice(cases, _MOST_COUNTED):
            if not case.images[0].is_dir():
                with suppress(DataError), collected_warnings():
                    grid = case.reading.read_grid(case.images[0])
                    voxels += math.prod(grid.shape)
        return voxels * per_voxel

    def state(self, case: Case, label_map: Path, records: CaseRecords, model_id: ModelId) -> PredictionState:
        """Return the state of the prediction of a case.

        Args:
            case: The case.
            label_map: Label map of the case.
            records: Records of the folder that holds the label map.
            model_id: The model and settings whose prediction is wanted.

        Returns:
            `OTHER_MODEL` if another model or other settings wrote the files; `CURRENT` if all wanted files were written
            completely by this model, and they and the image have the same content as then; else `MISSING`.
        """
        record = records.get(stem_of(label_map))
        exist = all(file.exists() for file in self.files_of(label_map))
        if not exist or record is None or record.is_unfinished or record.prediction is None:
            return PredictionState.MISSING
        if not record.is_by(model_id):
            return PredictionState.OTHER_MODEL
        wanted = record.is_by(model_id, self.kinds, evidence=self.evidence)
        if wanted and record.is_unchanged(case, label_map):
            return PredictionState.CURRENT
        return PredictionState.MISSING

    def check_suffix(self, cases: Iterable[Case]) -> None:
        """Raise `ConfigError` if the format of the label maps does not suit all images.

        Formats for natural images cannot hold volumes, and DICOM segmentations refer to a DICOM series.
        """
        if self.suffix in DICOM_SEGMENTATIONS:
            self._check_series(cases)
            return
        if self.suffix not in NATURAL_IMAGES:
            return
        volume = next(
            (case.images[0] for case in cases if suffix_of(case.images[0]) not in NATURAL_IMAGES), None
        )
        if volume is not None:
            raise ConfigError(
                f"suffix {self.suffix}: found {volume}, expected natural images, because a {self.suffix} file cannot hold "
                "a volume. Leave the suffix out."
            )

    def _check_series(self, cases: Iterable[Case]) -> None:
        if self.instances:
            raise ConfigError(
                f"suffix {self.suffix}: found it with instances, expected label maps only, because a DICOM segmentation has few named segments. "
                "Leave the suffix out."
            )
        other = next((case.images[0] for case in cases if not is_dicom(case.images[0])), None)
        if other is not None:
            raise ConfigError(
                f"suffix {self.suffix}: found {other}, expected folders with DICOM series, because a DICOM segmentation refers to the images of its "
                "source. Leave the suffix out, or give the DICOM series."
            )

    def _check_folder(self) -> None:
        """Raise `ConfigError` if the folder holds a model, or other tables that those of a prediction would replace."""
        if (self.folder / MANIFEST).is_file():
            raise ConfigError(
                f"{self.folder}: found a model folder, expected a folder for label maps. Choose another output folder."
            )
        foreign = [name for name in (CASES, FAILED, VOLUMES, RUN) if (self.folder / name).exists()]
        if foreign and not (self.folder / FOLDER).exists():
            raise ConfigError(
                f"{self.folder}: found {foreign[0]}, which belongs to no prediction and would be replaced, expected another folder. "
                "Choose another output folder."
            )

    def check_targets(self, cases: Iterable[Case], label_maps: Sequence[Path]) -> None:
        """Raise `ConfigError` if two cases share an output file, or if the folder or an output file is unsuitable.

        An output file may be neither an input nor a symbolic link. The folder may hold neither a model nor tables other
        than those of a prediction. On file systems that ignore case, ``A.nii.gz`` and ``a.nii.gz`` are the same file.

        Args:
            cases: The cases to predict.
            label_maps: The label map of each case.
        """
        self._check_folder()
        files = [file for label_map in label_maps for file in self.files_of(label_map)]
        fold = ignores_case(self.folder)
        names = Counter(folded(str(file)) if fold else str(file) for file in files)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise ConfigError(
                f"{twice}: found two images with this output file, expected one. Predict them into two folders."
            )
        inputs = {image.resolve() for case in cases for image in case.images}
        clash = next((file for file in files if file.resolve() in inputs), None)
        if clash is not None:
            raise ConfigError(f"{clash}: the output would replace an input. Choose another output folder.")
        link = next((file for file in files if file.is_symlink()), None)
        if link is not None:
            raise ConfigError(
                f"{link}: found a link to {link.readlink()}, expected a file or nothing, because an output never replaces what is "
                "outside its folder. Remove the link, or choose another output folder."
            )
