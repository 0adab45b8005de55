"""Imported tasks against plain steps: each network on its own, the label maps combined by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.interop.totalsegmentator.import_task import import_totalsegmentator
from tests.helpers.totalsegmentator_models import plain_label_map, write_ct, write_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mr_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The weights of the two parts of total_mr, which have different statistics of intensities."""
    root = tmp_path_factory.mktemp("results")
    return root, [write_dataset(root, 850, 29, mean=40.0), write_dataset(root, 851, 21, mean=10.0)]


@pytest.mark.parametrize(
    ("shape", "spacing", "axcodes", "order"),
    [((30, 26, 22), (0.8, 0.9, 1.3), "LPS", 1), ((13, 20, 12), (2.1, 1.5, 3.0), "SAR", 3)],
    ids=["linear from fine voxels", "cubic from coarse voxels"],
)
def test_the_label_map_is_that_of_each_network_on_its_own(
    mr_parts: tuple[Path, list[Path]],
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    axcodes: str,
    order: int,
) -> None:
    root, parts = mr_parts
    image = write_ct(tmp_path / "ct.nii.gz", shape, spacing, axcodes)
    import_totalsegmentator(root, tmp_path / "model", resampling_order=order)
    predictor = medseg.load(tmp_path / "model", device="cpu", precision="float32")
    found = predictor(image).data[0]
    expected = plain_label_map(image, parts, tmp_path, size=1.5, order=order)
    kinds = np.digitize(np.unique(expected), [1, 30])
    assert np.all(np.bincount(kinds, minlength=3) >= (1, 5, 5)), "background and labels of both parts"
    np.testing.assert_array_equal(found, expected)
    assert found.shape == nib.load(image).shape
