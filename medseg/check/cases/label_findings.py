"""Checks of the values and the shape of one label map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.check.finding import Finding
from medseg.data.datasets.cases import Case
from medseg.errors import DataError
from medseg.io.files import WHOLE_WITHIN
from medseg.labels.components import component_sizes, connected_components
from medseg.labels.instance_ids import look_like_instances
from medseg.labels.label_sets import unannotated_classes
from medseg.labels.label_table import Labels
from medseg.runtime.formatting import pluralise
from medseg.volumes.volume import Volume

_WHOLE_LABEL, _LARGEST_FRAGMENT = 0.99, 0.001  # fractions of a label's voxels
_FEWEST_VOXELS = 1000  # of a label that is searched for fragments
_MOST_LABELS = 200  # that are searched for fragments


@dataclass(frozen=True)
class LabelValues:
    """The values of a label map.

    Attributes:
        whole: Whole values `(X, Y, Z)`; None if they are not.
        counts: Number of voxels by value, background included.
        findings: Findings about the values.
    """

    whole: NDArray[Any] | None
    counts: Mapping[int, int]
    findings: tuple[Finding, ...]


def label_values(volume: Volume, name: str, case: str) -> LabelValues:
    """Return the values of a label map as whole numbers, with findings if they are not.

    Args:
        volume: Label map as stored, `(1, X, Y, Z)`.
        name: Its file, for findings.
        case: Id of the case.

    Returns:
        The values and findings.
    """
    data = volume.data[0]
    findings: list[Finding] = []
    if data.dtype.kind == "f":
        bad = ~np.isfinite(data)
        if bad.any():
            found = (
                f"NaN or infinity in {pluralise(int(bad.sum()), 'voxel')}, the first at {first_index(bad)}"
            )
            return LabelValues(None, {}, (Finding("LABEL_NOT_FINITE", name, "voxels", found, case=case),))
        rounded = np.round(data)
        off = np.abs(data - rounded)
        if off.max(initial=0) >= WHOLE_WITHIN:
            return LabelValues(None, {}, (_fractions(data, off, name, case),))
        if off.max(initial=0) > 0:
            shown = ", ".join(f"{value:.7g}" for value in np.unique(data[off > 0])[:5])
            findings.append(Finding("LABEL_ROUNDED", name, "values", shown, case=case))
        data = rounded.astype(np.int64)
    values, counts = np.unique(data, return_counts=True)
    table = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    return LabelValues(data, table, tuple(findings))


def _fractions(data: NDArray[Any], off: NDArray[Any], name: str, case: str) -> Finding:
    fractions = off >= WHOLE_WITHIN
    shown = ", ".join(f"{value:.4g}" for value in np.unique(data[fractions])[:5])
    found = f"{shown} in {pluralise(int(fractions.sum()), 'voxel')}, the first at {first_index(fractions)}"
    return Finding("LABEL_NOT_WHOLE", name, "values", found, case=case)


def first_index(mask: NDArray[np.bool_]) -> str:
    """Return the index of the first voxel of a mask in array order as text."""
    flat = int(np.argmax(mask.ravel()))
    return "(" + ", ".join(str(int(i)) for i in np.unravel_index(flat, mask.shape)) + ")"


def value_findings(
    counts: Mapping[int, int], labels: Labels | None, name: str, case: Case
) -> Iterator[Finding]:
    """Yield findings about values that the dataset does not name, or that should not be there.

    Args:
        counts: Voxels by value.
        labels: Labels of the dataset; None if it names none.
        name: The label map, for findings.
        case: Its case.

    Yields:
        Findings.
    """
    if not any(value > 0 for value in counts) and (labels is None or labels.ignore not in counts):
        yield Finding("LABEL_EMPTY", name, "voxels", "0 labelled voxels", case=case.id)
    if labels is None:
        return
    known = {*labels.values, *([] if labels.ignore is None else [labels.ignore])}
    unknown = {value: count for value, count in counts.items() if value not in known}
    listed = ", ".join(map(str, sorted(known)[:12])) + (", ..." if len(known) > 12 else "")
    if unknown and look_like_instances(counts, len(labels.foreground)):
        found = f"the values 1 to {max(counts)} without a gap"
        yield Finding("LABEL_LOOKS_LIKE_INSTANCES", name, "values", found, f"one of {listed}", case=case.id)
    elif unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more values" if len(unknown) > 5 else ""
        yield Finding("LABEL_VALUE_UNKNOWN", name, "values", shown + more, f"one of {listed}", case=case.id)
    yield from _unannotated(counts, labels, name, case)


def _unannotated(counts: Mapping[int, int], labels: Labels, name: str, case: Case) -> Iterator[Finding]:
    try:
        absent = unannotated_classes(labels, case.annotated, f"case {case.id}")
    except DataError as error:
        yield Finding("DATASET_UNREADABLE", name, "annotated labels", str(error), case=case.id)
        return
    for index in absent:
        value = labels.values[index]
        if counts.get(value):
            found = f"{counts[value]} voxels of value {value} ({labels.names[index]})"
            yield Finding("LABEL_NOT_ANNOTATED", name, "values", found, case=case.id)


def fragments(values: NDArray[Any], name: str, case: str) -> Finding | None:
    """Return a finding if a label consists of one large part and tiny fragments.

    Lesions, which have many parts of similar size, are not reported.

    Args:
        values: Label map `(X, Y, Z)` of whole numbers.
        name: Its file, for findings.
        case: Id of the case.

    Returns:
        A finding that lists all labels with fragments, or None.
    """
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        return None
    present = np.unique(values)
    if not 0 < (present > 0).sum() <= _MOST_LABELS or present[-1] > 1 << 16:
        return None
    found = []
    for value, box in enumerate(ndimage.find_objects(values.astype(np.int32)), start=1):
        if box is None:
            continue
        inside = values[box] == value
        count = int(inside.sum())
        if count < _FEWEST_VOXELS:
            continue
        components, number = connected_components(inside)
        sizes = component_sizes(components, number)[-number:]
        small = sizes[sizes <= _LARGEST_FRAGMENT * count]
        if len(small) and sizes.max() >= _WHOLE_LABEL * count:
            least, most = int(small.min()), int(small.max())
            span = pluralise(least, "voxel") if least == most else f"{least} to {most} voxels"
            found.append(f"{len(small)} of value {value} with {span}")
    return Finding("LABEL_FRAGMENTS", name, "parts", "; ".join(found), case=case) if found else None
