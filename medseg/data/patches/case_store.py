"""Prepared cases on disk, laid out so that a random patch costs one short read.

Each case is a folder of plain ``.npy`` files that are memory-mapped: a patch touches only its own pages, and
pages stay in the system's cache between epochs. ``benchmarks/patch_store.py`` compares this with compressed
stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import (
    read_case_first_stage,
    read_case_image,
    read_case_instances,
    read_case_label,
)
from medseg.data.preprocessing.prepare import Preprocessing, prepare, prepare_label
from medseg.labels.label_sets import AnnotatedLabels, LabelSets
from medseg.labels.label_table import Labels
from medseg.storage.atomic import replacing_folder, write_text
from medseg.storage.stamps import file_stamps, short_hash

FORMAT = 1
LOCATIONS_PER_CLASS = 10_000
# Arrays that a process keeps mapped. Each costs a file descriptor, of which some systems grant 256, so that those of a
# large dataset are mapped anew, the least recently read ones first.
MAPS = 128


@dataclass(frozen=True)
class StoredCase:
    """One prepared case. Arrays are memory-mapped and never loaded whole; see `MAPS`.

    Attributes:
        id: case id. folder: where its arrays lie.
    """

    id: str
    folder: Path

    @property
    def image(self) -> NDArray[np.float32]:
        """Intensities `(C, X, Y, Z)`."""
        return _mapped(self.folder / "image.npy")

    @property
    def label(self) -> NDArray[Any]:
        """Class indices `(1, X, Y, Z)`, from K on the sets of classes of `medseg.labels.label_sets`."""
        return _mapped(self.folder / "label.npy")

    @property
    def instances(self) -> NDArray[np.int32]:
        """Instance ids `(1, X, Y, Z)`, 0 for background; only of cases with `has_instances`."""
        return _mapped(self.folder / "instances.npy")

    @property
    def first_stage(self) -> NDArray[Any]:
        """Class indices `(1, X, Y, Z)` of an earlier stage; only of cases that were stored with one."""
        return _mapped(self.folder / "first_stage.npy")

    @cached_property
    def has_instances(self) -> bool:
        """Whether the case came with an instance map."""
        return (self.folder / "instances.npy").is_file()

    @cached_property
    def class_locations(self) -> dict[int, NDArray[np.int32]]:
        """Voxels `(N, 3)` of each foreground class or region present, numbered from 1, at most 10,000 of each.

        At 0, where the dataset has an ignore label: voxels that somebody looked at.
        """
        table = np.load(self.folder / "locations.npy", allow_pickle=False)
        return {int(value): table[table[:, 0] == value, 1:] for value in np.unique(table[:, 0])}

    @cached_property
    def has_foreground(self) -> bool:
        """Whether some foreground class or region is present."""
        table = np.load(self.folder / "locations.npy", mmap_mode="r", allow_pickle=False)
        return len(table) > 0 and int(table[-1, 0]) > 0  # rows of rising numbers

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been read, which a worker reads for itself."""
        return {"id": self.id, "folder": self.folder}

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        x, y, z = self.image.shape[1:]
        return (x, y, z)


@lru_cache(maxsize=MAPS)
def _mapped(file: Path) -> NDArray[Any]:
    """The array of a file that never changes."""
    return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def fill_store(
    folder: Path,
    cases: Sequence[Case],
    labels: Labels,
    settings: Preprocessing,
    label_sets: LabelSets | None = None,
    first_stage: Labels | None = None,
) -> Iterator[StoredCase]:
    """Prepare every case that is not in the store yet, and yield all of them in order.

    A case already there is used again only if its files, the labels and the settings are the same. A case
    is written to a temporary folder and renamed, so an interrupted run leaves nothing half-made.

    Args:
        folder: of the store. cases: to prepare.
        labels: of the dataset. settings: of the preprocessing.
        label_sets: sets of classes that voxels may be of; made of `cases` unless given.
        first_stage: labels of an earlier stage, whose label map every case then must have; None stores none.

    Raises:
        DataError: a case cannot be read, or its labels are not those of the dataset.
    """
    known = label_sets or LabelSets.from_annotations(labels, {case.id: case.annotated for case in cases})
    for case in cases:
        if first_stage is None:
            case = replace(case, first_stage=None)
        key = _key(case, known, settings, first_stage)
        target = folder / f"{case.id}-{key}"
        if not target.is_dir():
            _write(target, case, known, settings, first_stage)
        yield StoredCase(case.id, target)


