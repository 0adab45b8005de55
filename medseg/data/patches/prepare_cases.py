"""Preparation of the cases of a dataset for training: each once, in several processes, and complete or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.cluster.case_map import THIS_PROCESS, CaseExecutor
from medseg.data.datasets.cases import UNDECIDED, Case
from medseg.data.datasets.read_case import (
    most_probable,
    read_case_first_stage,
    read_case_image,
    read_case_instances,
    read_case_label,
    read_case_probabilities,
)
from medseg.data.patches.case_store import ABSENT, GRID, MEASURES, StoredCase
from medseg.data.patches.class_locations import locations_table
from medseg.data.preprocessing.case_memory import preparing_bytes
from medseg.data.preprocessing.normalize import mask_rows
from medseg.data.preprocessing.prepare import (
    Preprocessing,
    prepare,
    prepare_label,
    prepare_masks,
    prepare_probabilities,
)
from medseg.data.preprocessing.training_data import ImageMeasures, annotated_volumes, measure_image
from medseg.errors import DataError, MedsegError, all_results
from medseg.io.companions.companion_files import companion_files
from medseg.io.file_content import permission_denied
from medseg.io.files import suffix_of
from medseg.labels.label_sets import AnnotatedLabels, LabelSets
from medseg.labels.label_table import Labels
from medseg.runtime.progress import Progress
from medseg.storage.atomic import make_folder, replacing_folder, write_text
from medseg.storage.content_index import ContentIndex
from medseg.storage.file_state import FileState
from medseg.storage.stamps import short_hash
from medseg.volumes.volume import Volume

FORMAT = 3
INDEX = "contents.json"
"""File of the store with the content hashes of the datasets' files; see `ContentIndex`."""

_SAVE_EVERY = 30.0  # seconds between two savings of the index
_States = Mapping[Path, FileState]
ImageType = Literal["float32", "float16"]


