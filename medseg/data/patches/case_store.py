"""Prepared cases on disk, stored so that a random patch needs one short read.

Each case is a folder of plain ``.npy`` files that are memory-mapped: a patch touches only its own pages, and
pages stay in the system's cache between epochs. ``benchmarks/patch_store.py`` compares this with compressed
stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import UNDECIDED, Case
from medseg.data.datasets.read_case import (
    read_case_first_stage,
    read_case_image,
    read_case_instances,
    read_case_label,
)
from medseg.data.patches.class_locations import ClassLocations, locations_table
from medseg.data.preprocessing.prepare import Preprocessing, prepare, prepare_label
from medseg.errors import DataError
from medseg.io.companion_files import companion_files
from medseg.io.file_content import permission_denied
from medseg.io.files import suffix_of
from medseg.labels.label_sets import AnnotatedLabels, LabelSets
from medseg.labels.label_table import Labels
from medseg.storage.atomic import replacing_folder, write_text
from medseg.storage.content_index import ContentIndex
from medseg.storage.file_state import FileState
from medseg.storage.stamps import short_hash

FORMAT = 1
# Arrays that a process keeps mapped. Each needs a file descriptor, and some systems allow only 256 per process. In larger
# datasets the least recently read arrays are unmapped, and mapped again when they are needed.
MAPS = 128
_EXPECTED = {"image.npy": (4, "f"), "locations.npy": (2, "iu")}  # axes and kinds; other arrays are (4, "iu")
INDEX = "contents.json"
"""File of the store with the content hashes of the datasets' files; see `ContentIndex`."""


