"""Placing a volume on a grid that it must share."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.data.datasets.cases import Case
from medseg.data.datasets.read_case import read_case_label
from medseg.errors import DataError
from medseg.evaluation.label_maps.metrics import compare_label_maps
from medseg.io.files import write
from medseg.labels.label_table import Labels
from medseg.viz.slice_images import labels_on_grid_of
from medseg.volumes.alignment import align_to_grid
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

GRID = Grid.from_spacing((5, 4, 3), (1, 2, 3))
LABELS = Labels.from_names({"organ": 1})


def label_map(grid: Grid = GRID) -> Volume:
    values = np.arange(np.prod(grid.shape)).reshape(1, *grid.shape) % 2
    return Volume(values.astype(np.uint8), grid, "label")


def shifted(millimetres: float) -> Grid:
    affine = GRID.affine.copy()
    affine[0, 3] += millimetres
    return Grid(GRID.shape, affine)


def align(volume: Volume) -> Volume:
    return align_to_grid(volume, GRID, where="a.nii: label map", grid_of="b.nii", fix="Resample it")


def test_axes_are_permuted_and_rounding_is_removed():
    turned = label_map(shifted(0.004)).reoriented("SPL")
    aligned = align(turned)
    assert aligned.grid == GRID
    np.testing.assert_array_equal(aligned.data, label_map().data)


def test_messages_name_file_grids_distance_and_remedy():
    with pytest.raises(DataError) as displaced:
        align(label_map(shifted(5)))
    assert str(displaced.value) == (
        "a.nii: label map: not on the grid of b.nii: found 5x4x3 voxels of 1x2x3 mm, RAS, first voxel at (5, 0, 0) mm, "
        "expected 5x4x3 voxels of 1x2x3 mm, RAS, first voxel at (0, 0, 0) mm (within 0.05 voxels, corners are up to 5 mm "
        "apart). Resample it."
    )
    with pytest.raises(
        DataError, match=r"found 4x4x3 .*expected 5x4x3 .*\(within 0\.05 voxels\)\. Resample it\.$"
    ):
        align(label_map().cropped((0, 0, 0), (4, 4, 3)))


def test_datasets_and_evaluation_refuse_what_figures_resample(tmp_path):
    image, other = Volume(label_map().data.astype(np.float32), GRID), label_map(shifted(1))
    write(image, tmp_path / "image.nii.gz")
    write(other, tmp_path / "label.nii.gz")
    with pytest.raises(
        DataError, match=r"label\.nii\.gz: label map: not on the grid of .*image\.nii\.gz: found"
    ):
        read_case_label(Case("a", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz"), LABELS)
    with pytest.raises(DataError, match="a: prediction: not on the grid of its reference: found"):
        compare_label_maps(other, label_map(), LABELS, case="a")
    assert labels_on_grid_of(image, other).grid == GRID


@pytest.mark.parametrize(
    "grid",
    [
        shifted(50),
        Grid(GRID.shape, np.diag([-1.0, -1, 1, 1])),
        GRID.reoriented("LPS").cropped((1, 1, 1), GRID.shape),
    ],
)
def test_an_array_is_trusted_only_on_request(grid):
    label = label_map(grid)
    with pytest.raises(DataError, match="not on the grid"):
        align(label)
    trusted = align_to_grid(label, GRID, where="a", grid_of="b", fix="Resample it", trust_array=True)
    assert trusted.grid == GRID
    np.testing.assert_array_equal(trusted.data, label.data)


def test_trust_changes_nothing_for_maps_that_match_or_have_another_shape():
    turned = label_map().reoriented("SPL")
    trusted = align_to_grid(turned, GRID, where="a", grid_of="b", fix="Resample it", trust_array=True)
    np.testing.assert_array_equal(trusted.data, label_map().data)
    with pytest.raises(DataError, match="not on the grid"):
        align_to_grid(
            label_map(Grid.from_spacing((4, 4, 3))),
            GRID,
            where="a",
            grid_of="b",
            fix="Resample it",
            trust_array=True,
        )


@pytest.mark.parametrize("size", [0.5, 0.3])
def test_maps_that_are_voxels_apart_are_refused_whatever_the_voxel_size(tmp_path, size):
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:10, 5:10, 5:10] = 1
    for name, shift in (("reference", 0.0), ("prediction", 5 * size)):
        affine = np.diag([size, size, size, 1.0])
        affine[0, 3] = shift
        image = nib.Nifti1Image(mask, affine)
        image.header.set_xyzt_units("micron")
        nib.save(image, tmp_path / f"{name}.nii.gz")
    with pytest.raises(DataError, match="not on the grid of its reference"):
        medseg.evaluate(tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz")
