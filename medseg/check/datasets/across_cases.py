"""Comparisons between the cases of a dataset: duplicates, outliers, modalities, orientations and labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.check.cases.check_case import CheckedCase
from medseg.check.finding import Finding
from medseg.data.preprocessing.channel_methods import channel_method
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import format_number, listed
from medseg.volumes.plausible import format_dimensions

FEWEST_CASES = 8  # below, "unlike the others" means little
_FEWEST_OF_ALL = 4
ROBUST_Z = 6.0
_SMALLEST_SPREAD = 0.05  # of logarithms, so that a dataset of nearly equal values has no outliers by rounding
SPACING_RATIO, EXTENT_RATIO, INTENSITY_RATIO = 2.0, 4.0, 20.0
AIR_BELOW_HU, NO_AIR_ABOVE_HU = -500.0, -250.0
_CT_LOW, _CT_HIGH = (-2048.0, -900.0), (300.0, 32767.0)
_MOST_LISTED = 12
_MOST_SINGLE = 5  # outliers of a kind that are reported one by one


def findings_across_cases(
    cases: Sequence[CheckedCase], labels: Labels | None, channel_names: Sequence[str], description: str
) -> list[Finding]:
    """Return findings that a single case does not show.

    Args:
        cases: The checked cases.
        labels: Labels of the dataset; None if it names none.
        channel_names: Names of its channels.
        description: File that describes the dataset, for findings about the whole dataset.

    Returns:
        Findings, without an order.
    """
    return [
        *duplicates(cases),
        *_orientations(cases, description),
        *_bits(cases, description),
        *_grouped(list(_spacings(cases)), description),
        *_grouped(list(_extents(cases)), description),
        *_intensities(cases, channel_names, description),
        *_modalities(cases, channel_names, description),
        *_labels(cases, labels, description),
    ]


def duplicates(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    """Yield findings about images with the same voxels, and label maps shared by different images.

    Args:
        cases: The checked cases.

    Yields:
        One finding per group.
    """
    for group in groups_by(cases, lambda case: case.image_hash):
        if group[0].channels and all(one.low == one.high for one in group[0].channels):
            continue  # constant images are reported as such
        ids = tuple(case.id for case in group)
        yield Finding(
            "IMAGE_DUPLICATE",
            group[0].image_file,
            "voxels",
            f"the same voxels in {listed(ids, _MOST_LISTED)}",
            case=ids[0],
            cases=ids,
        )
    for group in groups_by(cases, lambda case: case.label_hash):
        images = {case.image_hash or case.id for case in group}
        if len(images) > 1 and len({case.subject for case in group}) > 1:
            ids = tuple(case.id for case in group)
            found = f"the same label map in {listed(ids, _MOST_LISTED)}"
            yield Finding("LABEL_DUPLICATE", group[0].label_file, "voxels", found, case=ids[0], cases=ids)


def groups_by(cases: Sequence[CheckedCase], key: Callable[[CheckedCase], str]) -> list[list[CheckedCase]]:
    """Return groups of at least two cases with the same key; an empty key belongs to no group."""
    groups: dict[str, list[CheckedCase]] = defaultdict(list)
    for case in cases:
        if key(case):
            groups[key(case)].append(case)
    return [group for group in groups.values() if len(group) > 1]


def _orientations(cases: Sequence[CheckedCase], description: str) -> Iterator[Finding]:
    counts = Counter(case.grid.axcodes for case in cases if case.grid is not None)
    if len(counts) > 1:
        shown = ", ".join(f"{count} in {codes}" for codes, count in counts.most_common())
        rare = counts.most_common()[-1]
        single = tuple(case.id for case in cases if case.grid is not None and case.grid.axcodes == rare[0])
        named = single if rare[1] == 1 else ()
        yield Finding("ORIENTATIONS_MIXED", description, "axis codes", shown, cases=named)


def _bits(cases: Sequence[CheckedCase], description: str) -> Iterator[Finding]:
    """Yield a finding if some images have 8 bits and others have more; natural images have 8 by custom."""
    counts = Counter(
        "8 bits" if case.bits == 8 else "more bits"
        for case in cases
        if case.bits and case.grid is not None and not case.grid.in_pixels
    )
    if len(counts) > 1:
        found = f"{counts['8 bits']} with 8 bits, {counts['more bits']} with more"
        yield Finding("IMAGE_BITS_DIFFER", description, "images", found)


def _spacings(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    placed = [case for case in cases if case.grid is not None and not case.grid.in_pixels]
    if not placed:
        return
    spacings = np.array([case.grid.reoriented().spacing for case in placed if case.grid is not None])
    far = np.zeros(len(placed), dtype=bool)
    for axis in range(3):
        far |= outliers(spacings[:, axis], SPACING_RATIO)
    typical = format_dimensions(np.median(spacings, axis=0).tolist())
    for case, values in ((placed[i], spacings[i]) for i in np.flatnonzero(far)):
        yield Finding(
            "SPACING_OUTLIER",
            case.placed_by,
            "voxel size",
            f"{format_dimensions(values)} mm",
            f"about {typical} mm, the median",
            case=case.id,
        )


def _extents(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    placed = [case for case in cases if case.grid is not None and not case.grid.in_pixels]
    if not placed:
        return
    lengths = [
        [n * mm for n, mm in zip(grid.shape, grid.spacing, strict=True)]
        for case in placed
        if (grid := case.grid and case.grid.reoriented()) is not None
    ]
    volumes = np.array([float(np.prod(one)) for one in lengths])
    for i in np.flatnonzero(outliers(volumes, EXTENT_RATIO)):
        typical = format_dimensions(np.median(np.array(lengths), axis=0).round(1).tolist())
        found = f"{format_dimensions([round(one, 1) for one in lengths[i]])} mm"
        yield Finding(
            "SHAPE_OUTLIER",
            placed[i].placed_by,
            "field of view",
            found,
            f"about {typical} mm, the median",
            case=placed[i].id,
        )


def _intensities(
    cases: Sequence[CheckedCase], channel_names: Sequence[str], description: str
) -> Iterator[Finding]:
    measured = [case for case in cases if case.channels and all(one.low < one.high for one in case.channels)]
    if not measured:
        return
    for channel in range(min(len(case.channels) for case in measured)):
        name = channel_names[channel] if channel < len(channel_names) else f"{channel}"
        widths = np.array([case.channels[channel].high - case.channels[channel].low for case in measured])
        medians = np.array([case.channels[channel].median - case.channels[channel].low for case in measured])
        far = outliers(widths, INTENSITY_RATIO) & outliers(medians, INTENSITY_RATIO)
        one_by_one = [
            Finding(
                "INTENSITY_OUTLIER",
                measured[i].image_file,
                f"channel {name}",
                f"{format_number(widths[i])} from minimum to maximum",
                f"about {format_number(float(np.median(widths)))}, the median",
                case=measured[i].id,
            )
            for i in np.flatnonzero(far)
        ]
        yield from _grouped(one_by_one, description)


def _grouped(findings: Sequence[Finding], description: str) -> Iterator[Finding]:
    """Yield the findings, or a single one if there are many: then the dataset has several groups of cases."""
    if len(findings) <= _MOST_SINGLE:
        yield from findings
        return
    first, ids = findings[0], tuple(one.case for one in findings)
    found = f"{len(ids)} cases such as {first.case} with {first.found}"
    yield Finding(first.code, description, first.field, found, first.expected, cases=ids)


def _modalities(
    cases: Sequence[CheckedCase], channel_names: Sequence[str], description: str
) -> Iterator[Finding]:
    for channel, name in enumerate(channel_names):
        measured = [
            case
            for case in cases
            if len(case.channels) > channel and case.channels[channel].low < case.channels[channel].high
        ]
        if not measured:
            continue
        lows, highs = (
            np.array([getattr(case.channels[channel], end) for case in measured]) for end in ("low", "high")
        )
        if channel_method(name) == "ct":
            usual_air = np.median(lows) < AIR_BELOW_HU
            for case, low, high in zip(measured, lows, highs, strict=True):
                if low >= 0 or (usual_air and low > NO_AIR_ABOVE_HU):
                    found = f"{format_number(low)} to {format_number(high)}"
                    yield Finding("CT_WITHOUT_AIR", case.image_file, f"channel {name}", found, case=case.id)
        elif _CT_LOW[0] <= np.median(lows) <= _CT_LOW[1] and _CT_HIGH[0] <= np.median(highs) <= _CT_HIGH[1]:
            found = f"the name {name!r} for values from {format_number(np.median(lows))} to {format_number(np.median(highs))}"
            yield Finding("CT_NAMED_OTHERWISE", description, f"channel {name}", found)


def _labels(cases: Sequence[CheckedCase], labels: Labels | None, description: str) -> Iterator[Finding]:
    counted = [case.label_counts for case in cases if case.label_counts is not None]
    if not counted:
        return
    if labels is None:
        values = sorted({value for counts in counted for value in counts} - {0})
        shown = ", ".join(map(str, values[:_MOST_LISTED])) + (", ..." if len(values) > _MOST_LISTED else "")
        yield Finding("LABEL_NAMES_MISSING", description, "labels", f"no names for the values {shown or '0'}")
        return
    for label in labels.foreground:
        if not any(counts.get(label.value) for counts in counted):
            found = f"no voxel of value {label.value} ({label.name}) in {len(counted)} label maps"
            yield Finding("LABEL_IN_NO_CASE", description, f"labels: {label.name}", found)


def outliers(values: NDArray[np.float64], ratio: float) -> NDArray[np.bool_]:
    """Return which values are far from the others.

    A value is an outlier if its logarithm is more than `ROBUST_Z` robust standard deviations (1.4826 times the median
    absolute deviation) from the median, and the value itself is more than `ratio` times larger or smaller.

    Args:
        values: Positive numbers, one per case.
        ratio: Smallest factor from the median.

    Fewer than `FEWEST_CASES` values have no spread that could be relied on: then a value is an outlier only if it is the only
    one that is more than ``ratio ** 3`` times larger or smaller than all others, which are within `ratio` of each other.

    Returns:
        Boolean array; all False for fewer than four values.

    >>> outliers(np.array([1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 1.0, 5.0]), 2.0).tolist()
    [False, False, False, False, False, False, False, True]
    """
    logs = np.log(np.maximum(np.abs(values), 1e-12))
    if len(values) < FEWEST_CASES:
        return _lone(logs, np.log(ratio))
    away = np.abs(logs - np.median(logs))
    spread = max(1.4826 * float(np.median(away)), _SMALLEST_SPREAD)
    far: NDArray[np.bool_] = (away > ROBUST_Z * spread) & (away > np.log(ratio))
    return far


def _lone(logs: NDArray[np.float64], step: float) -> NDArray[np.bool_]:
    """Return which logarithm of a few is the only one that is far from all others, which are near each other."""
    lone = np.zeros(len(logs), dtype=bool)
    if len(logs) < _FEWEST_OF_ALL:
        return lone
    for index, value in enumerate(logs):
        others = np.delete(logs, index)
        lone[index] = np.ptp(others) <= step and float(np.abs(others - value).min()) > 3 * step
    return lone