@dataclass(frozen=True)
class StoredCase:
    """One prepared case. Its arrays are memory-mapped and never loaded whole; see `MAPS`.

    Reading an array raises `DataError` if its file is missing, damaged, or not readable for this user.

    Attributes:
        id: Id of the case.
        folder: Folder that contains its arrays.
    """

    id: str
    folder: Path

    @property
    def image(self) -> NDArray[np.float32]:
        """The intensities `(C, X, Y, Z)`."""
        return _mapped(self.folder / "image.npy")

    @property
    def label(self) -> NDArray[Any]:
        """The class indices `(1, X, Y, Z)`; values from K on are the label sets of `medseg.labels.label_sets`."""
        return _mapped(self.folder / "label.npy")

    @property
    def instances(self) -> NDArray[np.int32]:
        """The instance ids `(1, X, Y, Z)`, 0 for background; only if `has_instances`."""
        return _mapped(self.folder / "instances.npy")

    @property
    def first_stage(self) -> NDArray[Any]:
        """The class indices `(1, X, Y, Z)` of the first stage; only if the case was stored with one."""
        return _mapped(self.folder / "first_stage.npy")

    @cached_property
    def has_instances(self) -> bool:
        """Whether the case has an instance map."""
        return (self.folder / "instances.npy").is_file()

    @property
    def class_locations(self) -> ClassLocations:
        """The voxels `(N, 3)` of each foreground class or region that is present, numbered from 1, at most 10,000 each.

        If the dataset has an ignore label, number 0 holds annotated voxels.
        """
        return ClassLocations(_mapped(self.folder / "locations.npy"))

    @cached_property
    def has_foreground(self) -> bool:
        """Whether any foreground class or region is present."""
        table = _mapped(self.folder / "locations.npy")
        return len(table) > 0 and int(table[-1, 0]) > 0  # rows are sorted by number

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, and whether there is an instance map, which must not change if its file is lost."""
        return {
            name: value for name, value in vars(self).items() if name in ("id", "folder", "has_instances")
        }

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """The number of voxels along X, Y, Z."""
        x, y, z = self.image.shape[1:]
        return (x, y, z)


@lru_cache(maxsize=MAPS)
def _mapped(file: Path) -> NDArray[Any]:
    """Return the memory-mapped array of a file that never changes."""
    again = f"Delete the folder {file.parent} and start or resume the training; the case is prepared again."
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file}: missing, expected an array of a prepared case. {again}") from None
    except PermissionError:
        raise permission_denied(file) from None
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:  # from NumPy's parser
        raise DataError(f"{file}: found a damaged array of a prepared case ({error}). {again}") from None
    axes, kinds = _EXPECTED.get(file.name, (4, "iu"))
    if array.ndim != axes or array.dtype.kind not in kinds:
        raise DataError(
            f"{file}: found an array of {array.ndim} axes of {array.dtype}, expected {axes} axes of "
            f"{'floating-point' if kinds == 'f' else 'whole'} numbers. {again}"
        )
    return array


def fill_store(
    folder: Path,
    cases: Sequence[Case],
    labels: Labels,
    settings: Preprocessing,
    label_sets: LabelSets | None = None,
    first_stage: Labels | None = None,
) -> Iterator[StoredCase]:
    """Prepare every case that is not in the store yet, and yield all cases in order.

    A stored case is reused only if the content of its files, the labels, the settings and the format of the store are the
    same. All of them enter the name of its folder, so a case that another version of medseg stored in another format is
    prepared again, next to the other one, and a copied, moved or touched dataset reuses its prepared cases. Files whose
    size, times and number on the disk are those of an earlier call are not read for this; see `ContentIndex`. A case is
    written to a temporary folder that is then renamed, so that an interrupted run leaves no incomplete case.

    Args:
        folder: Folder of the store.
        cases: Cases to prepare.
        labels: Labels of the dataset.
        settings: Resolved preprocessing.
        label_sets: Sets of classes that voxels may belong to; derived from the annotated labels of `cases` if None.
        first_stage: Labels of the first stage of a cascade, whose label map every case must have; None stores none.

    Yields:
        Stored cases, in the order of `cases`.

    Raises:
        DataError: A case cannot be read, its labels are not those of the dataset, its files change while it is prepared,
            or a stored case is damaged.
    """
    known = label_sets or LabelSets.from_annotations(labels, {case.id: case.annotated for case in cases})
    index = ContentIndex(folder / INDEX)
    try:
        for case in cases:
            if first_stage is None:
                case = replace(case, first_stage=None)
            states = {file: _state(file, index) for file in case.files}
            key = _key(case, states, known, settings, first_stage)
            stored = StoredCase(case.id, folder / f"{case.id}-{key}")
            if stored.folder.is_dir():
                _check(stored, case)
            else:
                _write(stored.folder, case, states, known, settings, first_stage)
            _ = stored.has_instances  # kept from now on, even if the file is lost
            yield stored
    finally:
        index.save()


def _state(file: Path, index: ContentIndex) -> FileState:
    """Return the state of a file or DICOM series, together with the files that are read with it."""
    try:
        return index.state([file, *companion_files(file)])
    except PermissionError as error:
        raise permission_denied(Path(error.filename or file)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}). Check the file.") from None


def _check(stored: StoredCase, case: Case) -> None:
    """Raise unless all arrays of a stored case exist, can be mapped and have one shape."""
    names = ["image", "label"]
    if case.instances is not None:
        names.append("instances")
    if case.first_stage is not None:
        names.append("first_stage")
    _mapped(stored.folder / "locations.npy")
    for name in names:
        file = stored.folder / f"{name}.npy"
        if _mapped(file).shape[1:] != stored.shape:
            raise DataError(
                f"{file}: found the shape {_mapped(file).shape[1:]}, expected {stored.shape}, that of image.npy. "
                f"Delete the folder {stored.folder} and start or resume the training; the case is prepared again."
            )


def _write(
    target: Path,
    case: Case,
    states: Mapping[Path, FileState],
    label_sets: LabelSets,
    settings: Preprocessing,
    first_stage: Labels | None,
) -> None:
    image = read_case_image(case)
    prepared = prepare(image, settings, where=f"case {case.id}")
    label = prepare_label(read_case_label(case, label_sets.labels, image.grid), prepared, settings)
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
    # Another run that shares the store may be preparing the same case.
    with replacing_folder(target, keep_existing=True) as temporary:
        np.save(temporary / "image.npy", np.ascontiguousarray(prepared.image.data), allow_pickle=False)
        np.save(temporary / "label.npy", np.ascontiguousarray(label.data), allow_pickle=False)
        if ids is not None:
            np.save(temporary / "instances.npy", np.ascontiguousarray(ids.data), allow_pickle=False)
        if first_stage_map is not None:
            np.save(
                temporary / "first_stage.npy", np.ascontiguousarray(first_stage_map.data), allow_pickle=False
            )
        np.save(temporary / "locations.npy", locations_table(label.data[0], label_sets), allow_pickle=False)
        grid = {"spacing": prepared.grid.spacing, "shape": prepared.grid.shape, "format": FORMAT}
        write_text(temporary / "grid.json", json.dumps(grid))


def _check_unchanged(case: Case, states: Mapping[Path, FileState]) -> None:
    """Raise if a file is no longer the one whose hash names the folder."""
    for file, state in states.items():
        if not state.still_holds([file, *companion_files(file)]):
            raise DataError(
                f"{file}: changed while case {case.id} was prepared. Start again when the file is complete."
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


def _key(
    case: Case,
    states: Mapping[Path, FileState],
    label_sets: LabelSets,
    settings: Preprocessing,
    first_stage: Labels | None = None,
) -> str:
    labels = label_sets.labels

    def content(file: Path | None) -> list[str] | None:
        return None if file is None else [suffix_of(file), states[file].content]

    files = [
        [content(file) for file in case.images],
        *map(content, (case.label, case.instances, case.first_stage)),
    ]
    facts: list[Any] = [FORMAT, files, labels.values, settings.to_plain()]
    if not label_sets.is_fully_annotated:
        regions = [region.values for region in labels.regions]
        facts.append([regions, labels.ignore, case.annotated, label_sets.background_value(case.annotated)])
    if first_stage is not None:
        facts.append(first_stage.values)
    # Where files may be, and the path of the repairs, whose effects are the other fields, do not change the voxels.
    reading = replace(case.reading, files_root=None, repairs=None)
    if reading != UNDECIDED:
        facts.append(asdict(reading))
    return short_hash(facts)
