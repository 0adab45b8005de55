"""Records of predicted cases: what was predicted from what, by which model, and how it went.

Each case has a file of its own, ``.cohort/cases/NAME.json`` in the folder of the label maps, so that any number of processes
and machines may write to one folder. It is replaced in one step, once before the label map is written and once
afterwards, so that the label map of a killed program is recognised as unfinished. The tables of the folder are built
from these files, see `medseg.inference.cohort.cohort_tables`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_image
from medseg.errors import MedsegError
from medseg.inference.cohort.batch import Outcome
from medseg.inference.cohort.model_id import ModelId
from medseg.inference.cohort.voxel_state import VoxelState, input_files, input_hash, input_stamp
from medseg.inference.cohort.written_files import FOLDER, NO_KINDS, FileKind, FileKinds, written_files
from medseg.inference.quality.case_quality import CaseQuality
from medseg.inference.quality.image_features import Features
from medseg.inference.uncertainty.case_evidence import CaseEvidence
from medseg.io.files import read_labels, stem_of
from medseg.labels.label_table import Labels
from medseg.labels.label_volumes import LabelVolume, label_volumes
from medseg.runtime.memory import process_memory
from medseg.storage.atomic import write_text
from medseg.storage.file_state import FileState, stamp_of
from medseg.storage.formats import check_format
from medseg.storage.json_files import parse_json
from medseg.volumes.volume import Volume
from medseg.volumes.voxel_hash import voxel_hash

FORMAT = 1
UNFINISHED = "unfinished"


class CaseState(StrEnum):
    """The progress of a case.

    Attributes:
        UNFINISHED: Writing its files has begun and not ended.
        PREDICTED: Its files are written.
        FAILED: The last attempt ended with an error.
    """

    UNFINISHED = "unfinished"
    PREDICTED = "predicted"
    FAILED = "failed"


@dataclass(frozen=True)
class Prediction:
    """The files of one case, and what they were predicted from.

    Attributes:
        model: As in `ModelId`.
        settings: As in `ModelId`.
        kinds: The kinds of files that were written with the label map.
        notes: Sentences about a prediction that was not done as planned, such as in another precision.
        input: State of the image.
        output: State of the label map.
        companions: State of the files that were written with it; None without any.
        volumes: Volume of each label or region.
        evidence: Sums over the probabilities; None if they were not formed.
        features: Properties of the image and the prediction, by kind and by what was measured; None if they were not kept.
        quality: Estimates and flags; None for instances.
        absent: Indices of channels that the image lacks.
    """

    model: str
    settings: tuple[str, ...] = ()
    kinds: FileKinds = NO_KINDS
    notes: tuple[str, ...] = ()
    input: VoxelState | None = None
    output: VoxelState | None = None
    companions: FileState | None = None
    volumes: tuple[LabelVolume, ...] = ()
    evidence: CaseEvidence | None = None
    features: Features | None = None
    quality: CaseQuality | None = None
    absent: tuple[int, ...] = ()


@dataclass(frozen=True)
class CaseRecord:
    """What is known about a case.

    Attributes:
        name: Name of the label map, without suffix.
        state: How far the case is.
        prediction: The files that exist; after an error, those of an earlier attempt. None if there are none.
        source: Image files; empty if they are to be left out.
        seconds: Seconds that the last attempt took.
        peak_memory: Largest resident bytes of the process during the last attempt.
        message: Why the last attempt failed; empty otherwise.
        id: Differs between the records of a case, also between the unfinished and the finished one.
    """

    name: str
    state: CaseState
    prediction: Prediction | None = None
    source: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_memory: int = 0
    message: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def is_unfinished(self) -> bool:
        """Whether writing the files began and did not end."""
        return self.state is CaseState.UNFINISHED

    @property
    def model(self) -> str | None:
        """The hash of the first model that wrote the label map; `UNFINISHED`; None if there is no label map."""
        if self.is_unfinished:
            return UNFINISHED
        return None if self.prediction is None else self.prediction.model.partition(" ")[0] or None

    def is_by(self, model_id: ModelId, kinds: FileKinds = NO_KINDS, *, evidence: bool = False) -> bool:
        """Return whether a model wrote the files completely.

        Args:
            model_id: The model and its settings.
            kinds: The kinds of files that must have been written with the label map.
            evidence: Whether sums over the probabilities and properties must have been recorded.

        Returns:
            True only if the files are complete, come from the same models and settings, and include what is required.
        """
        found = self.prediction
        if found is None or self.is_unfinished or ModelId(found.model, found.settings) != model_id:
            return False
        has_evidence = found.evidence is not None and found.features is not None
        return found.kinds >= kinds and has_evidence >= evidence

    def is_unchanged(self, case: Case, label_map: Path) -> bool:
        """Return whether the files are those that were written, predicted from the present image.

        Args:
            case: The case.
            label_map: Its label map.

        Returns:
            False if the image has other voxels than then, or a written file was changed, replaced or cut off.
        """
        found = self.prediction
        if found is None or found.input is None or found.output is None:
            return False
        others = written_files(label_map, found.kinds)[1:]
        return (
            found.input.still_holds(
                lambda: input_stamp(case), lambda: input_hash(case, read_case_image(case))
            )
            and found.output.still_holds(
                lambda: stamp_of((label_map,)),
                lambda: voxel_hash(read_labels(label_map, like=case.images[0])),
            )
            and (found.companions is None or found.companions.still_holds(others))
        )


class CaseRecords:
    """The records of a folder; a record that cannot be read counts as absent.

    Args:
        folder: Folder of the label maps.
        source_names: Whether to record the names of image files; messages mention the case instead otherwise.
    """

    def __init__(self, folder: Path, *, source_names: bool = True) -> None:
        self.path = folder / FOLDER / "cases"
        self._source_names = source_names

    def absolute(self) -> CaseRecords:
        """Return the same records by a path that does not depend on the folder of the process."""
        return CaseRecords(self.path.absolute().parent.parent, source_names=self._source_names)

    def get(self, name: str) -> CaseRecord | None:
        """Return the present record of a case.

        Args:
            name: Name of the label map, without suffix.

        Returns:
            The record; None if nothing is recorded.

        Raises:
            DataError: Another version of medseg wrote the record in another format.
        """
        return read_record(self.path / f"{name}.json")

    def write(self, record: CaseRecord) -> None:
        """Replace the record of a case.

        Args:
            record: The record.

        Raises:
            DataError: The record cannot be written.
            DiskFullError: The disk is full.
        """
        content = {"format": FORMAT, **asdict(record)}
        write_text(self.path / f"{record.name}.json", json.dumps(content, indent=1, default=sorted) + "\n")

    def write_failure(self, outcome: Outcome) -> None:
        """Record that a case failed; files of an earlier attempt still count as such.

        Args:
            outcome: An outcome with an error.
        """
        name = stem_of(outcome.target)
        former = self.get(name)
        failure = CaseRecord(
            name,
            CaseState.FAILED,
            None if former is None or former.is_unfinished else former.prediction,
            self._source(outcome.case),
            outcome.seconds,
            outcome.peak_memory,
            self._without_source(str(outcome.error), outcome.case),
        )
        with contextlib.suppress(MedsegError):  # on a full disk, the outcome itself says so
            self.write(failure)

    def forget_failure(self, name: str) -> None:
        """Record that the files of a case are current, although its last attempt failed.

        Args:
            name: Name of the label map, without suffix.
        """
        record = self.get(name)
        if record is not None and record.state is CaseState.FAILED and record.prediction is not None:
            self.write(replace(record, state=CaseState.PREDICTED, message="", id=uuid.uuid4().hex))

    @contextlib.contextmanager
    def recording(
        self,
        outcome: Outcome,
        label_map: Volume,
        peak: Callable[[], int] = process_memory,
        *,
        model_id: ModelId,
        labels: Labels,
        kinds: FileKinds = NO_KINDS,
    ) -> Iterator[None]:
        """Record a prediction around the writing of its files, and delete outdated companion files.

        Instances and probabilities of an earlier prediction would otherwise be taken for a part of this one. Files without
        a record are kept, and so is everything if the writing fails.

        Args:
            outcome: What is known about the case before its files are written.
            label_map: The label map that is written.
            peak: Returns the largest resident bytes of the process since the case was begun.
            model_id: The model and its settings.
            labels: Labels of the label map.
            kinds: The kinds of files that are written with it.

        Raises:
            DataError: The record cannot be written.
            ResourceError: The disk is full.
        """
        began, case, target = time.perf_counter(), outcome.case, outcome.target
        former = self.get(stem_of(target))
        had = Prediction("") if former is None or former.prediction is None else former.prediction
        notes = tuple(self._without_source(note, case) for note in outcome.notes)
        wanted = Prediction(
            model_id.model, model_id.settings, kinds, notes, outcome.input, absent=case.absent
        )
        both = replace(wanted, kinds=kinds | had.kinds)
        record = CaseRecord(stem_of(target), CaseState.UNFINISHED, both, self._source(case))
        self.write(record)
        hashed, volumes = voxel_hash(label_map), label_volumes(label_map, labels)
        try:
            yield
        except Exception:
            if former is not None:
                self.write(former)
            raise
        files = written_files(target, kinds)
        # Before the record says that all is done: a process that is killed in between leaves a case to be predicted again.
        outdated = written_files(target, had.kinds)
        for file in set(outdated) - set(files):
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)
        done = replace(
            wanted,
            output=VoxelState(stamp_of([target]), hashed),
            companions=FileState.of(files[1:]) if len(files) > 1 else None,
            volumes=volumes,
            evidence=outcome.evidence,
            features=outcome.features,
            quality=outcome.quality,
        )
        predicted = CaseRecord(
            record.name,
            CaseState.PREDICTED,
            done,
            record.source,
            outcome.seconds + time.perf_counter() - began,
            peak(),
        )
        self.write(predicted)

    def _source(self, case: Case) -> tuple[str, ...]:
        return tuple(map(str, case.images)) if self._source_names else ()

    def _without_source(self, text: str, case: Case) -> str:
        """Return a text with the case in place of its files and their folders, unless these may be recorded."""
        if self._source_names:
            return text
        for path in input_files(case):
            for name in (str(path.resolve()), str(path), path.name):
                text = text.replace(name, case.id)
            for folder in (str(path.resolve().parent), str(path.parent)):
                text = text.replace(folder, "FOLDER") if len(folder) > 1 else text
        return text


def read_versioned(path: Path, version: int, what: str) -> dict[str, Any] | None:
    """Read the values of a record in JSON.

    Args:
        path: File of the record.
        version: The version of the format that this medseg writes.
        what: Kind of record, for messages.

    Returns:
        Its values without the format; None if the file is missing or damaged.

    Raises:
        DataError: Another version of medseg wrote the record in another format.
    """
    try:
        values: dict[str, Any] = parse_json(path.read_text(encoding="utf-8", errors="replace"))
        found = values.pop("format")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    check_format(found, version, path, what)
    return values


def read_record(path: Path) -> CaseRecord | None:
    """Read the record of a case.

    Args:
        path: File of the record.

    Returns:
        The record; None if the file is missing or damaged.

    Raises:
        DataError: Another version of medseg wrote the record in another format.
    """
    values = read_versioned(path, FORMAT, "record of a case")
    if values is None:
        return None
    try:
        return _parsed(values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _parsed(values: dict[str, Any]) -> CaseRecord:
    """Return a record from the values of its file."""
    found = values["prediction"]
    prediction = None
    if found is not None:
        states = {
            "input": VoxelState(**found["input"]) if found["input"] else None,
            "output": VoxelState(**found["output"]) if found["output"] else None,
            "companions": FileState(**found["companions"]) if found["companions"] else None,
            "volumes": tuple(LabelVolume(**one) for one in found["volumes"]),
            "kinds": frozenset(map(FileKind, found["kinds"])),
            "evidence": CaseEvidence.from_plain(found["evidence"]) if found.get("evidence") else None,
            "quality": CaseQuality.from_plain(found["quality"]) if found.get("quality") else None,
            "absent": tuple(map(int, found.get("absent", ()))),
        }
        tuples = {key: tuple(map(str, found[key])) for key in ("settings", "notes")}
        prediction = Prediction(**{**found, **states, **tuples})
    more = {"state": CaseState(values["state"]), "source": tuple(map(str, values["source"]))}
    return CaseRecord(**{**values, **more, "prediction": prediction, "name": str(values["name"])})
