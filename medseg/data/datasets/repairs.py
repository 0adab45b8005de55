"""Repairs of a dataset that are applied when its files are read; no file is changed.

A file of repairs lists, for each case, what to do, why, and the content of the files that this was decided for. If one of
these files changes, its repair is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from medseg.config import Config
from medseg.data.datasets.cases import Case, Dataset, ReadingOptions
from medseg.data.datasets.names import relative_name
from medseg.errors import ConfigError, DataError
from medseg.io.nifti.orientation_sources import OrientationFrom
from medseg.storage.atomic import write_text
from medseg.storage.file_state import FileState
from medseg.storage.formats import check_format
from medseg.yaml_dialect import read_yaml, to_yaml

FORMAT = 1
Action = Literal["map_values", "take_image_grid", "round_values", "leave_out", "read_orientation_from"]


class RepairedFile(Config):
    """The content of a file when its repair was written.

    Attributes:
        stamp: Hash of size, times and place on the disk, by which an unchanged file is recognised without reading it.
        content: Hash of the bytes.
    """

    stamp: str
    content: str


class Repair(Config):
    """What is done with one case when it is read.

    Attributes:
        case: Id of the case.
        action: ``map_values`` replaces label values, ``take_image_grid`` places the label map on the grid of its image,
            ``round_values`` rounds label values that are within 0.1 of whole numbers, ``leave_out`` removes the case, and
            ``read_orientation_from`` chooses a description of the geometry.
        reason: Why, usually the finding.
        files: State of each file by its path relative to the dataset; null for a file that is missing.
        values: Old label value → new value, for ``map_values``.
        orientation_from: ``sform``, ``qform`` or ``pixdim``, for ``read_orientation_from``.
    """

    case: str
    action: Action
    reason: str
    files: dict[str, RepairedFile | None]
    values: dict[int, int] = Field(default_factory=dict)
    orientation_from: OrientationFrom | None = None


class Repairs(Config):
    """The repairs of a dataset.

    Attributes:
        format: Version of the file.
        repairs: The repairs; a case may have several.
    """

    format: int = FORMAT
    repairs: tuple[Repair, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the file, atomically.

        Args:
            path: The YAML file.
        """
        head = "# Repairs that are applied when the dataset is read (data.repairs); no file is changed. Remove what is wrong.\n"
        entries = [repair.model_dump(mode="json", exclude_defaults=True) for repair in self.repairs]
        write_text(path, head + to_yaml({"format": self.format, "repairs": entries}))

    @classmethod
    def read(cls, path: str | Path) -> Repairs:
        """Read a file written by `save`.

        Args:
            path: The YAML file.

        Returns:
            The repairs.

        Raises:
            DataError: A newer or older medseg has written the file.
            ConfigError: The file is missing, no YAML, or has unknown keys or wrong values.
        """
        values = read_yaml(Path(path))
        check_format(values.get("format"), FORMAT, path, "file of repairs")
        found = cls.parse(values, source=str(path))
        for number, repair in enumerate(found.repairs):
            needed = {"map_values": repair.values, "read_orientation_from": repair.orientation_from}
            if not needed.get(repair.action, True):
                key = "values" if repair.action == "map_values" else "orientation_from"
                raise ConfigError(
                    f"{path}: repairs[{number}].{key}: found nothing, expected a choice for {repair.action}. Add it, or remove "
                    "the entry."
                )
        return found


class OutdatedRepairsError(DataError):
    """Files changed after their repairs were written.

    Args:
        message: Text of the error.
        entries: The repairs, and the file of each that changed.

    Attributes:
        entries: The repairs, and the file of each that changed.
    """

    def __init__(self, message: str, entries: Sequence[tuple[Repair, str]]) -> None:
        super().__init__(message)
        self.entries = tuple(entries)


def files_state(files: Iterable[Path], root: Path) -> dict[str, RepairedFile | None]:
    """Return the state of files, as a repair records it.

    Args:
        files: Files of a case; some may be missing.
        root: Folder of the dataset.

    Returns:
        The state by path relative to `root`; None for a missing file.
    """
    states: dict[str, RepairedFile | None] = {}
    for file in files:
        state = FileState.of([file]) if file.exists() else None
        kept = None if state is None else RepairedFile(stamp=state.stamp, content=state.content)
        states[relative_name(file, root)] = kept
    return states


def apply_repairs(dataset: Dataset, path: str | Path) -> Dataset:
    """Return the dataset with the repairs of a file.

    Args:
        dataset: The dataset; files may be missing.
        path: File written by `Repairs.save`.

    Returns:
        The dataset without the cases that are left out; the others carry their repairs in `Case.reading`.

    Raises:
        OutdatedRepairsError: Files changed since; all are listed, and no repair is applied.
        DataError: A case is unknown, or the file cannot be read.
    """
    repairs = Repairs.read(path).repairs
    cases = {case.id: case for case in dataset.cases}
    outdated = []
    for repair in repairs:
        file = _changed_file(repair, cases.get(repair.case) or dataset.case(repair.case), dataset.root)
        if file is not None:
            outdated.append((repair, file))
    if outdated:
        lines = "".join(f"\n  case {one.case}: {one.action}: {file} changed" for one, file in outdated)
        raise OutdatedRepairsError(
            f"{path}: found files that changed since their repairs were written, expected unchanged ones; no repair is applied:"
            f"{lines}\nCheck the dataset again with medseg check --repair, or remove these entries.",
            outdated,
        )
    for repair in repairs:
        case = cases.get(repair.case)
        if repair.action == "leave_out":
            cases.pop(repair.case, None)
        elif case is not None:  # it is not left out by another entry
            cases[repair.case] = replace(case, reading=_repaired(case, repair))
    return replace(dataset, cases=tuple(cases.values()))


def _repaired(case: Case, repair: Repair) -> ReadingOptions:
    reading = case.reading
    match repair.action:
        case "map_values":
            return replace(reading, label_values=tuple(sorted(repair.values.items())))
        case "take_image_grid":
            return replace(reading, trust_label_array=True)
        case "round_values":
            return replace(reading, round_labels=True)
        case _:
            return replace(reading, orientation_from=repair.orientation_from)


def _changed_file(repair: Repair, case: Case, root: Path) -> str | None:
    """Return the first file of a case that is not as its repair states, or None; a file that it does not list counts, too."""
    unlisted = [
        relative_name(file, root) for file in case.files if relative_name(file, root) not in repair.files
    ]
    if unlisted:
        return unlisted[0]
    for name, state in repair.files.items():
        file = root / name
        if state is None:
            if file.exists():
                return name
        elif not FileState(state.stamp, state.content).still_holds([file]):
            return name
    return None
