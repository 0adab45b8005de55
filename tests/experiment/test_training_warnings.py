"""Warnings about persons, which are not guessed where a dataset declares its subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data.datasets.cases import Case, Dataset
from medseg.data.datasets.splits import Split
from medseg.experiment.training_warnings import _persons

IMAGES, LABEL = (Path("image.nii"),), Path("label.nii")


@pytest.mark.parametrize("declared", [False, True])
def test_visits_of_one_person_on_both_sides_are_named(declared: bool) -> None:
    names = [f"patient{person}_visit{visit}" for person in range(1, 5) for visit in (1, 2)]
    cases = tuple(Case(name, IMAGES, label=LABEL, subject=name[:8] if declared else "") for name in names)
    split = Split(train=tuple(names[1:]), validation=(names[0],))
    found = list(_persons(Dataset("set", Path("set"), cases, ("CT",)), split))
    assert bool(found) != declared
