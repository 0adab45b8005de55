"""Copies of label maps: one mask per label, layers of regions, and a table."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.io.companions.label_copies import (
    label_table_path,
    layers_path,
    masks_folder,
    write_label_table,
    write_layers,
    write_masks,
)
from medseg.io.companions.label_names import label_names_of
from medseg.io.files import read_segments, write
from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

LABELS = Labels.from_names({"liver": 1, "left kidney": 2, "a/b": 3, "A:B": 4, "absent": 5})
REGIONS = Labels.from_names({"edema": 1, "core": 2, "enhancing": 4}).with_regions(
    {"whole": (1, 2, 4), "tumour core": (2, 4), "enhancing": (4,)}
)
TURN = nib.eulerangles.euler2mat(0.2, 0.3, -0.4)
AFFINE = nib.affines.from_matvec(TURN @ np.diag([-0.7, 0.9, 2.5]), [12, -7, 30])


def label_map(values: list[int]) -> Volume:
    data = np.random.default_rng(0).choice([0, *values], (1, 6, 5, 4)).astype(np.uint8)
    return Volume(data, Grid((6, 5, 4), AFFINE), "label")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".seg.nrrd"])
def test_each_label_has_a_mask_on_the_grid_of_the_label_map(tmp_path: Path, suffix: str) -> None:
    volume = label_map([1, 2, 3, 4])
    path = tmp_path / f"case{suffix}"
    write_masks(volume, path, LABELS)
    ending = ".mha" if suffix == ".mha" else ".nii.gz"
    names = {"liver": 1, "left kidney": 2, "a_b": 3, "A_B_4": 4, "absent": 5}
    folder = masks_folder(path)
    assert folder == tmp_path / "case_labels"
    assert {file.name for file in folder.iterdir()} == {f"{name}{ending}" for name in names}
    if ending == ".nii.gz":
        for name, value in names.items():
            image = nib.load(folder / f"{name}.nii.gz")
            np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
            assert np.array_equal(np.asarray(image.dataobj), volume.data[0] == value)
        found = label_names_of(folder / "a_b.nii.gz")
        assert found is not None
        assert found.names == ("background", "a/b")


def test_masks_of_an_earlier_label_map_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    write_masks(label_map([1]), path, Labels.from_names({"old": 1}))
    write_masks(label_map([1]), path, Labels.from_names({"new": 1}))
    assert [file.name for file in masks_folder(path).iterdir()] == ["new.nii.gz"]


def test_a_mask_has_a_name_that_every_system_allows(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    write_masks(label_map([1]), path, Labels.from_names({"Aux": 1}))
    assert [file.name for file in masks_folder(path).iterdir()] == ["Aux_.nii.gz"]


def test_regions_overlap_in_masks_and_layers(tmp_path: Path) -> None:
    values = [region.output_value for region in REGIONS.regions]
    assert values == [1, 2, 4]
    volume, path = label_map(values), tmp_path / "case.nii.gz"
    write_masks(volume, path, REGIONS)
    write_layers(volume, path, REGIONS)
    expected = {"whole": [1, 2, 4], "tumour core": [2, 4], "enhancing": [4]}
    segments = read_segments(layers_path(path))
    assert segments.volume.channels == 3
    for name, inside in expected.items():
        mask = np.isin(volume.data[0], inside)
        stored = nib.load(masks_folder(path) / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(stored.dataobj), mask)
        assert np.array_equal(segments.label_map(order=[name]).data[0] > 0, mask)
    np.testing.assert_allclose(segments.volume.grid.affine, AFFINE, atol=1e-9)


def test_labels_that_do_not_overlap_are_one_layer(tmp_path: Path) -> None:
    volume, path = label_map([1, 2]), tmp_path / "case.nii.gz"
    write_layers(volume, path, LABELS)
    assert np.array_equal(read_segments(layers_path(path)).label_map().data, volume.data)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS, {"liver": 1, "left kidney": 2, "a/b": 3, "A:B": 4, "absent": 5}),
        (REGIONS, {"whole": 1, "tumour core": 2, "enhancing": 4}),
    ],
)
def test_the_table_names_the_values(tmp_path: Path, labels: Labels, names: dict[str, int]) -> None:
    path = tmp_path / "case.mha"
    write(label_map([1]), path)
    assert label_names_of(path) is None
    write_label_table(path, labels)
    assert label_table_path(path).name == "case_labels.tsv"
    found = label_names_of(path)
    assert found is not None
    assert {one.name: one.value for one in found.foreground} == names
