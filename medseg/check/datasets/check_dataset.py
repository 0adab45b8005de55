"""The checks of a whole dataset: its list of files, every case, and what only a comparison of cases shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.check.cases.check_case import CheckedCase, check_case
from medseg.check.datasets.across_cases import findings_across_cases
from medseg.check.datasets.dataset_files import list_dataset
from medseg.check.datasets.split_findings import split_findings
from medseg.check.finding import Finding, message_parts
from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.cases import Case, Dataset, ReadingOptions
from medseg.data.datasets.names import relative_name
from medseg.data.datasets.splits import Split, k_fold, read_splits, subjects_of
from medseg.data.preprocessing.case_memory import measuring_bytes
from medseg.errors import DataError, all_results, no_such_path
from medseg.labels.label_table import Labels
from medseg.runtime.progress import Progress

DEFAULT_FOLDS = 5
_SPLIT_FILES = ("splits_final.json", "splits.json")


@dataclass(frozen=True)
class CheckOptions:
    """How a dataset is checked.

    Attributes:
        layout: Name of the layout; ``"auto"`` recognises it.
        reading: What the user decided about files whose headers are wrong.
        splits: JSON file with splits; None uses one in the folder, or else the default folds of a training.
        workers: Number of processes; None chooses by the size of the files.
        images: Whether to create a small image of each case for the page.
        progress: Called after each case with (done, total, case id).
    """

    layout: str = "auto"
    reading: ReadingOptions | None = None
    splits: Path | None = None
    workers: int | None = None
    images: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class CheckedDataset:
    """The result of the checks of a dataset, or of a list of images.

    Attributes:
        root: Folder of the dataset.
        cases: The checked cases.
        findings: All findings, without an order.
        dataset: The dataset; None if its description cannot be used.
    """

    root: Path
    cases: tuple[CheckedCase, ...]
    findings: tuple[Finding, ...]
    dataset: Dataset | None


def check_dataset(path: str | Path, options: CheckOptions | None = None) -> CheckedDataset:
    """Check all files of a dataset.

    Args:
        path: The dataset's folder, its ``dataset.json``, or a table of cases.
        options: How it is checked; None for the defaults.

    Returns:
        The cases and all findings.

    Raises:
        DataError: There is no such path, or the layout is unknown.
        ResourceError: The memory did not suffice for a case.

    Examples:
        >>> import tempfile
        >>> from medseg.data.datasets.phantom import write_phantoms
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_phantoms(folder, cases=2, shape=(24, 20, 16), spacing=(10, 10, 10), oblique=False)
        ...     [finding.severity for finding in check_dataset(folder).findings]
        []
    """
    options = options or CheckOptions()
    path = Path(path)
    if not path.exists():
        raise DataError(no_such_path(path, expected="a dataset"))
    listed = list_dataset(path, options.layout, options.reading)
    if listed.dataset is None:
        return CheckedDataset(listed.root, (), listed.findings, None)
    return check_listed(listed.dataset, options, listed.description, listed.findings)


def check_listed(
    dataset: Dataset, options: CheckOptions, description: str = ".", findings: Sequence[Finding] = ()
) -> CheckedDataset:
    """Check the cases of a dataset whose list of files was checked.

    Args:
        dataset: The dataset, whose files may be missing.
        options: How it is checked.
        description: File that lists the cases, for findings about the whole dataset.
        findings: Findings about the list, which are included in the result.

    Returns:
        The cases and all findings.

    Raises:
        ResourceError: The memory did not suffice for a case.
    """
    cases = check_cases(dataset.cases, dataset.labels, dataset.channel_names, dataset.root, options)
    found = [
        *findings,
        *(finding for case in cases for finding in case.findings),
        *findings_across_cases(cases, dataset.labels, dataset.channel_names, description),
        *_split_findings(dataset, cases, options),
    ]
    return CheckedDataset(dataset.root, cases, tuple(found), dataset)


def check_cases(
    cases: Sequence[Case],
    labels: Labels | None,
    channel_names: Sequence[str],
    root: Path,
    options: CheckOptions,
) -> tuple[CheckedCase, ...]:
    """Check cases one by one, in several processes if they are large.

    Args:
        cases: The cases.
        labels: Labels of the dataset; None if it names none.
        channel_names: Names of its channels; empty accepts any number.
        root: Folder of the dataset, for names of files.
        options: How they are checked.

    Returns:
        One result per case, in the same order.

    Raises:
        ResourceError: The memory did not suffice for a case.
    """
    check = partial(
        check_case, labels=labels, channel_names=tuple(channel_names), root=root, images=options.images
    )
    outcomes = CaseExecutor(options.workers).map(
        check,
        cases,
        [case.id for case in cases],
        (file for case in cases for file in case.files),
        partial(measuring_bytes, channels=len(channel_names) or 1),
        options.progress,
    )
    # What is wrong with a file is a finding, so the memory did not suffice for a case that failed.
    return tuple(all_results(outcomes, root, "Check these cases by themselves."))


def _split_findings(dataset: Dataset, cases: Sequence[CheckedCase], options: CheckOptions) -> list[Finding]:
    """Return findings about the splits of a file, or about the default folds if there is none."""
    file = options.splits or next(
        (dataset.root / name for name in _SPLIT_FILES if (dataset.root / name).is_file()), None
    )
    if file is None:
        if len(set(subjects_of(dataset.labelled_cases).values())) < DEFAULT_FOLDS:
            return []
        splits, name = k_fold(dataset.labelled_cases, DEFAULT_FOLDS), f"default {DEFAULT_FOLDS} folds"
        found = split_findings(splits, cases, dataset.labels, name)
        return [finding for finding in found if finding.code != "SPLIT_MAY_LEAK_SUBJECT"]
    name = relative_name(file, dataset.root)
    try:
        splits = read_splits(file)
        _require_known(splits, dataset, file)
    except DataError as error:
        parts = message_parts(str(error), file)
        return [
            Finding("SPLIT_INVALID", name, parts.field or "splits", parts.found, parts.expected, parts.remedy)
        ]
    return list(split_findings(splits, cases, dataset.labels, name))


def _require_known(splits: Sequence[Split], dataset: Dataset, file: Path) -> None:
    for fold, split in enumerate(splits):
        unknown = [case for case in (*split.train, *split.validation) if case not in dataset.ids]
        if unknown:
            raise DataError(
                f"{file}: fold {fold}: found {len(unknown)} unknown cases such as {unknown[0]!r}, expected ids of the dataset. "
                "Correct the ids."
            )
