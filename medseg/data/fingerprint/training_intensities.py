"""Foreground intensities of training cases, from an earlier fingerprint where its measurements still hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medseg.cluster.case_map import THIS_PROCESS, CaseExecutor
from medseg.data.datasets.cases import Dataset
from medseg.data.fingerprint.fingerprint import CaseMeasures, Fingerprint, saved_fingerprint
from medseg.data.fingerprint.measure_case import case_histograms, is_unchanged
from medseg.data.preprocessing.case_memory import measuring_bytes
from medseg.data.preprocessing.histogram import Histogram, IntensityStatistics, pool_histograms
from medseg.errors import DataError, all_results
from medseg.labels.label_table import Labels
from medseg.runtime.progress import Progress


def training_intensities(
    dataset: Dataset,
    labels: Labels,
    channels: Sequence[int],
    *,
    known: str | Path | None = None,
    executor: CaseExecutor = THIS_PROCESS,
    progress: Progress | None = None,
) -> dict[int, IntensityStatistics]:
    """Return statistics of the foreground of all cases of a dataset, which have equal weight.

    Args:
        dataset: The training cases, all with a label map.
        labels: Labels that the network learns.
        channels: Indices of the channels whose statistics are needed.
        known: ``fingerprint.json`` of a plan. Cases whose files have not changed since are not read again, if it was
            measured with the same labels. None or a missing file reads all cases.
        executor: Where the cases are read.
        progress: Called after each case that is read with (done, total, case id).

    Returns:
        Statistics by index of the channel.

    Raises:
        DataError: No case has foreground.
        CasesFailedError: Cases cannot be used; the message lists them.
    """
    fingerprint = None if known is None else saved_fingerprint(known)
    if fingerprint is not None and not _has_labels(fingerprint, labels):
        fingerprint = None
    measured = {} if fingerprint is None else {case.id: case for case in fingerprint.cases}
    found: dict[str, list[Histogram | None]] = {}
    for case in dataset.cases:
        if case.id in measured and is_unchanged(case, measured[case.id], dataset.root):
            packed = _unpacked(measured[case.id], channels)
            if packed is not None:
                found[case.id] = packed
    rest = [case for case in dataset.cases if case.id not in found]
    count = len(dataset.channel_names)
    outcomes = executor.map(
        partial(case_histograms, labels=labels, channels=count),
        rest,
        [case.id for case in rest],
        (file for case in rest for file in case.files),
        partial(measuring_bytes, channels=count),
        progress,
    )
    results = all_results(outcomes, dataset.root, "Fix them, or remove them from the dataset.")
    for case, result in zip(rest, results, strict=True):
        found[case.id] = [result[channel] for channel in channels] if result else []
    histograms = [found[case.id] for case in dataset.cases if found[case.id]]
    if not histograms:
        raise DataError("labels: found no foreground voxel in any training case. Check the label maps.")
    pooled = {}
    for channel, column in zip(channels, zip(*histograms, strict=True), strict=True):
        present = [histogram for histogram in column if histogram is not None]
        if not present:
            raise DataError(
                f"{dataset.root}: channel {dataset.channel_names[channel]}: found a file in none of the training cases with labels, expected "
                "some, because it is normalised by their intensities. Add files, or remove the channel."
            )
        pooled[channel] = pool_histograms(present)
    return pooled


def _has_labels(fingerprint: Fingerprint, labels: Labels) -> bool:
    """Return whether the foreground of a fingerprint is that of these labels."""
    names = dict(zip(labels.names, labels.values, strict=True))
    return (fingerprint.labels, fingerprint.ignore) == (names, labels.ignore)


def _unpacked(case: CaseMeasures, channels: Sequence[int]) -> list[Histogram | None] | None:
    """Return the histograms of some channels, None for an absent one; none without foreground, None if one was not stored."""
    if not case.foreground:
        return []
    try:
        packed = [case.histograms[channel] if case.has(channel) else None for channel in channels]
        if "" in packed:
            return None
        return [None if text is None else Histogram.unpack(text) for text in packed]
    except (IndexError, ValueError):
        return None
