"""Estimates of memory hold for cases of different types and spacings."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.data.datasets.cases import Case
from medseg.data.fingerprint.measure_case import measure_case
from medseg.data.patches.prepare_cases import fill_store
from medseg.data.preprocessing.case_memory import measuring_bytes, preparing_bytes
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.preprocessing.prepare import Preprocessing
from medseg.labels.label_table import Labels
from tests.helpers.memory import memory_taken

LABELS = Labels.from_names({"a": 1, "b": 2})


def case_in(folder: Path, dtype: type, edge: int = 96) -> Case:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 300, (edge, edge, edge)).astype(dtype)
    label = np.zeros(image.shape, np.uint8)
    label[20:60, 10:80, 30:50] = 1
    label[60:80, 10:80, 30:50] = 2
    for name, array in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    return Case("a", (folder / "image.nii.gz",), folder / "label.nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_measuring_takes_no_more_than_estimated(tmp_path, dtype):
    case = case_in(tmp_path, dtype)
    estimate = measuring_bytes(case, 1)
    assert memory_taken(lambda: measure_case(case, LABELS, ["CT"], tmp_path), estimate) <= estimate
    assert estimate < 6e7 + 40 * 96**3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.6])
def test_preparing_takes_no_more_than_estimated(tmp_path, dtype, spacing):
    case = case_in(tmp_path, dtype)
    settings = Preprocessing(spacing=(spacing,) * 3, channels=(Normalization(method="zscore_mask"),))
    estimate, stores = preparing_bytes(case, settings), count()
    taken = memory_taken(lambda: fill_store(tmp_path / f"{next(stores)}", [case], LABELS, settings), estimate)
    assert taken <= estimate < 6e7 + (40 + 20 / spacing**3) * 96**3


def test_a_case_that_cannot_be_read_needs_nothing(tmp_path):
    missing = Case("a", (tmp_path / "missing.nii.gz",), tmp_path / "label.nii.gz")
    assert measuring_bytes(missing, 1) == 0
    assert preparing_bytes(missing, Preprocessing()) == 0
