"""Checks of the list of files: maps without images, files of no case, and numbers that dataset.json states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.check.finding import Finding, message_parts
from medseg.data.datasets.cases import Dataset, ReadingOptions
from medseg.data.datasets.dataset_json import training_counts
from medseg.data.datasets.image_folders import UnpairedMapsError
from medseg.data.datasets.layouts import list_cases
from medseg.data.datasets.names import persons_by_name, relative_name, visible_files
from medseg.data.datasets.repairs import OutdatedRepairsError, apply_repairs
from medseg.data.datasets.splits import subjects_of
from medseg.errors import DataError, collected_warnings
from medseg.io.files import suffix_of
from medseg.runtime.formatting import listed, pluralise
from medseg.storage.json_files import read_object

_FOLDERS = ("imagesTr", "labelsTr")
_COUNTS = ("numTraining", "numTest")
_TABLES = (
    "labels.tsv",
    "labels.csv",
    "channels.tsv",
    "channels.csv",
    "cases.tsv",
    "cases.csv",
    "dataset.json",
)
_MOST_LISTED = 12


@dataclass(frozen=True)
class ListedDataset:
    """A dataset whose files may be missing.

    Attributes:
        dataset: The cases; None if the description cannot be used.
        root: Folder of the dataset.
        description: Name of the file or folder that lists the cases.
        findings: Findings about the list.
    """

    dataset: Dataset | None
    root: Path
    description: str
    findings: tuple[Finding, ...]


def list_dataset(path: Path, layout: str, reading: ReadingOptions | None) -> ListedDataset:
    """Find the cases of a dataset; problems of its description are findings.

    Args:
        path: The dataset's folder, its ``dataset.json``, or a table of cases.
        layout: Name of the layout; ``"auto"`` recognises it.
        reading: What the user decided about files whose headers are wrong.

    Returns:
        The cases, with their repairs unless these are outdated, and findings about their list.

    Raises:
        MedsegError: The file of repairs cannot be read, or names an unknown case.
    """
    root = path if path.is_dir() else path.parent
    description = _description(path, root)
    plain = None if reading is None else replace(reading, repairs=None)
    findings: list[Finding] = []
    try:
        with collected_warnings() as notes:
            dataset = list_cases(path, layout, plain)
    except UnpairedMapsError as error:
        dataset = replace(
            error.dataset,
            cases=tuple(replace(case, reading=plain or case.reading) for case in error.dataset.cases),
        )
        findings += [
            Finding("LABEL_WITHOUT_IMAGE", relative_name(file, root), "image", "no image of this name")
            for file in error.maps
        ]
    except DataError as error:
        file = next((name for name in _TABLES if str(error).startswith(f"{root / name}: ")), description)
        parts = message_parts(str(error), path, root / file, root)
        found = parts.found if parts.found else str(error)
        finding = Finding(
            "DATASET_UNREADABLE", file, parts.field or "cases", found, parts.expected, parts.remedy
        )
        return ListedDataset(None, root, description, (finding,))
    findings += _stated_counts(dataset, root, description)
    findings += _reader_notes(notes, root, description)
    findings += _unlisted(dataset, root)
    if reading is not None and reading.repairs is not None:
        try:
            dataset = apply_repairs(dataset, reading.repairs)
        except OutdatedRepairsError as error:
            findings += [
                Finding(
                    "REPAIR_OUTDATED",
                    file,
                    repair.action,
                    "another content than was checked",
                    case=repair.case,
                )
                for repair, file in error.entries
            ]
    findings += _unlabelled(dataset, description)
    findings += _undeclared_subjects(dataset, description)
    findings += _tests_of_training_subjects(dataset, description)
    return ListedDataset(dataset, root, description, tuple(findings))


def _description(path: Path, root: Path) -> str:
    """Return the name of the file that lists the cases, or ``.`` if the folders do."""
    names = [path.name] if path.is_file() else ["cases.tsv", "cases.csv", "dataset.json"]
    return next((name for name in names if (root / name).is_file()), ".")


def _stated_counts(dataset: Dataset, root: Path, description: str) -> Iterator[Finding]:
    """Yield findings about ``numTraining`` and ``numTest``."""
    if not description.endswith(".json"):
        return
    values: dict[str, Any] = read_object(root / description)
    test = values.get("test")
    labelled = sum(case.label is not None for case in dataset.cases)
    counts = {
        "numTraining": training_counts(values, labelled),
        "numTest": (len(test),) if isinstance(test, list) else (),
    }
    for key, expected in counts.items():
        stated = values.get(key)
        if type(stated) is int and expected and stated not in expected:
            yield Finding(
                "COUNT_DIFFERS", description, key, str(stated), f"{expected[0]}, the number of cases"
            )


def _reader_notes(notes: list[str], root: Path, description: str) -> Iterator[Finding]:
    """Yield findings for what the reader reports, except numbers of cases, which have their own."""
    for note in notes:
        parts = message_parts(note, root / description, root)
        if parts.field not in _COUNTS:
            yield Finding(
                "READER_NOTE", description, parts.field or "cases", parts.found, parts.expected, parts.remedy
            )


def _unlisted(dataset: Dataset, root: Path) -> Iterator[Finding]:
    """Yield a finding for each image file in a folder of the dataset that belongs to no case."""
    used = {path.resolve() for case in dataset.cases for path in case.files}
    folders = {path.parent for case in dataset.cases for path in case.files}
    for folder in sorted(root / name for name in _FOLDERS):
        if folder in folders:
            for file in visible_files(folder):
                if suffix_of(file) and suffix_of(file) != ".img" and file.resolve() not in used:
                    yield Finding("FILE_NOT_LISTED", relative_name(file, root), "file", "a file of no case")


def _unlabelled(dataset: Dataset, description: str) -> Iterator[Finding]:
    without = [case.id for case in dataset.cases if not case.is_labelled]
    if without:
        found = f"{len(without)} of {len(dataset.cases)} cases without a label map: {listed(without, _MOST_LISTED)}"
        yield Finding("CASE_UNLABELLED", description, "label", found, cases=tuple(without))


def _undeclared_subjects(dataset: Dataset, description: str) -> Iterator[Finding]:
    labelled = dataset.labelled_cases
    if any(case.subject != case.id for case in labelled):
        return
    persons = persons_by_name(case.id for case in labelled)
    if persons:
        shown = "; ".join(f"{', '.join(ids[:4])}" for ids in list(persons.values())[:3])
        found = f"{pluralise(len(persons), 'likely person')} with several cases ({shown}{'; ...' if len(persons) > 3 else ''})"
        together = tuple(case_id for ids in persons.values() for case_id in ids)
        yield Finding("SUBJECTS_UNDECLARED", description, "subject", found, cases=together)


def _tests_of_training_subjects(dataset: Dataset, description: str) -> Iterator[Finding]:
    """Yield a finding if cases without a label map, as in a test list, belong to subjects who have others."""
    subjects = subjects_of(dataset.cases)
    annotated = [case.id for case in dataset.labelled_cases]
    trained = {subjects[case_id]: case_id for case_id in reversed(annotated)}
    shared = sorted(case_id for case_id in subjects.keys() - set(annotated) if subjects[case_id] in trained)
    if shared:
        first = f"{shared[0]} is of the subject of {trained[subjects[shared[0]]]}"
        found = f"{pluralise(len(shared), 'case')}: {listed(shared, _MOST_LISTED)} ({first})"
        yield Finding("TEST_SHARES_SUBJECT", description, "subject", found, cases=tuple(shared))
