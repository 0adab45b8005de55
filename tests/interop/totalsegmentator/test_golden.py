"""Golden label maps of TotalSegmentator's own code for the same weights and image; see ``benchmarks/totalsegmentator.py golden``."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.cli.main import main
from medseg.interop.totalsegmentator.import_task import import_totalsegmentator
from medseg.io.nifti.nifti_label_names import nifti_label_names
from tests.helpers.totalsegmentator_models import (
    GOLDEN,
    GOLDEN_TASKS,
    LIVER,
    label_map_hash,
    write_golden_models,
)

pytestmark = pytest.mark.slow
IMAGE = GOLDEN / "ct.nii.gz"
RECORD = json.loads((GOLDEN / "golden.json").read_text())
ENOUGH = 0.999  # nnU-Net adds up logits in float16, in which some are equal


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights for which TotalSegmentator made the golden label maps."""
    root = tmp_path_factory.mktemp("golden")
    assert write_golden_models(root) == RECORD["weights"]
    return root


def equal_share(found: Path, golden: Path) -> float:
    """The share of voxels with equal labels; shapes, affines and the labels that occur must be equal."""
    a, b = nib.load(found), nib.load(golden)
    assert a.shape == b.shape
    np.testing.assert_array_equal(a.affine, b.affine)
    voxels, expected = np.asanyarray(a.dataobj), np.asanyarray(b.dataobj)
    assert set(np.unique(voxels)) == set(np.unique(expected))
    return float((voxels == expected).mean())


@pytest.mark.parametrize("task", GOLDEN_TASKS)
def test_label_map_and_names_are_those_of_totalsegmentator(results: Path, tmp_path: Path, task: str) -> None:
    model, golden = tmp_path / "model", GOLDEN / f"{task}.nii.gz"
    import_totalsegmentator(results, model, task=task)
    options = ["--device", "cpu", "precision=float32"]
    assert main(["predict", str(model), str(IMAGE), "-o", str(tmp_path), *options]) == 0
    assert equal_share(tmp_path / IMAGE.name, golden) >= ENOUGH
    names, expected = (nifti_label_names(path) for path in (tmp_path / IMAGE.name, golden))
    assert {value: name for value, (name, _) in names.items() if value} == {
        value: name for value, (name, _) in expected.items() if value
    }
    coarse = GOLDEN / f"{task}_coarse.nii.gz"
    if coarse.is_file():
        found = medseg.load(model / "first_stage", device="cpu", precision="float32")(IMAGE)
        medseg.write(found, tmp_path / "coarse.nii.gz")
        assert equal_share(tmp_path / "coarse.nii.gz", coarse) >= ENOUGH


def test_golden_files_are_those_that_were_recorded() -> None:
    hashes = {path.name: label_map_hash(path) for path in GOLDEN.glob("*.nii.gz") if path != IMAGE}
    assert hashes == RECORD["label_maps"]
    assert set(hashes) == {"total.nii.gz", "liver_vessels.nii.gz", "liver_vessels_coarse.nii.gz"}


def test_golden_label_maps_say_something() -> None:
    total, vessels, coarse = (
        np.asanyarray(nib.load(GOLDEN / f"{name}.nii.gz").dataobj)
        for name in ("total", "liver_vessels", "liver_vessels_coarse")
    )
    parts = np.digitize(np.unique(total), [1, 25, 51, 69, 92])  # background, then the five networks
    assert np.bincount(parts, minlength=6).tolist() == [1, 3, 3, 3, 3, 3]
    assert set(np.unique(vessels)) == {0, 1, 2}
    assert set(np.unique(coarse)) == {0, LIVER}
    assert 0.2 < (total > 0).mean() < 0.8