def _write(
    target: Path, case: Case, label_sets: LabelSets, settings: Preprocessing, first_stage: Labels | None
) -> None:
    image = read_case_image(case)
    prepared = prepare(image, settings, where=f"case {case.id}")
    label = prepare_label(read_case_label(case, label_sets.labels, image.grid), prepared, settings)
    ids = None
    if case.instances is not None:
        ids = prepare_label(read_case_instances(case, image.grid), prepared, settings)
        if case.label is None:  # so that both agree at every border, whatever the resampling did
            label = label.with_data((ids.data > 0).astype(label.data.dtype))
    label = label.with_data(_with_label_sets(label.data, label_sets, case.annotated))
    first_stage_map = None
    if first_stage is not None:
        first_stage_map = prepare_label(
            read_case_first_stage(case, first_stage, image.grid), prepared, settings
        )
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


def _with_label_sets(
    label: NDArray[Any], label_sets: LabelSets, annotated: AnnotatedLabels | None
) -> NDArray[Any]:
    """The label map with its background as the set of classes that it may be of."""
    background = label_sets.background_value(annotated)
    if not background:
        return label
    dtype = np.promote_types(label.dtype, np.min_scalar_type(background))
    return np.where(label == 0, dtype.type(background), label)


def locations_table(label: NDArray[Any], label_sets: LabelSets | None = None) -> NDArray[np.int32]:
    """Rows `(number, x, y, z)` of a label map `(X, Y, Z)`: every foreground voxel, or 10,000 drawn of a class.

    Numbers are those of `StoredCase.class_locations`: classes, or from `label_sets` regions, and 0 for voxels that somebody
    looked at.
    """
    rows = []
    for value, members in _groups(label, label_sets):
        found = np.argwhere(label == members[0] if len(members) == 1 else np.isin(label, members))
        if len(found) > LOCATIONS_PER_CLASS:
            draw = np.random.default_rng(int(value))
            found = found[np.sort(draw.choice(len(found), LOCATIONS_PER_CLASS, replace=False))]
        rows.append(np.column_stack([np.full(len(found), value), found]))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)


def _groups(label: NDArray[Any], label_sets: LabelSets | None) -> Iterator[tuple[int, list[int]]]:
    """Numbers in rising order, each with the values in the label map that it stands for; only those present."""
    present = np.unique(label)
    if label_sets is None or label_sets.is_fully_annotated:
        yield from ((int(value), [int(value)]) for value in present if value)
        return
    if label_sets.labels.ignore is not None:
        looked_at = [int(value) for value in present if value != len(label_sets.labels)]
        yield from [(0, looked_at)] if looked_at else []
    inside = label_sets.certain()
    for number in range(1, inside.shape[1] + 1):
        members = [int(value) for value in present if inside[value, number - 1]]
        if members:
            yield number, members


def _key(
    case: Case, label_sets: LabelSets, settings: Preprocessing, first_stage: Labels | None = None
) -> str:
    labels = label_sets.labels
    facts: list[Any] = [FORMAT, file_stamps(case.files), labels.values, settings.to_plain()]
    if not label_sets.is_fully_annotated:
        regions = [region.values for region in labels.regions]
        facts.append([regions, labels.ignore, case.annotated, label_sets.background_value(case.annotated)])
    if first_stage is not None:
        facts.append(first_stage.values)
    return short_hash(facts)