@dataclass(frozen=True)
class CaseStore:
    """A folder of prepared cases, and everything that they depend on except their files.

    A stored case is reused only if the content of its files, the labels, the settings and the format of the store are the
    same. All of them enter the name of its folder, so a case that another version of medseg stored in another format is
    prepared again, next to the other one, and a copied, moved or touched dataset reuses its prepared cases. Files whose
    size, times and number on the disk are those of an earlier call are not read for this; see `ContentIndex`. A case is
    written to a temporary folder that is then renamed, so that an interruption leaves no incomplete case.

    Attributes:
        folder: Folder of the store.
        settings: Resolved preprocessing.
        label_sets: Sets of classes that voxels may belong to, with the labels of the dataset.
        first_stage: Labels of the first stage of a cascade, whose label map every case must have; None stores none.
        image_type: Type in which images are stored.
    """

    folder: Path
    settings: Preprocessing
    label_sets: LabelSets
    first_stage: Labels | None = None
    image_type: ImageType = "float32"

    def fill(
        self, cases: Sequence[Case], executor: CaseExecutor = THIS_PROCESS, progress: Progress | None = None
    ) -> list[StoredCase]:
        """Prepare every case that is not in the store yet, and return all cases in order.

        A case that cannot be prepared does not stop the others.

        Args:
            cases: Cases to prepare.
            executor: Where the cases are prepared. No more of them are in work at once in the processes of this machine than
                fit into its free memory.
            progress: Called with (done, total, case id) after each case that was not in the store.

        Returns:
            Stored cases, in the order of `cases`.

        Raises:
            CasesFailedError: Cases cannot be read, their labels are not those of the dataset, their files change while they
                are prepared, or stored cases are damaged; the message lists them.
            ResourceError: The disk is full, or the memory did not suffice for a case.
        """
        return stored_or_raise(self.folder, self.outcomes(cases, executor, progress))

    def outcomes(
        self, cases: Sequence[Case], executor: CaseExecutor = THIS_PROCESS, progress: Progress | None = None
    ) -> list[StoredCase | MedsegError]:
        """Do the same as `fill`, but return the errors of cases that cannot be prepared.

        Args:
            cases: As for `fill`, like the other arguments.
            executor: Where the cases are prepared.
            progress: Called after each case.

        Returns:
            One stored case or error per case, in the order of `cases`.

        Raises:
            DataError: The folder cannot be written.
            DiskFullError: The disk is full.
        """
        index = ContentIndex(self.folder / INDEX)
        work = [(self._relevant(case), _known(case, index)) for case in cases]
        found: dict[int, StoredCase | MedsegError] = {}
        for number, (case, states) in enumerate(work):
            if states.keys() == set(case.files):
                outcome = self._stored(case, states)
                if outcome is not None:
                    found[number] = outcome
        missing = [number for number in range(len(work)) if number not in found]
        if missing:
            make_folder(self.folder)
        outcomes = executor.outcomes(
            self._prepared,
            [work[number] for number in missing],
            [work[number][0].id for number in missing],
            (file for number in missing for file in work[number][0].files),
            self._needed_bytes,
        )
        saved = time.monotonic()
        try:
            with closing(outcomes):
                for place, prepared in outcomes:
                    number = missing[place]
                    read: _States = {}
                    if isinstance(prepared, MedsegError):
                        found[number] = prepared
                    else:
                        found[number], read = prepared
                    for file, state in read.items():
                        index.add(_with_companions(file), state)
                    if time.monotonic() - saved > _SAVE_EVERY:
                        index.save()
                        saved = time.monotonic()
                    if progress is not None:
                        # Without the cases that were stored before, from which no time left could be derived.
                        progress(len(found) - len(cases) + len(missing), len(missing), work[number][0].id)
        finally:
            index.save()
        return [found[number] for number in range(len(cases))]

    def _relevant(self, case: Case) -> Case:
        return case if self.first_stage is not None else replace(case, first_stage=None)

    def _maps(self, case: Case) -> list[str]:
        """Return the names of the arrays of a case besides its image and label map."""
        found = [
            name for name in ("instances", "first_stage", "probabilities") if getattr(case, name) is not None
        ]
        masked = any(row is not None for row in mask_rows(self.settings.channels))
        return [*found, "masks"] if masked else found

    def _needed_bytes(self, work: tuple[Case, _States]) -> int:
        return preparing_bytes(work[0], self.settings, len(self.label_sets.labels))

    def _stored(self, case: Case, states: _States) -> StoredCase | MedsegError | None:
        """Return a case that is in the store, its error if it is damaged, or None if it is not in the store."""
        stored = StoredCase(case.id, self.folder / f"{case.id}-{self._key(case, states)}")
        if not stored.folder.is_dir():
            return None
        try:
            stored.check(*self._maps(case))
        except DataError as error:
            return error
        _ = stored.has_instances, stored.has_probabilities  # kept from now on, even if a file is lost
        return stored

    def _prepared(self, work: tuple[Case, _States]) -> tuple[StoredCase | MedsegError, _States]:
        """Return a case after preparing it, unless it is in the store, and the states that had to be read."""
        case, known = work
        read = {file: _state(file) for file in case.files if file not in known}
        states = {**known, **read}
        if (found := self._stored(case, states)) is not None:
            return found, read
        stored = StoredCase(case.id, self.folder / f"{case.id}-{self._key(case, states)}")
        try:
            self._write(stored.folder, case, states)
        except DataError as error:
            return error, read
        _ = stored.has_instances, stored.has_probabilities
        return stored, read

    def _write(self, target: Path, case: Case, states: _States) -> None:
        settings, label_sets, first_stage = self.settings, self.label_sets, self.first_stage
        image = read_case_image(case)
        prepared = prepare(image, settings, where=f"case {case.id}")
        classes = read_case_label(case, label_sets.labels, image.grid)
        measures = _measures(image, classes, label_sets.labels, case, settings)
        label = prepare_label(classes, prepared, settings)
        soft = None
        if case.probabilities is not None:
            read = read_case_probabilities(case, label_sets.labels, image.grid)
            soft = prepare_probabilities(read, prepared, settings)
            if case.label is None:
                label = label.with_data(most_probable(soft)[None])
        ids = None
        if case.instances is not None:
            ids = prepare_label(read_case_instances(case, image.grid), prepared, settings)
            if case.label is None:  # so that both agree at every border, however they were resampled
                label = label.with_data((ids.data > 0).astype(label.data.dtype))
        label = label.with_data(_with_label_sets(label.data, label_sets, case.annotated))
        first_stage_map = None
        if first_stage is not None:
            first_stage_map = prepare_label(
                read_case_first_stage(case, first_stage, image.grid), prepared, settings
            )
        _check_unchanged(case, states)
        arrays = {
            "image": _in_type(prepared.image.data, self.image_type),
            "label": label.data,
            "instances": None if ids is None else ids.data,
            "first_stage": None if first_stage_map is None else first_stage_map.data,
            # Half precision is exact to 1/4096 for probabilities.
            "probabilities": None if soft is None else soft[1:].astype(np.float16),
            "masks": prepare_masks(prepared, settings),
            "locations": locations_table(label.data[0], label_sets),
        }
        # Another run that shares the store may be preparing the same case.
        with replacing_folder(target, keep_existing=True) as temporary:
            for name, array in arrays.items():
                if array is not None:
                    np.save(temporary / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            grid = {"spacing": prepared.grid.spacing, "shape": prepared.grid.shape, "format": FORMAT}
            write_text(temporary / GRID, json.dumps(grid))
            write_text(temporary / MEASURES, json.dumps(measures.to_plain()))
            if image.absent:
                write_text(temporary / ABSENT, json.dumps({"channels": image.absent}))

    def _key(self, case: Case, states: _States) -> str:
        label_sets, first_stage = self.label_sets, self.first_stage
        labels = label_sets.labels

        def content(file: Path | None) -> list[str] | None:
            return None if file is None else [suffix_of(file), states[file].content]

        files = [
            [content(file) for file in case.images],
            *map(content, (case.label, case.instances, case.first_stage)),
            *([content(case.probabilities)] if case.probabilities is not None else []),
        ]
        facts: list[Any] = [FORMAT, files, labels.values, self.settings.to_plain()]
        if not label_sets.is_fully_annotated:
            regions = [region.values for region in labels.regions]
            facts.append(
                [regions, labels.ignore, case.annotated, label_sets.background_value(case.annotated)]
            )
        if first_stage is not None:
            facts.append(first_stage.values)
        # Where files may be, and the path of the repairs, whose effects are the other fields, do not change the voxels.
        reading = replace(case.reading, files_root=None, repairs=None, absent_channels="refuse")
        if case.absent:
            facts.append({"absent": case.absent})
        if reading != UNDECIDED:
            facts.append(asdict(reading))
        if self.image_type != "float32":
            facts.append(self.image_type)
        return short_hash(facts)


def fill_store(
    folder: Path,
    cases: Sequence[Case],
    labels: Labels,
    settings: Preprocessing,
    label_sets: LabelSets | None = None,
    first_stage: Labels | None = None,
) -> list[StoredCase]:
    """Prepare cases in this process, as `CaseStore.fill` does.

    Args:
        folder: Folder of the store.
        cases: Cases to prepare.
        labels: Labels of the dataset.
        settings: Resolved preprocessing.
        label_sets: Sets of classes that voxels may belong to; derived from the annotated labels of `cases` if None.
        first_stage: Labels of the first stage of a cascade; None stores none.

    Returns:
        Stored cases, in the order of `cases`.
    """
    known = label_sets or LabelSets.from_annotations(labels, {case.id: case.annotated for case in cases})
    return CaseStore(folder, settings, known, first_stage).fill(cases)


def stored_or_raise(folder: Path, outcomes: Sequence[StoredCase | MedsegError]) -> list[StoredCase]:
    """Return stored cases, or raise an error that lists those that failed.

    Args:
        folder: Folder of the store.
        outcomes: What `CaseStore.outcomes` returned.

    Returns:
        The stored cases.

    Raises:
        CasesFailedError: A case failed.
        ResourceError: The memory did not suffice for a case.
    """
    fix = "Fix them, or remove them from the dataset, and start again; the other cases stay prepared."
    return all_results(outcomes, f"preparation in {folder}", fix)


def _with_companions(file: Path) -> list[Path]:
    """Return a file or DICOM series together with the files that are read with it."""
    return [file, *companion_files(file)]


def _in_type(image: NDArray[np.float32], kind: ImageType) -> NDArray[np.floating[Any]]:
    """Return an image in the type of the store, unchanged if the type cannot hold its values."""
    if kind == "float32" or max(-float(image.min()), float(image.max())) > float(np.finfo(np.float16).max):
        return image
    return image.astype(np.float16)


def _known(case: Case, index: ContentIndex) -> dict[Path, FileState]:
    """Return the state of each file of a case that need not be read for it."""
    found = {}
    for file in case.files:
        try:
            state = index.known(_with_companions(file))
        except OSError:  # reported when the case is prepared
            continue
        if state is not None:
            found[file] = state
    return found


def _state(file: Path) -> FileState:
    """Read the state of a file or DICOM series, together with the files that are read with it."""
    try:
        return FileState.of(_with_companions(file))
    except PermissionError as error:
        raise permission_denied(Path(error.filename or file)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}). Check the file.") from None


