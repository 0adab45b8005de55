"""Measurement of a dataset: case by case, in several processes, and only if its files have changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medseg.cluster.case_map import THIS_PROCESS, CaseExecutor
from medseg.data.datasets.cases import Case, Dataset, require_each_channel
from medseg.data.datasets.splits import subjects_of
from medseg.data.fingerprint.fingerprint import Fingerprint, saved_fingerprint
from medseg.data.fingerprint.measure_case import MeasuredCase, is_unchanged, measure_case
from medseg.data.preprocessing.case_memory import measuring_bytes
from medseg.data.preprocessing.histogram import Histogram, IntensityStatistics, pool_histograms
from medseg.errors import DataError, all_results
from medseg.labels.label_table import Labels, unnamed_label
from medseg.planning.fingerprint.findings import find
from medseg.runtime.formatting import pluralise
from medseg.runtime.progress import Progress


def fingerprint(
    dataset: Dataset,
    *,
    executor: CaseExecutor = THIS_PROCESS,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Measure all labelled cases of a dataset.

    Args:
        dataset: A dataset, as returned by `medseg.read_dataset`.
        executor: Where the cases are measured. No more of them are in work at once in the processes of this machine than fit
            into its free memory.
        cache: File of an earlier fingerprint, which is returned if no file has changed since. It is not written.
        progress: Called after each case with (done, total, case id).

    Returns:
        Measurements per case, statistics over all cases, and findings.

    Raises:
        DataError: There is no labelled case or no labelled voxel.
        CasesFailedError: Cases cannot be used; the message lists them.
        ResourceError: The memory did not suffice for a case.
    """
    cases = dataset.labelled_cases
    if not cases:
        raise DataError(
            f"{dataset.root}: found no case with a label map among {len(dataset.cases)}, expected some. Add labels."
        )
    known = saved_fingerprint(cache) if cache is not None else None
    if known is not None and _is_of(known, dataset):
        return known.replace(findings=find(known))
    return _assembled(dataset, _measured(cases, dataset, executor, progress))


def _is_of(known: Fingerprint, dataset: Dataset) -> bool:
    """Return whether a stored fingerprint describes exactly this dataset and these files."""
    if (known.dataset, known.channel_names) != (dataset.name, dataset.channel_names):
        return False
    labels = dataset.labels
    if known.named != (labels is not None) or (labels is not None and known.labels != _names(labels)):
        return False
    if (known.regions, known.ignore) != _beyond_names(labels):
        return False
    cases, measures = dataset.labelled_cases, {case.id: case for case in known.cases}
    return (
        set(measures) == {case.id for case in cases}
        and known.unlabelled == len(dataset.cases) - len(cases)
        and known.subjects == len(set(subjects_of(cases).values()))
        and all(is_unchanged(case, measures[case.id], dataset.root) for case in cases)
    )


def _measured(
    cases: Sequence[Case], dataset: Dataset, executor: CaseExecutor, progress: Progress | None
) -> list[MeasuredCase]:
    """Return the measurements of the cases in their order, or raise an error that lists those that cannot be used."""
    channels = len(dataset.channel_names)
    outcomes = executor.map(
        partial(measure_case, labels=dataset.labels, channel_names=dataset.channel_names, root=dataset.root),
        cases,
        [case.id for case in cases],
        (file for case in cases for file in case.files),
        partial(measuring_bytes, channels=channels),
        progress,
    )
    return all_results(outcomes, dataset.root, "Fix them, or remove them from the dataset.")


def _assembled(dataset: Dataset, measured: Sequence[MeasuredCase]) -> Fingerprint:
    histograms = [m.histograms for m in measured if m.histograms]
    if not histograms:
        raise DataError(
            f"{dataset.root}: found no labelled voxel in any of {pluralise(len(measured), 'case')}. Check the label maps."
        )
    cases = tuple(m.case for m in measured)
    regions, ignore = _beyond_names(dataset.labels)
    unfinished = Fingerprint(
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        labels=_names(dataset.labels or _found_labels(measured)),
        named=dataset.labels is not None,
        regions=regions,
        ignore=ignore,
        unlabelled=len(dataset.cases) - len(cases),
        subjects=len(set(subjects_of(dataset.labelled_cases).values())),
        cases=cases,
        intensities=_over_cases(histograms, dataset),
    )
    return unfinished.replace(findings=find(unfinished))


def _over_cases(
    histograms: Sequence[tuple[Histogram | None, ...]], dataset: Dataset
) -> tuple[IntensityStatistics, ...]:
    """Return the intensities of each channel over the cases that have it."""
    require_each_channel(dataset.labelled_cases, dataset.channel_names, dataset.root)
    found = []
    for name, column in zip(dataset.channel_names, zip(*histograms, strict=True), strict=True):
        present = [histogram for histogram in column if histogram is not None]
        if not present:
            raise DataError(
                f"{dataset.root}: channel {name}: found a file in no case with labelled voxels, expected some. Add files, or remove the channel "
                "from the dataset."
            )
        found.append(pool_histograms(present))
    return tuple(found)


def _found_labels(measured: Sequence[MeasuredCase]) -> Labels:
    """Return labels named after the values in the label maps, for a dataset that names none."""
    values = sorted({value for m in measured for value in m.case.label_voxels})
    return Labels.from_names({"background": 0} | {unnamed_label(value): value for value in values})


def _beyond_names(labels: Labels | None) -> tuple[tuple[str, ...], int | None]:
    """Return the names of the regions, and the value to ignore."""
    if labels is None:
        return (), None
    return tuple(region.name for region in labels.regions), labels.ignore


def _names(labels: Labels) -> dict[str, int]:
    return dict(zip(labels.names, labels.values, strict=True))
