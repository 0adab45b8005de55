from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.errors import DataError
from medseg.io.files import write
from medseg.volumes.grid import (
    Grid,
    checked_spacing,
    relative_affine,
    reorientation_like,
    separable_maps,
    shape_at_spacing,
    world_positions,
)
from medseg.volumes.orientation import checked_axcodes, reorient_array, reorientation
from medseg.volumes.volume import Volume
from tests.helpers.volumes import ORIENTATIONS, voxel_indices, voxel_positions

SHAPE = (5, 4, 3)


def lengths(low: float, high: float) -> st.SearchStrategy[tuple[float, float, float]]:
    return st.tuples(*[st.floats(low, high)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any orientation, oblique, sheared, millimetres to metres away."""
    turn = Rotation.from_rotvec(np.radians(draw(lengths(-50, 50)))).as_matrix()
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = draw(lengths(-0.4, 0.4))
    axes = turn @ shear @ np.diag(draw(lengths(0.2, 6)))
    order, signs = draw(st.permutations([0, 1, 2])), draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = axes[:, order] * signs
    affine[:3, 3] = draw(lengths(-2000, 2000))
    return Grid(draw(st.tuples(*[st.integers(1, 6)] * 3)), affine)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("start", ["RAS", "PIL", "SLA"])
def test_reorienting_moves_no_voxel(start: str, codes: str) -> None:
    grid = Grid.from_spacing(SHAPE, (1, 2, 3)).reoriented(start)
    other = grid.reoriented(codes)
    assert other.axcodes == codes
    where = np.moveaxis(reorient_array(np.moveaxis(voxel_positions(grid), -1, 0), start, codes), 0, -1)
    assert np.array_equal(where, voxel_positions(other))
    assert other.reoriented(start) == grid


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_reorienting_agrees_with_nibabel(codes: str) -> None:
    data = np.arange(60, dtype=np.int16).reshape(SHAPE)
    affine = np.array([[0.1, 2, 0.2, 5], [1, -0.2, 0.1, -7], [0.1, 0.3, -3, 9], [0, 0, 0, 1]])
    image = nib.Nifti1Image(data, affine)
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    expected = image.as_reoriented(transform)
    grid = Grid(SHAPE, affine)
    np.testing.assert_allclose(grid.reoriented(codes).affine, expected.affine, atol=1e-12)
    assert np.array_equal(reorient_array(data, grid.axcodes, codes), np.asarray(expected.dataobj))


@settings(deadline=None, max_examples=60)
@given(grids(), st.sampled_from(ORIENTATIONS))
def test_any_grid_reorients_and_comes_back(grid: Grid, codes: str) -> None:
    other = grid.reoriented(codes)
    where = np.moveaxis(reorient_array(np.moveaxis(voxel_positions(grid), -1, 0), grid.axcodes, codes), 0, -1)
    np.testing.assert_allclose(voxel_positions(other), where, atol=1e-9)
    # At exactly 45 degrees the codes of `other` are a matter of rounding; its way back is not.
    back = other.permuted(*reorientation(codes, grid.axcodes))
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-9)
    assert back.shape == grid.shape
    if other.axcodes == codes:
        assert other.reoriented(grid.axcodes) == back
    assert sorted(other.spacing) == pytest.approx(sorted(grid.spacing))
    assert other.voxel_volume == pytest.approx(grid.voxel_volume)
    assert other.shear == pytest.approx(grid.shear)


@settings(deadline=None, max_examples=30)
@given(grids(), st.tuples(*[st.integers(-4, 4)] * 3), st.tuples(*[st.integers(1, 6)] * 3))
def test_boxes_keep_positions(grid: Grid, start: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    box = grid.cropped(start, shape)
    assert box.shape == shape
    np.testing.assert_allclose(
        voxel_positions(box), world_positions(grid.affine, voxel_indices(box) + start), atol=1e-9
    )
    np.testing.assert_allclose(box.cropped([-s for s in start], grid.shape).affine, grid.affine, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(grids(), st.tuples(*[st.integers(1, 40)] * 3))
def test_with_shape_keeps_the_field_of_view(grid: Grid, shape: tuple[int, int, int]) -> None:
    other = grid.with_shape(shape)
    assert other.shape == shape
    np.testing.assert_allclose(other.corners, grid.corners, atol=1e-9)
    np.testing.assert_allclose(np.multiply(other.spacing, shape), np.multiply(grid.spacing, grid.shape))


@settings(deadline=None, max_examples=30)
@given(grids(), lengths(0.3, 8))
def test_with_spacing_is_exact_about_the_same_centre(grid: Grid, spacing: tuple[float, ...]) -> None:
    other = grid.with_spacing(spacing)
    assert other.spacing == pytest.approx(spacing, rel=1e-12)
    assert other.shape == shape_at_spacing(grid.shape, grid.spacing, spacing)
    np.testing.assert_allclose(other.corners.mean(axis=0), grid.corners.mean(axis=0), atol=1e-9)
    overhang = np.abs(np.multiply(other.shape, spacing) - np.multiply(grid.shape, grid.spacing))
    assert all(o <= s / 2 + 1e-9 or n == 1 for o, s, n in zip(overhang, spacing, other.shape, strict=True))


def test_corners_are_the_borders_of_the_box() -> None:
    corners = Grid.from_spacing((2, 3, 4), (1, 2, 3)).corners
    assert corners.min(axis=0).tolist() == [-0.5, -1, -1.5]
    assert corners.max(axis=0).tolist() == [1.5, 5, 10.5]


@settings(deadline=None, max_examples=30)
@given(grids(), lengths(-1, 1), st.floats(0, 0.05))
def test_grids_compare_by_their_corners(grid: Grid, direction: tuple[float, ...], distance: float) -> None:
    assume(np.linalg.norm(direction) > 0.1)
    affine = grid.affine.copy()
    affine[:3, 3] += distance * np.array(direction) / np.linalg.norm(direction)
    other = Grid(grid.shape, affine)
    assert grid.distance(other) == pytest.approx(distance, abs=1e-9)
    assert other.distance(grid) == grid.distance(other)
    assert grid.distance_in_voxels(other) == other.distance_in_voxels(grid)
    in_voxels = np.linalg.inv(grid.affine[:3, :3]) @ (other.affine - grid.affine)[:3, 3]
    assert grid.distance_in_voxels(other) == pytest.approx(np.abs(in_voxels).max(), abs=1e-9)
    assert grid.matches(other) == other.matches(grid) == (grid.distance_in_voxels(other) <= 0.05)


@pytest.mark.parametrize("size", [1e-4, 0.3e-3, 0.5, 5, 40])
@pytest.mark.parametrize(("voxels", "matches"), [(0.04, True), (0.06, False), (5, False)])
def test_the_tolerance_is_a_fraction_of_a_voxel(size: float, voxels: float, matches: bool) -> None:
    grid = Grid.from_spacing((20, 20, 20), (size, size, 3 * size))
    assert grid.matches(grid.cropped((voxels, 0, 0), grid.shape)) == matches
    assert grid.matches(grid.cropped((0, 0, -voxels), grid.shape)) == matches
    larger = Grid(grid.shape, np.diag([1 + voxels / 20, 1, 1, 1]) @ grid.affine)
    assert grid.matches(larger) == matches


def test_a_small_rotation_counts_by_its_effect_at_the_far_end() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0, 1e-4]).as_matrix()
    small, large = Grid.from_spacing((9, 9, 9)), Grid.from_spacing((512, 512, 100))
    assert small.matches(Grid(small.shape, turn))
    assert not large.matches(Grid(large.shape, turn))


def test_one_slice_differs_by_its_thickness_and_shapes_by_size() -> None:
    thin = Grid.from_spacing((4, 4, 1), (1, 1, 1))
    assert not thin.matches(Grid.from_spacing((4, 4, 1), (1, 1, 5)))
    assert thin.distance(Grid.from_spacing((4, 4, 2))) == np.inf


def test_equality_is_exact_and_hashable() -> None:
    grid = Grid.from_spacing(SHAPE)
    assert grid == Grid(SHAPE, np.eye(4))
    assert grid != Grid(SHAPE, np.diag([1, 1, 1 + 1e-12, 1]))
    assert grid != "grid"
    negative_zero = np.where(np.eye(4) == 0, -0.0, np.eye(4))
    assert grid == Grid(SHAPE, negative_zero)
    assert hash(grid) == hash(Grid(SHAPE, negative_zero))
    assert repr(Grid.from_spacing(SHAPE, (0.5, 1, 2))) == "Grid(shape=(5, 4, 3), spacing=(0.5, 1, 2) mm, RAS)"


def test_grids_cannot_be_changed() -> None:
    affine = np.eye(4)
    grid = Grid(SHAPE, affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1, 1, 0, 1]),
        np.diag([1, np.nan, 1, 1]),
        np.diag([1, np.inf, 1, 1]),
        np.eye(3),
        np.diag([1, 1, 1, 2]),
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 1, 0, 0], [1, 1 + 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
)
def test_impossible_affines_are_refused(affine: Any) -> None:
    with pytest.raises(
        DataError, match=r"affine: found .*, expected a finite, invertible 4x4 matrix\. Correct"
    ):
        Grid(SHAPE, affine)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_voxels_may_be_nanometres_or_kilometres(scale: float) -> None:
    assert Grid.from_spacing(SHAPE, (scale, 2 * scale, scale)).spacing == pytest.approx(
        (scale, 2 * scale, scale)
    )


@pytest.mark.parametrize("shape", [(1, 2), (0, 1, 1), (1, -1, 1), (1, 2, 3, 4)])
def test_impossible_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(DataError, match=r"grid shape: found .*, expected three positive sizes"):
        Grid(shape, np.eye(4))
    with pytest.raises(DataError, match=r"grid shape: found .*, expected three positive sizes"):
        Grid.from_spacing(SHAPE).with_shape(shape)


@pytest.mark.parametrize("spacing", [2, 2.0, np.float32(2), np.int64(2), (2, 2, 2), np.array([2.0, 2, 2])])
def test_spacing_may_be_one_number_or_three(spacing: Any) -> None:
    assert checked_spacing(spacing) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (1, 2), (1, 2, 3, 4), (1, 0, 1)])
def test_impossible_spacings_are_refused(spacing: Any) -> None:
    with pytest.raises(DataError, match=r"spacing: found .*, expected one or three positive numbers in mm"):
        checked_spacing(spacing)


@pytest.mark.parametrize("codes", ["RA", "RAR", "RAX", "RLS", "", "RASS"])
def test_impossible_orientations_are_refused(codes: str) -> None:
    with pytest.raises(
        DataError, match=r"orientation: found '.*', expected one letter each of R/L, A/P and S/I"
    ):
        Grid.from_spacing(SHAPE).reoriented(codes)


def test_orientations_may_be_in_lower_case() -> None:
    assert checked_axcodes("lps") == "LPS"
    assert Grid.from_spacing(SHAPE).reoriented("lps").axcodes == "LPS"


@pytest.mark.parametrize(
    ("old", "new", "shape"),
    [
        ((1, 1, 5), (1, 1, 1), (5, 4, 15)),
        ((1, 1, 1), (0.5, 2, 100), (10, 2, 1)),
        ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    ],
)
def test_shape_at_spacing(old: Any, new: Any, shape: Any) -> None:
    assert shape_at_spacing(SHAPE, old, new) == shape


def test_reorientation_and_back() -> None:
    assert reorientation("RAS", "RAS") == ((0, 1, 2), (False, False, False))
    assert reorientation("RAS", "SRP") == ((2, 0, 1), (False, False, True))
    assert reorientation("SRP", "RAS") == ((1, 2, 0), (False, True, False))


@settings(deadline=None, max_examples=60)
@given(grids(), st.sampled_from(ORIENTATIONS), st.tuples(*[st.integers(1, 9)] * 3))
def test_a_reoriented_grid_is_always_recognised(grid: Grid, codes: str, shape: tuple[int, int, int]) -> None:
    """Whatever the angle, a grid and its reoriented, resized self are separable after `axes_onto`."""
    target = grid.reoriented(codes).with_shape(shape)
    aligned = grid.permuted(*reorientation_like(grid, target))
    found = separable_maps(aligned, target)
    assert found is not None
    assert [m.n_out for m in found] == list(shape)
    for axis_map in found:
        assert axis_map.scale == pytest.approx(axis_map.n_in / axis_map.n_out, abs=1e-6)
        assert axis_map.offset == pytest.approx(0.5 * axis_map.scale - 0.5, abs=1e-6)


def test_shared_voxels_are_found_free_of_noise() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 0.7]).as_matrix() @ np.diag([0.7, 0.7, 2.5])
    turn[:3, 3] = [-123.4, 56.7, 890.1]
    grid = Grid((512, 512, 90), turn)
    found = separable_maps(grid, grid.cropped((3, 4, 5), (20, 20, 20)))
    assert found is not None
    assert all(m.is_selection for m in found)
    assert [m.offset for m in found] == [3, 4, 5]
    assert all(m.is_identity for m in separable_maps(grid, grid) or ())


def test_fractions_are_not_rounded() -> None:
    grid = Grid.from_spacing((1024, 4, 4))
    found = separable_maps(grid, grid.with_shape((768, 4, 4)))
    assert found is not None
    assert abs(found[0].scale - 4 / 3) < 1e-14


def test_rotated_grids_are_not_separable() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0, 0.1]).as_matrix()
    grid = Grid.from_spacing((20, 20, 20))
    assert separable_maps(grid, Grid((20, 20, 20), turn)) is None
    np.testing.assert_allclose(relative_affine(grid, Grid((20, 20, 20), turn)), turn)


def test_directions_rounded_in_a_header_are_still_separable() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 0.7]).as_matrix()
    rounded = np.round(turn, 6)
    assert separable_maps(Grid((256, 256, 100), turn), Grid((256, 256, 100), rounded)) is not None


@pytest.mark.parametrize(("cosine", "sheared"), [(0.0, False), (9e-5, False), (1.1e-4, True), (0.3, True)])
def test_one_tolerance_decides_whether_a_grid_is_sheared(cosine: float, sheared: bool, tmp_path):
    """Metrics, file formats and messages ask the grid and do not compare angles themselves."""
    affine = np.eye(4)
    affine[:3, 1] = cosine, np.sqrt(1 - cosine**2), 0
    grid = Grid((4, 4, 4), affine)
    assert grid.shear == pytest.approx(cosine, abs=1e-12)
    assert grid.is_sheared == sheared
    volume = Volume(np.zeros((1, 4, 4, 4), np.uint8), grid, "label")
    if sheared:
        with pytest.raises(DataError, match="sheared"):
            write(volume, tmp_path / "a.nrrd")
    else:
        write(volume, tmp_path / "a.nrrd")
    write(volume, tmp_path / "a.nii.gz")
    assert (nib.load(tmp_path / "a.nii.gz").get_qform(coded=True)[1] == 0) == sheared


def test_grids_in_pixels_match_by_their_shape() -> None:
    upright = np.diag([-1.0, -1.0, 1.0, 1.0])
    pixels = Grid((8, 6, 1), upright, in_pixels=True)
    measured = Grid((8, 6, 1), upright @ np.diag([0.25, 0.5, 3, 1]))
    assert pixels.matches(measured)
    assert measured.matches(pixels)
    assert pixels.reoriented("SPL").in_pixels
    assert pixels.reoriented("SPL").matches(measured.reoriented("SPL"))
    assert not Grid(pixels.shape, upright).matches(measured)
    assert not pixels.matches(measured.cropped((0, 1, 0), measured.shape))
    assert not pixels.matches(measured.cropped((0, 0, 0), (8, 5, 1)))
    assert not pixels.matches(measured.reoriented("RAS"))