def _check_unchanged(case: Case, states: _States) -> None:
    """Raise if a file is no longer the one whose hash names the folder."""
    for file, state in states.items():
        if not state.still_holds(_with_companions(file)):
            raise DataError(
                f"{file}: changed while case {case.id} was prepared. Start again when the file is complete."
            )


def _measures(
    image: Volume, classes: Volume, labels: Labels, case: Case, settings: Preprocessing
) -> ImageMeasures:
    """Return the measurements of a case before its preparation; ignored voxels count as background."""
    if image.grid.in_pixels:
        return measure_image(image, settings)
    values = np.array([*labels.values, 0])[np.minimum(classes.data, len(labels))]
    return measure_image(
        image, settings, annotated_volumes(values, image.grid.voxel_volume, labels, case.annotated)
    )


def _with_label_sets(
    label: NDArray[Any], label_sets: LabelSets, annotated: AnnotatedLabels | None
) -> NDArray[Any]:
    """Return the label map with 0 replaced if the case has labels that were not annotated.

    The new value is that of the label set "background or any label that was not annotated".
    """
    background = label_sets.background_value(annotated)
    if not background:
        return label
    dtype = np.promote_types(label.dtype, np.min_scalar_type(background))
    return np.where(label == 0, dtype.type(background), label)
