"""Proposals of repairs for the findings of a dataset: what can be done when files are read, without changing one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from medseg.check.cases.check_case import CheckedCase
from medseg.check.datasets.check_dataset import CheckedDataset
from medseg.check.finding import Finding
from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.read_case import ROUNDED_WITHIN
from medseg.data.datasets.repairs import Repair, Repairs, files_state
from medseg.errors import MedsegError
from medseg.io.files import read_grid, read_stored_labels
from medseg.io.nifti.orientation_sources import ORIENTATION_SOURCES, OrientationFrom
from medseg.volumes.grid import reorientation_like

_HEADER = ("ORIENTATION_UNKNOWN", "QFORM_SFORM_AXES_DIFFER", "QFORM_SFORM_DIFFER", "PIXDIM_DIFFERS")
# These may vanish with another description of the geometry.
_FOLLOWS_HEADER = ("GRID_LABEL_DIFFERS", "GRID_CHANNEL_DIFFERS")


def propose_repairs(checked: CheckedDataset) -> Repairs:
    """Return repairs for findings that can be repaired when files are read.

    If a header contradicts itself, the other files of the case decide: the description of the geometry that puts the
    image on the grid of its label map or of another channel is used. A case with an error that has no repair is left out,
    as are all but the first of several cases with the same voxels. There are no repairs for warnings other than those
    about contradictory headers.

    Args:
        checked: The result of a check.

    Returns:
        The repairs, each with its reason and the state of its files. They are proposals; read them before you use them.
    """
    dataset = checked.dataset
    if dataset is None:
        return Repairs()
    of_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in checked.findings:
        if finding.case and (finding.severity == "error" or finding.code in _HEADER):
            of_case[finding.case].append(finding)
    cases = {case.id: case for case in checked.cases}
    repairs = {
        name: _of_case(dataset.case(name), cases[name], found, dataset) for name, found in of_case.items()
    }
    for finding in checked.findings:
        if finding.code == "IMAGE_DUPLICATE":
            for name in finding.cases[1:]:
                repairs[name] = [_left_out(dataset.case(name), [finding], dataset)]
    return Repairs(repairs=tuple(one for name in sorted(repairs) for one in repairs[name]))


def _of_case(case: Case, checked: CheckedCase, findings: list[Finding], dataset: Dataset) -> list[Repair]:
    """Return the repairs of one case: one per finding, or only to leave the case out if an error has no repair."""
    repairs: dict[str, Repair] = {}
    for finding in findings:
        repair = _of_finding(finding, case, checked, dataset)
        if repair is not None:
            repairs[repair.action] = repair
        elif finding.severity == "error" and not _follows(finding, findings, repairs):
            return [_left_out(case, [one for one in findings if one.severity == "error"], dataset)]
    return list(repairs.values())


def _follows(finding: Finding, findings: Iterable[Finding], repairs: dict[str, Repair]) -> bool:
    """Return whether a difference of grids may vanish with the description of the geometry that a repair chooses."""
    return finding.code in _FOLLOWS_HEADER and "read_orientation_from" in repairs


def _of_finding(finding: Finding, case: Case, checked: CheckedCase, dataset: Dataset) -> Repair | None:
    """Return the repair of one finding, or None if there is none."""
    files = files_state(case.files, dataset.root)
    reason = str(finding)
    if finding.code in _HEADER:
        source = _agreeing_source(case)
        if source is None:
            return None
        agreed = f"{reason} With the {source}, image and label map or channels share one grid."
        return Repair(
            case=case.id, action="read_orientation_from", reason=agreed, files=files, orientation_from=source
        )
    if finding.code == "GRID_LABEL_DIFFERS" and _same_shape(case):
        return Repair(case=case.id, action="take_image_grid", reason=reason, files=files)
    if finding.code == "LABEL_NOT_WHOLE" and _nearly_whole(case):
        return Repair(case=case.id, action="round_values", reason=reason, files=files)
    if finding.code == "LABEL_VALUE_UNKNOWN":
        values = _mapping(checked, dataset)
        if values:
            return Repair(case=case.id, action="map_values", reason=reason, files=files, values=values)
    return None


def _left_out(case: Case, findings: list[Finding], dataset: Dataset) -> Repair:
    reason = " ".join(str(finding) for finding in findings)
    return Repair(
        case=case.id, action="leave_out", reason=reason, files=files_state(case.files, dataset.root)
    )


def _agreeing_source(case: Case) -> OrientationFrom | None:
    """Return the description of the geometry (sform, qform or pixdim) by which all files of a case share one grid.

    None if the case has a single file, or if no description does.
    """
    if len(case.files) < 2:
        return None
    for source in ORIENTATION_SOURCES:
        try:
            first, *others = (read_grid(path, orientation_from=source) for path in case.files)
        except MedsegError:
            continue
        if all(one.permuted(*reorientation_like(one, first)).matches(first) for one in others):
            return source
    return None


def _same_shape(case: Case) -> bool:
    if case.label is None:
        return False
    source = case.reading.orientation_from
    try:
        label, image = (read_grid(path, orientation_from=source) for path in (case.label, case.images[0]))
    except MedsegError:
        return False
    return label.shape == image.shape


def _nearly_whole(case: Case) -> bool:
    if case.label is None:
        return False
    data = read_stored_labels(
        case.label, orientation_from=case.reading.orientation_from, like=case.images[0]
    ).data
    return bool((np.abs(data - np.round(data)) < ROUNDED_WITHIN).all())


def _mapping(checked: CheckedCase, dataset: Dataset) -> dict[int, int]:
    """Return the only mapping that makes sense: one unknown value, and one label that this case lacks but others have."""
    labels, counts = dataset.labels, checked.label_counts
    if labels is None or counts is None:
        return {}
    unknown = [value for value in counts if value not in labels.values and value != labels.ignore]
    absent = [label.value for label in labels.foreground if label.value not in counts]
    return {unknown[0]: absent[0]} if len(unknown) == len(absent) == 1 else {}
