"""Files of a case that are missing or hold values that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.data.datasets.cases import Case, ReadingOptions
from medseg.data.datasets.read_case import read_case_first_stage, read_case_instances, repaired_values
from medseg.errors import DataError
from medseg.labels.label_table import Labels
from tests.helpers.nifti_files import save

LABELS = Labels.from_names({"background": 0, "liver": 1})


def test_maps_that_a_case_lacks_are_named(tmp_path: Path) -> None:
    case = Case("a", (tmp_path / "image.nii",))
    with pytest.raises(DataError, match="case a: found no label map of the first stage"):
        read_case_first_stage(case, LABELS)
    with pytest.raises(DataError, match="case a: found no instance map"):
        read_case_instances(case)


@pytest.mark.parametrize("wrong", [-1, 1 << 31])
def test_ids_beyond_the_range_are_refused(tmp_path: Path, wrong: int) -> None:
    image = save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.int16))
    instances = save(tmp_path / "ids.nii", np.full((4, 5, 6), wrong, np.float64))
    with pytest.raises(DataError, match=r"ids.nii: found ids|ids.nii: label values"):
        read_case_instances(Case("a", (image,), instances=instances))


def test_values_far_from_whole_numbers_are_not_rounded() -> None:
    values = np.array([0.95, 2.0, 2.05])
    rounded = ReadingOptions(round_labels=True)
    assert repaired_values(values, rounded, "a.nii").tolist() == [1, 2, 2]
    with pytest.raises(DataError, match=r"a.nii: label values: found 1.5 and others in 1 voxels"):
        repaired_values(np.array([1.5, 2.0]), rounded, "a.nii")
    with pytest.raises(DataError, match=r"found 0.95 and others in 2 voxels"):
        repaired_values(values, ReadingOptions(label_values=((2, 3),)), "a.nii")
