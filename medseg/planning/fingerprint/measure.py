"""Measurement of a dataset: case by case, in several processes, and only if its files have changed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path

from medseg.data.datasets.cases import Case, Dataset
from medseg.errors import DataError
from medseg.labels.label_table import Labels, unnamed_label
from medseg.planning.fingerprint.findings import find
from medseg.planning.fingerprint.fingerprint import Fingerprint, saved_fingerprint
from medseg.planning.fingerprint.histogram import Histogram, IntensityStatistics, pool_histograms
from medseg.planning.fingerprint.measure_case import MeasuredCase, UnreadableCase, case_stamp, measure_case
from medseg.runtime.formatting import pluralise
from medseg.runtime.progress import Progress

_Outcomes = Generator[MeasuredCase | UnreadableCase, None, None]
_MOST_LISTED = 20
_MOST_WORKERS = 8
_WORTH_PROCESSES_BYTES = 100e6


def fingerprint(
    dataset: Dataset,
    *,
    workers: int | None = 0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Measure all labelled cases of a dataset.

    Args:
        dataset: A dataset, as returned by `medseg.read_dataset`.
        workers: Number of processes, each with one case in memory; 0 measures in this process; None chooses by the
            size of the files. With processes, the calling program needs ``if __name__ == "__main__"``.
        cache: File of an earlier fingerprint, which is returned if no file has changed since. It is not written.
        progress: Called after each case with (done, total, case id).

    Returns:
        Measurements per case, statistics over all cases, and findings.

    Raises:
        DataError: There is no labelled case or no labelled voxel, or cases cannot be read; the message lists them.
    """
    cases = dataset.labelled_cases
    if not cases:
        raise DataError(
            f"{dataset.root}: found no case with a label map among {len(dataset.cases)}, expected some. Add labels."
        )
    known = saved_fingerprint(cache) if cache is not None else None
    if known is not None and _is_of(known, dataset):
        return known.replace(findings=find(known))
    outcomes = _measured(cases, dataset, _num_workers(cases) if workers is None else workers, progress)
    broken = [outcome for outcome in outcomes if isinstance(outcome, UnreadableCase)]
    if broken:
        raise DataError(_listed(dataset.root, broken, len(cases)))
    return _assembled(dataset, [outcome for outcome in outcomes if isinstance(outcome, MeasuredCase)])


def _num_workers(cases: Sequence[Case]) -> int:
    """Return the number of processes to start; 0 if starting them would take longer than it saves."""
    size = sum(file.stat().st_size for case in cases for file in case.files)
    return min(os.cpu_count() or 1, _MOST_WORKERS) if size > _WORTH_PROCESSES_BYTES else 0


def _is_of(known: Fingerprint, dataset: Dataset) -> bool:
    """Return whether a stored fingerprint describes exactly this dataset and these files."""
    if (known.dataset, known.channel_names) != (dataset.name, dataset.channel_names):
        return False
    labels = dataset.labels
    if known.named != (labels is not None) or (labels is not None and known.labels != _names(labels)):
        return False
    if (known.regions, known.ignore) != _beyond_names(labels):
        return False
    stamps = {case.id: case_stamp(case, dataset.root) for case in dataset.labelled_cases}
    return (
        {case.id: case.stamp for case in known.cases} == stamps
        and known.unlabelled == len(dataset.cases) - len(stamps)
        and known.subjects == len({case.subject for case in dataset.labelled_cases})
    )


def _measured(
    cases: Sequence[Case], dataset: Dataset, workers: int, progress: Progress | None
) -> list[MeasuredCase | UnreadableCase]:
    """Return one outcome per case, in the order of the cases."""
    found: dict[str, MeasuredCase | UnreadableCase] = {}
    run = _in_processes if min(workers, len(cases)) > 1 else _here
    with closing(run(cases, dataset, min(workers, len(cases)))) as outcomes:
        for outcome in outcomes:
            case_id = outcome.case.id if isinstance(outcome, MeasuredCase) else outcome.id
            found[case_id] = outcome
            if progress is not None:
                progress(len(found), len(cases), case_id)
    return [found[case.id] for case in cases]


def _here(cases: Sequence[Case], dataset: Dataset, workers: int) -> _Outcomes:
    for case in cases:
        yield measure_case(case, dataset.labels, len(dataset.channel_names), dataset.root)


def _in_processes(cases: Sequence[Case], dataset: Dataset, workers: int) -> _Outcomes:
    """Yield outcomes in the order in which cases are finished.

    Processes are spawned, because a fork copies the locks of threads in any state.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent
    )
    channels = len(dataset.channel_names)
    pending: dict[Future[MeasuredCase | UnreadableCase], str] = {}
    others = set(multiprocessing.active_children())
    try:
        with _interrupts_held():  # the pool starts its processes when jobs are submitted
            for case in cases:
                job = pool.submit(measure_case, case, dataset.labels, channels, dataset.root)
                pending[job] = case.id
        for job in as_completed(pending):
            outcome = job.result()
            del pending[job]
            yield outcome
    except BrokenProcessPool:
        some = ", ".join(list(pending.values())[: workers + 1])
        raise DataError(
            f"{dataset.root}: a process that measured cases was ended by the system, most likely because memory ran out, "
            f"at one of {some}. Try fewer workers."
        ) from None
    finally:
        if (
            pending
        ):  # interrupted: the processes only read files, so they can be ended at once instead of waiting
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal: only the parent process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C; processes started meanwhile never receive it, not even while they import their modules."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listed(root: Path, broken: Sequence[UnreadableCase], cases: int) -> str:
    lines = "".join(f"\n  {item.reason}" for item in broken[:_MOST_LISTED])
    more = f"\n  and {len(broken) - _MOST_LISTED} more" if len(broken) > _MOST_LISTED else ""
    return (
        f"{root}: {len(broken)} of {pluralise(cases, 'case')} cannot be used:{lines}{more}\n"
        "Fix them, or remove them from the dataset."
    )


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
        subjects=len({case.subject for case in dataset.labelled_cases}),
        cases=cases,
        intensities=_over_cases(histograms),
    )
    return unfinished.replace(findings=find(unfinished))


def _over_cases(histograms: Sequence[tuple[Histogram, ...]]) -> tuple[IntensityStatistics, ...]:
    return tuple(pool_histograms(channel) for channel in zip(*histograms, strict=True))


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
