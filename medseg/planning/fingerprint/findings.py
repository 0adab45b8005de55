"""Findings: possible problems of a dataset, described for the user. Each check of the fingerprint is one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medseg.data.datasets.names import persons_by_name
from medseg.data.fingerprint.fingerprint import CaseMeasures, Finding, Fingerprint
from medseg.data.preprocessing.channel_methods import channel_method
from medseg.labels.instance_ids import STATE_INSTANCES, look_like_instances
from medseg.planning.nnunet.spacing import THICK_SLICES
from medseg.runtime.formatting import listed, pluralise
from medseg.volumes.grid import SHEAR_TOLERANCE

FEW_CASES = 10
RARE_SHARE = 0.1  # fraction of cases with a label, below which the label is rare
SPACING_RATIO = 2.0  # between the spacing of a case and the median
VOLUME_RATIO = 4.0  # between the field of view of a case and the median
INTENSITY_RATIO = 10.0  # between the foreground median of a case and that of the dataset
SMALL_EDGE = 8  # voxels: too few to be halved once
HUGE_VOXELS = 768 * 768 * 768
HUGE_BYTES_PER_VOXEL = 4
TINY_FRACTION = 1e-4  # fraction of voxels that are foreground
FEW_VOXELS = 30  # median number of voxels of a label in the cases that have it
HOUNSFIELD = (-2048.0, 32767.0)
CT_REACHES_DOWN_TO_HU, CT_REACHES_UP_TO_HU = -900.0, 300.0  # an image that reaches both is likely a CT
_MOST_NAMED = 12


def find(fingerprint: Fingerprint) -> tuple[Finding, ...]:
    """Return the findings of all checks in this module, severe ones first.

    Args:
        fingerprint: The measurements of the dataset.

    Returns:
        The findings, which keep the order of the checks among equally severe ones.
    """
    found = [finding for check in _CHECKS for finding in check(fingerprint)]
    return tuple(sorted(found, key=lambda finding: not finding.severe))


def _few_cases(f: Fingerprint) -> Iterator[Finding]:
    if f.subjects < FEW_CASES:
        yield Finding(
            code="few-cases",
            text=f"Only {pluralise(f.subjects, 'subject')} with a label map: results on a "
            "held-out fold are a weak estimate of results on new cases.",
        )
    persons = persons_by_name(case.id for case in f.cases)
    if persons and f.subjects == len(f.cases) - sum(len(ids) - 1 for ids in persons.values()):
        person, ids = next(iter(persons.items()))
        yield Finding(
            code="subjects-inferred",
            text=f"{pluralise(f.subjects, 'subject')}: by their names, several cases are of one person, such as {' and '.join(ids[:2])} "
            f"of {person}. Folds keep them together. If this is wrong, list the cases in a table with a column subject.",
            severe=False,
        )
    if f.unlabelled:
        yield Finding(
            code="unlabelled",
            text=f"{f.unlabelled} case{'s have' if f.unlabelled != 1 else ' has'} no label map and cannot be trained on.",
            severe=False,
        )


def _empty_cases(f: Fingerprint) -> Iterator[Finding]:
    empty = _ids(case for case in f.cases if not case.label_voxels)
    if empty:
        yield Finding(
            code="empty-cases",
            text=f"{_of(empty, f)} no labelled voxel. This is correct only if there is nothing to segment.",
            cases=empty,
        )


def _labels(f: Fingerprint) -> Iterator[Finding]:
    absent, rare, tiny = [], [], []
    for name, value in f.foreground_labels.items():
        voxels = [case.label_voxels[value] for case in f.cases if value in case.label_voxels]
        if not voxels:
            absent.append(name)
        elif len(voxels) < max(2, RARE_SHARE * len(f.cases)):
            rare.append(f"{name} ({len(voxels)})")
        elif np.median(voxels) < FEW_VOXELS:
            tiny.append(f"{name} ({np.median(voxels):.0f})")
    if absent:
        yield Finding(
            code="label-absent",
            text=f"{_count(absent, 'label')} in no case and cannot be learnt: {listed(absent, _MOST_NAMED)}.",
        )
    if rare:
        yield Finding(
            code="label-rare",
            text=f"{_count(rare, 'label')} in so few of the {pluralise(len(f.cases), 'case')} that a fold may lack them: {listed(rare, _MOST_NAMED)}.",
        )
    if tiny:
        yield Finding(
            code="label-tiny",
            text=f"{_count(tiny, 'label')} of few voxels (median where present), so that single voxels change the Dice "
            f"strongly: {listed(tiny, _MOST_NAMED)}.",
            severe=False,
        )


def _instance_ids(f: Fingerprint) -> Iterator[Finding]:
    """Find label maps without names whose values are consecutive numbers, of which there are more in some cases than in others."""
    if f.named:
        return
    counts = {len(case.label_voxels) for case in f.cases}
    if len(counts) > 1 and all(look_like_instances(case.label_voxels, 0) for case in f.cases):
        yield Finding(
            code="looks-like-instances",
            text=f"The label maps hold the values 1 to {min(counts)} up to {max(counts)} without a gap, a different number in each case. "
            + STATE_INSTANCES,
        )


def _foreground(f: Fingerprint) -> Iterator[Finding]:
    fraction = float(np.median([case.foreground_fraction for case in f.cases]))
    if fraction < TINY_FRACTION:
        yield Finding(
            code="tiny-foreground",
            text=f"Foreground is {fraction:.2g} of the median case's voxels: raise train.oversample_foreground to sample it more often.",
            severe=False,
        )


def _spacings(f: Fingerprint) -> Iterator[Finding]:
    median = f.medians()[0]
    thick = max(median) / sorted(median)[1]
    if thick > THICK_SLICES and not _single_slices(f):
        yield Finding(
            code="thick-slices",
            text=f"Slices are {thick:.1f} times as thick as their pixels are wide: kernels and poolings initially leave out that axis.",
            severe=False,
        )
    for axis, name in enumerate("XYZ"):
        odd = _far_from_median([case.spacing[axis] for case in f.cases], SPACING_RATIO)
        if odd and not (_single_slices(f) and median[axis] == max(median)):
            ids = _ids(f.cases[i] for i in odd)
            low, high = (fn(case.spacing[axis] for case in f.cases) for fn in (min, max))
            yield Finding(
                code="spacing-varies",
                text=f"{_of(ids, f)} a {name} spacing more than {SPACING_RATIO:g} times away from the median {median[axis]:.3g} mm "
                f"(all: {low:.3g} to {high:.3g} mm). Check their headers.",
                cases=ids,
            )


def _sizes(f: Fingerprint) -> Iterator[Finding]:
    extents = [
        float(np.prod([n * mm for n, mm in zip(case.shape, case.spacing, strict=True) if n > 1]))
        for case in f.cases
    ]
    odd = _far_from_median(extents, VOLUME_RATIO)
    if odd:
        ids = _ids(f.cases[i] for i in odd)
        yield Finding(
            code="extent-varies",
            text=f"{_of(ids, f)} a field of view more than {VOLUME_RATIO:g} times larger or smaller than the median.",
            cases=ids,
            severe=False,
        )
    if not _single_slices(f):
        small = _ids(case for case in f.cases if min(case.shape_after_crop) < SMALL_EDGE)
        if small:
            yield Finding(
                code="small-images",
                text=f"{_of(small, f)} fewer than {SMALL_EDGE} voxels along some axis, too few to pool there.",
                cases=small,
                severe=False,
            )
    huge = _ids(case for case in f.cases if case.voxels > HUGE_VOXELS)
    if huge:
        gigabytes = HUGE_VOXELS * HUGE_BYTES_PER_VOXEL / 1e9
        yield Finding(
            code="huge-images",
            text=f"{_of(huge, f)} more than {HUGE_VOXELS / 1e6:.0f} million voxels, over {gigabytes:.1f} GB per channel in "
            "memory while being prepared.",
            cases=huge,
            severe=False,
        )


def _geometry(f: Fingerprint) -> Iterator[Finding]:
    orientations = sorted({case.orientation for case in f.cases})
    if len(orientations) > 1:
        yield Finding(
            code="mixed-orientations",
            text=f"Stored in several orientations ({', '.join(orientations)}); all are reoriented to RAS, which has no effect on quality.",
            severe=False,
        )
    sheared = _ids(case for case in f.cases if case.shear > SHEAR_TOLERANCE)
    if sheared:
        yield Finding(
            code="sheared",
            text=f"{_of(sheared, f)} axes that are not at right angles (a tilted gantry).",
            cases=sheared,
            severe=False,
        )


def _intensities(f: Fingerprint) -> Iterator[Finding]:
    for channel, name in enumerate(f.channel_names):
        lacking = _ids(case for case in f.cases if not case.has(channel))
        if lacking:
            yield Finding(
                code="absent-channel",
                text=f"{_of(lacking, f)} no file of channel {name}; zeros are used.",
                cases=lacking,
                severe=False,
            )
        flat = _ids(
            case for case in _having(f, channel) if case.ranges[channel][0] == case.ranges[channel][1]
        )
        if flat:
            yield Finding(
                code="constant-channel",
                text=f"{_of(flat, f)} a constant channel {name}: the file is empty or wrong.",
                cases=flat,
            )
        if channel_method(name) == "ct":
            yield from _hounsfield(f, channel)
        else:
            yield from _unnamed_ct(f, channel)
            yield from _scales(f, channel)


def _having(f: Fingerprint, channel: int) -> list[CaseMeasures]:
    """Return the cases that have a file of a channel."""
    return [case for case in f.cases if case.has(channel)]


def _hounsfield(f: Fingerprint, channel: int) -> Iterator[Finding]:
    low, high = HOUNSFIELD
    outside = _ids(
        c for c in _having(f, channel) if c.ranges[channel][0] < low or c.ranges[channel][1] > high
    )
    if outside:
        yield Finding(
            code="not-hounsfield",
            text=f"{_of(outside, f)} values outside {low:.0f} to {high:.0f} in channel CT, expected Hounsfield units.",
            cases=outside,
        )
    shifted = _ids(case for case in _having(f, channel) if case.ranges[channel][0] >= 0)
    if shifted:
        yield Finding(
            code="no-air",
            text=f"{_of(shifted, f)} no negative value in channel CT: either the intercept (-1024) was not applied, or the "
            "image was windowed.",
            cases=shifted,
        )


def _unnamed_ct(f: Fingerprint, channel: int) -> Iterator[Finding]:
    lows, highs = zip(*(case.ranges[channel] for case in _having(f, channel)), strict=True)
    low, high = float(np.median(lows)), float(np.median(highs))
    if HOUNSFIELD[0] <= low <= CT_REACHES_DOWN_TO_HU and CT_REACHES_UP_TO_HU <= high <= HOUNSFIELD[1]:
        yield Finding(
            code="looks-like-ct",
            text=f"Channel {f.channel_names[channel]} looks like CT (median range {low:.0f} to {high:.0f}) but is not named "
            "CT: if it is CT, rename the channel to CT, or set preprocess.normalize to ct.",
        )


def _scales(f: Fingerprint, channel: int) -> Iterator[Finding]:
    measured = [case for case in _having(f, channel) if case.foreground]
    odd = _far_from_median([abs(case.foreground[channel].median) for case in measured], INTENSITY_RATIO)
    if odd:
        ids = _ids(measured[i] for i in odd)
        yield Finding(
            code="scale-varies",
            text=f"{_of(ids, f)} a foreground more than {INTENSITY_RATIO:g} times brighter or darker than the median case in "
            f"channel {f.channel_names[channel]}: normalise each image by its own statistics.",
            cases=ids,
            severe=False,
        )


_CHECKS: tuple[Callable[[Fingerprint], Iterator[Finding]], ...] = (
    _few_cases,
    _empty_cases,
    _labels,
    _instance_ids,
    _foreground,
    _spacings,
    _sizes,
    _geometry,
    _intensities,
)


def _single_slices(f: Fingerprint) -> bool:
    return 1 in f.medians()[1]


def _far_from_median(values: Sequence[float], ratio: float) -> list[int]:
    """Return the indices of values more than `ratio` times above or below the median."""
    if not values:
        return []
    median = float(np.median(values))
    if median == 0:
        return []
    return [i for i, value in enumerate(values) if value > ratio * median or value * ratio < median]


def _ids(cases: Iterator[CaseMeasures]) -> tuple[str, ...]:
    return tuple(case.id for case in cases)


def _count(items: Sequence[str], noun: str) -> str:
    return f"{pluralise(len(items), noun)} {'is' if len(items) == 1 else 'are'}"


def _of(ids: Sequence[str], f: Fingerprint) -> str:
    """Return ``3 of 205 cases have``, or the only case by name."""
    if len(ids) == 1:
        return f"Case {ids[0]} has"
    return f"{len(ids)} of {pluralise(len(f.cases), 'case')} have"
