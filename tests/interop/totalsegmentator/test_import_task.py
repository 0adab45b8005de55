"""Imported tasks against plain steps: each network on its own, the label maps combined by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import medseg
from medseg.cli.main import main
from medseg.errors import ConfigError, ModelError
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


def test_an_image_is_cropped_around_labels_of_the_coarse_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lungs = (10, 11, 12, 13, 14)
    coarse = write_dataset(tmp_path, 298, 117, size=6, only=lungs)
    fine = write_dataset(tmp_path, 913, 2)
    image = write_ct(tmp_path / "ct.nii.gz", (80, 24, 9), (1.6, 1.7, 4.0), "LPI", zeros=55)
    found = plain_label_map(image, [coarse], tmp_path / "coarse", size=6, order=1)
    inside = np.argwhere((found >= lungs[0]) & (found <= lungs[-1]))
    original = nib.load(image)
    margin = (20 / np.array(original.header.get_zooms())).astype(int)
    start = np.maximum(inside.min(0) - margin, 0)
    stop = np.minimum(inside.max(0) + 1 + margin, original.shape)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    nib.save(original.slicer[box], tmp_path / "cropped.nii.gz")
    expected = np.zeros(original.shape, np.uint8)
    expected[box] = plain_label_map(
        tmp_path / "cropped.nii.gz", [fine], tmp_path / "fine", size=1.5, order=1, overlap=0.5
    )
    assert 0 < expected[box].size < 0.7 * expected.size
    assert {0, 1, 2} == set(np.unique(expected))

    model = str(tmp_path / "model")
    assert main(["import", "totalsegmentator", str(tmp_path), "-o", model]) == 0
    assert "Licence of the weights: Apache-2.0" in capsys.readouterr().out
    options = ["--device", "cpu", "precision=float32"]
    assert main(["predict", model, str(image), "-o", str(tmp_path / "labels"), *options]) == 0
    label_map = medseg.read_labels(tmp_path / "labels" / "ct.nii.gz")
    np.testing.assert_array_equal(label_map.data[0], expected)


def test_the_body_is_cleaned_and_windows_are_not_mirrored(tmp_path: Path) -> None:
    trained = write_dataset(tmp_path, 300, 2, size=6, trainer="nnUNetTrainer", mirror_axes=(0, 1, 2))
    image = write_ct(tmp_path / "ct.nii.gz", (50, 46, 30), (3.0, 3.0, 4.0), "RAS", zeros=2)
    expected = plain_label_map(image, [trained], tmp_path / "plain", size=6, order=1, overlap=0.5).copy()
    for value in (1, 2):
        components, _ = ndimage.label(expected == value, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        limit = sizes.max() - 1 if value == 1 else 50_000 / (3 * 3 * 4)
        expected[(components > 0) & (sizes <= limit)[components]] = 0
    import_totalsegmentator(tmp_path, tmp_path / "model")
    found = medseg.load(tmp_path / "model", device="cpu", precision="float32")(image)
    assert 1 in expected
    np.testing.assert_array_equal(found.data[0], expected)


def test_weights_that_are_not_those_of_one_task_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(ModelError, match="found the data sets none"):
        import_totalsegmentator(tmp_path, out)
    for number in (291, 292, 293, 294, 295, 297):
        (tmp_path / f"Dataset{number}_part").mkdir()
    with pytest.raises(ConfigError, match="2 tasks: total, total_fast, expected one"):
        import_totalsegmentator(tmp_path, out)
    with pytest.raises(ModelError, match=r"found 0 models of data set 291.*Download the weights"):
        import_totalsegmentator(tmp_path, out, task="total")
    with pytest.raises(ConfigError, match="found 'totl', expected one of total"):
        import_totalsegmentator(tmp_path, out, task="totl")
    assert not out.exists()


def test_networks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, 850, 29)
    write_dataset(tmp_path, 851, 20)
    with pytest.raises(ModelError, match="found 49 labels in 2 networks, expected 50"):
        import_totalsegmentator(tmp_path, tmp_path / "model")
    other = tmp_path / "other"
    write_dataset(other, 850, 29)
    write_dataset(other, 851, 21, size=2.0)
    with pytest.raises(ModelError, match="data set 851: spacing: found"):
        import_totalsegmentator(other, tmp_path / "model")
