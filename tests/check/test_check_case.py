"""Checks of single cases whose files are damaged or do not fit their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.check.cases.check_case import CheckedCase, check_case
from medseg.data.datasets.cases import Case, ReadingOptions
from tests.helpers.nifti_files import save

SHAPE = (6, 5, 4)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def checked(
    folder: Path, image: Any = IMAGE, *, reading: ReadingOptions | None = None, **maps: Any
) -> CheckedCase:
    """Check a case with these arrays; None stands for a file that is missing."""
    save(folder / "image.nii", image)
    for name, array in maps.items():
        if array is not None:
            save(folder / f"{name}.nii", array)
    paths = {name: folder / f"{name}.nii" for name in maps}
    case = Case("a", (folder / "image.nii",), **paths, **({} if reading is None else {"reading": reading}))
    return check_case(case, None, ("CT",), folder)


def codes(case: CheckedCase) -> list[str]:
    return [one.code for one in case.findings]


def test_an_image_without_a_finite_voxel_has_no_range(tmp_path: Path) -> None:
    case = checked(tmp_path, np.full(SHAPE, np.nan, np.float32))
    assert codes(case) == ["IMAGE_NOT_FINITE"]
    assert (case.channels[0].low, case.channels[0].high) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("instances", "code"),
    [
        (None, "LABEL_MISSING"),
        (np.full(SHAPE, 0.5, np.float32), "LABEL_NOT_WHOLE"),
        (np.full(SHAPE, -3, np.int16), "INSTANCES_INVALID"),
        (np.zeros(SHAPE, np.uint8), "LABEL_EMPTY"),
    ],
)
def test_instance_maps_are_checked(tmp_path: Path, instances: Any, code: str) -> None:
    assert code in codes(checked(tmp_path, instances=instances))


def test_values_that_a_repair_does_not_fit_are_reported(tmp_path: Path) -> None:
    label = np.full(SHAPE, 0.5, np.float32)
    case = checked(tmp_path, label=label, reading=ReadingOptions(round_labels=True))
    assert "LABEL_NOT_WHOLE" in codes(case)
    assert case.label_counts is None
