from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medseg.errors import DataError
from medseg.volumes.grid import Grid, world_positions
from medseg.volumes.resampling import AxisMap, axis_orders, resample
from medseg.volumes.volume import Volume
from tests.helpers.volumes import ORIENTATIONS, voxel_positions

CENTRE = np.array([3.0, -5.0, 8.0])  # of the blob, world mm


def positions(grid: Grid) -> NDArray[np.float64]:
    """World position of every voxel, `(3, X, Y, Z)`."""
    return np.asarray(np.moveaxis(voxel_positions(grid), -1, 0))


def atlas(grid: Grid) -> Volume:
    """A volume whose three channels hold each voxel's own world position."""
    return Volume(np.ascontiguousarray(positions(grid)), grid)


def blob(grid: Grid) -> NDArray[np.float64]:
    squared = ((positions(grid) - CENTRE[:, None, None, None]) ** 2).sum(axis=0)
    return np.asarray(np.exp(-squared / (2 * 6.0**2)))


def blob_image(grid: Grid) -> Volume:
    return Volume(blob(grid)[None].astype(np.float32), grid)


def blob_label(grid: Grid) -> Volume:
    return Volume((blob(grid) > 0.4)[None].astype(np.uint8) * 7, grid, "label")


def centre_of_mass(volume: Volume) -> NDArray[np.float64]:
    weight = volume.data[0].astype(np.float64)
    return np.asarray((positions(volume.grid) * weight).sum(axis=(1, 2, 3)) / weight.sum())


def oblique(
    shape: Any = (28, 26, 22), spacing: Any = (1.9, 2.1, 2.6), degrees: float = 20, shear: float = 0.0
) -> Grid:
    """A box about the blob, turned about a skew axis, its third axis leaning along the first."""
    lean = np.eye(3)
    lean[0, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix()
        @ lean
        @ np.diag(spacing)
    )
    affine[:3, 3] = CENTRE + np.array([1, -2, 1.5]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


GRIDS = {
    "straight": oblique(degrees=0),
    "oblique": oblique(),
    "sheared": oblique(shear=0.3),
    "thick": oblique(shape=(28, 26, 14), spacing=(2.0, 2.0, 4.5), degrees=10),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_reorienting_carries_every_voxel(name: str, codes: str) -> None:
    volume = atlas(GRIDS[name].cropped((0, 0, 0), (4, 3, 5)))
    other = volume.reoriented(codes)
    np.testing.assert_allclose(other.data, positions(other.grid), atol=1e-12)
    assert other.data.flags.c_contiguous
    back = other.reoriented(volume.grid.axcodes)
    assert np.array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.grid.affine, volume.grid.affine, atol=1e-12)


def test_reorienting_to_itself_keeps_the_header(make_volume: Any) -> None:
    volume = Volume(make_volume().data, make_volume().grid, header={"kept": 1})
    assert volume.reoriented("RAS") is volume
    assert volume.reoriented("LAS").header == {}


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_cropping_and_padding_carry_every_voxel(codes: str) -> None:
    volume = atlas(GRIDS["sheared"].reoriented(codes).cropped((0, 0, 0), (6, 5, 4)))
    crop = volume.cropped((1, 2, 0), (4, 2, 3))
    np.testing.assert_allclose(crop.data, positions(crop.grid), atol=1e-12)
    pad = crop.padded((1, 2, 0), (1, 1, 1), value=-9)
    np.testing.assert_allclose(pad.grid.affine, volume.grid.affine, atol=1e-12)
    inside = (slice(None), slice(1, 5), slice(2, 4), slice(0, 3))
    assert np.array_equal(pad.data[inside], crop.data)
    assert (pad.data == -9).sum() == pad.data.size - crop.data.size


@pytest.mark.parametrize(
    ("start", "shape"), [((-1, 0, 0), (2, 2, 2)), ((0, 0, 3), (2, 2, 3)), ((0, 0, 0), (0, 1, 1))]
)
def test_crops_stay_inside(make_volume: Any, start: Any, shape: Any) -> None:
    with pytest.raises(DataError, match=r"expected (it inside \(7, 6, 5\)|three positive sizes)"):
        make_volume().cropped(start, shape)


def test_padding_is_not_negative(make_volume: Any) -> None:
    with pytest.raises(DataError, match=r"padding: found .*Use cropped"):
        make_volume().padded((0, -1, 0), (0, 0, 0))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_images_keep_their_place_in_the_world(name: str, codes: str) -> None:
    """An image of a known function of world position is that function on every other grid."""
    source = blob_image(GRIDS[name].reoriented(codes))
    for result in (
        source.resampled(1.7),
        source.resampled(shape=[n + 5 for n in source.grid.shape]),
        source.resampled(like=GRIDS[name].with_spacing((1.8, 2.3, 2.2))),
    ):
        assert np.abs(result.data[0] - blob(result.grid)).max() < (0.15 if name == "thick" else 0.03)
        assert np.abs(centre_of_mass(result) - CENTRE).max() < 0.1


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_labels_keep_their_place_in_the_world(name: str, codes: str) -> None:
    source = blob_label(GRIDS[name].reoriented(codes))
    size = (source.data > 0).sum() * source.grid.voxel_volume
    for result in (source.resampled(1.7), source.resampled(like=GRIDS[name].with_spacing((1.8, 2.3, 2.2)))):
        assert result.is_label
        assert result.data.dtype == np.uint8
        assert np.unique(result.data).tolist() == [0, 7]
        assert np.abs(centre_of_mass(result) - centre_of_mass(source)).max() < 0.4
        assert (result.data > 0).sum() * result.grid.voxel_volume == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
@pytest.mark.parametrize("name", ["straight", "oblique", "sheared"])
def test_rotated_grids(name: str, codes: str) -> None:
    """Onto a grid at another angle, by cubic splines for images and by shares for labels."""
    target = oblique(shape=(30, 31, 29), spacing=(1.5, 1.6, 1.7), degrees=-25)
    image = blob_image(GRIDS[name].reoriented(codes)).resampled(like=target)
    inside = image.data[0] != 0
    assert inside.mean() > 0.5
    assert np.abs(image.data[0] - blob(target))[inside].max() < 0.05
    label = blob_label(GRIDS[name].reoriented(codes)).resampled(like=target)
    assert np.abs(centre_of_mass(label) - CENTRE).max() < 0.3
    assert ((label.data[0] == 7) != (blob(target) > 0.4)).mean() < 0.02


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(sorted(GRIDS)), st.sampled_from(ORIENTATIONS), st.tuples(*[st.floats(1.5, 4)] * 3))
def test_linear_interpolation_of_positions_is_exact(
    name: str, codes: str, spacing: tuple[float, ...]
) -> None:
    volume = atlas(GRIDS[name].reoriented(codes))
    target = volume.grid.with_spacing(spacing)
    result = volume.resampled(spacing, order=1)
    assert result.grid == target
    assert result.spacing == pytest.approx(spacing)
    index = world_positions(np.linalg.inv(volume.grid.affine), np.moveaxis(positions(target), 0, -1))
    inside = ((index >= 0) & (index <= np.array(volume.grid.shape) - 1)).all(axis=-1)
    exact = 0 not in axis_orders(1, volume.spacing, target.spacing)
    assert inside.any()
    if exact:
        np.testing.assert_allclose(result.data[:, inside], positions(target)[:, inside], atol=1e-6)


def test_shape_is_nnunets_resizing(make_volume: Any) -> None:
    volume = make_volume((7, 6, 4), spacing=(1, 1, 5), channels=2)
    shape = (9, 5, 3)
    result = volume.resampled(shape=shape)
    maps = [AxisMap.resize(o, n) for o, n in zip((7, 6, 4), shape, strict=True)]
    expected = resample(volume.data, maps, (3, 3, 0))
    np.testing.assert_allclose(result.data, expected, atol=1e-3)
    np.testing.assert_allclose(result.grid.corners, volume.grid.corners)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_its_own_grid_gives_it_back_unchanged(make_volume: Any, kind: Any) -> None:
    volume = make_volume(kind=kind, dtype=np.int16)
    affine = volume.grid.affine.copy()
    affine[0, 3] += 1e-3  # less than grids are told apart by
    near = Grid(volume.grid.shape, affine)
    for result in (
        volume.resampled(like=volume),
        volume.resampled(like=near),
        volume.resampled(volume.spacing),
    ):
        assert result.data.dtype == np.int16
        assert np.array_equal(result.data, volume.data)
    assert volume.resampled(like=near).grid == near
    back = volume.reoriented("SLP").resampled(like=volume)
    assert np.array_equal(back.data, volume.data)


@pytest.mark.parametrize("codes", ["RAS", "LIP"])
@pytest.mark.parametrize("degrees", [0, 15])
def test_far_outside_is_zero_and_near_outside_repeats(codes: str, degrees: float) -> None:
    source = oblique(shape=(9, 9, 9), spacing=(2, 2, 2), degrees=0).reoriented(codes)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians([0, degrees, 0])).as_matrix()
    centre = source.corners.mean(axis=0)
    turn[:3, 3] = centre - turn[:3, :3] @ [15, 15, 15]
    target = Grid((31, 31, 31), turn)
    index = world_positions(np.linalg.inv(source.affine), np.moveaxis(positions(target), 0, -1))
    beyond = np.maximum(-0.5 - index, index - 8.5).max(axis=-1)  # source voxels outside the box
    for kind in ("image", "label"):
        full = Volume(np.full((1, 9, 9, 9), 5, np.int16), source, kind)  # type: ignore[arg-type]
        data = full.resampled(like=target).data[0]
        assert data[beyond > 0.501].max() == 0
        np.testing.assert_allclose(data[beyond < 0.499], 5, rtol=1e-5)


def test_three_labels_meeting_leave_no_hole() -> None:
    """Where no label holds half of a voxel the largest share wins, also between turned grids."""
    x, y, _ = np.indices((16, 16, 3)) - 7.5
    sectors = (np.degrees(np.arctan2(y, x)) % 360 // 120).astype(np.int16) + 2  # no background
    source = Volume(sectors[None], Grid.from_spacing((16, 16, 3)), "label")
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0, 0.3]).as_matrix() * 0.5
    turn[:3, 3] = [7.5, 7.5, 0.5] - turn[:3, :3] @ [5, 5, 0]
    assert np.unique(source.resampled(like=Grid((11, 11, 2), turn)).data).tolist() == [2, 3, 4]


def test_cubic_images_do_not_overshoot_on_rotated_grids() -> None:
    data = np.zeros((1, 12, 12, 12), np.float32)
    data[:, 6:] = 100
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0, 0.2, 0.3]).as_matrix()
    result = Volume(data, Grid.from_spacing((12, 12, 12))).resampled(like=Grid((12, 12, 12), turn))
    assert result.data.min() >= 0
    assert result.data.max() <= 100


@pytest.mark.parametrize("shape", [(1, 6, 5), (6, 1, 5), (6, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_one_slice_volumes(make_volume: Any, shape: Any, kind: Any) -> None:
    volume = make_volume(shape, spacing=(1, 2, 3), kind=kind)
    result = volume.resampled(0.9)
    assert result.spacing == pytest.approx((0.9, 0.9, 0.9))
    assert volume.resampled(shape=(4, 4, 4)).grid.shape == (4, 4, 4)
    far = volume.reoriented("SPL").resampled(100)
    assert far.grid.shape == (1, 1, 1)
    assert volume.data.min() <= far.data.item() <= volume.data.max()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"spacing": 1, "shape": (1, 1, 1)},
        {"spacing": 0},
        {"shape": (0, 1, 1)},
        {"spacing": 1, "order": 2},
    ],
)
def test_resampled_without_target_raises(make_volume: Any, arguments: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        make_volume().resampled(**arguments)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.zeros((2, 3, 4)), "image"),
        (np.zeros((1, 2, 3, 5)), "image"),
        (np.zeros((0, 2, 3, 4)), "image"),
        (np.zeros((1, 2, 3, 4)), "label"),
        (np.zeros((2, 2, 3, 4), int), "label"),
    ],
)
def test_array_grid_and_kind_must_fit(data: Any, kind: Any) -> None:
    with pytest.raises(DataError, match=r"found .*, expected"):
        Volume(data, Grid.from_spacing((2, 3, 4)), kind)


def test_properties_and_other_data(make_volume: Any) -> None:
    volume = make_volume(channels=2)
    assert (volume.channels, volume.is_label, volume.spacing) == (2, False, (1.0, 1.25, 2.0))
    other = volume.with_data(np.ones((1, 7, 6, 5), np.uint8), kind="label")
    assert other.is_label
    assert other.with_data(other.data + 1).is_label
    assert other.grid is volume.grid


def test_repr(make_volume: Any) -> None:
    image = Volume(
        np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4), Grid.from_spacing((2, 3, 4), (0.5, 1, 2))
    )
    assert repr(image) == "Volume(2x3x4, 0.5x1x2 mm, RAS, int16, range 0 to 23)"
    assert "2 channels" in repr(make_volume(channels=2))
    assert "range nan to nan" in repr(image.with_data(np.full((1, 2, 3, 4), np.nan, np.float32)))
    label = image.with_data((image.data % 3).astype(np.uint8), kind="label")
    assert repr(label) == "Volume(2x3x4, 0.5x1x2 mm, RAS, uint8, labels 0, 1, 2)"


def test_real_orientations_are_one_brain(shared_data: Path) -> None:
    from medseg.io.files import read

    files = sorted((shared_data / "odd_nifti").glob("orient_*.nii.gz"))
    assert len(files) == 16
    reference = read(shared_data / "odd_nifti" / "orient_RAS.nii.gz")
    for file in files:
        volume = read(file)
        assert volume.grid.axcodes == file.name[7:10]
        turned = volume.reoriented("RAS")
        assert np.array_equal(turned.data, reference.data)
        assert turned.grid.matches(reference.grid)
        assert np.array_equal(volume.resampled(like=reference).data, reference.data)


def test_equal_shares_on_a_rotated_grid_do_not_depend_on_the_values_of_the_labels() -> None:
    """The nearest sample decides, as on a straight grid, and not the smaller value."""
    affine = np.eye(4)
    affine[:2, :2] = [[0.5, -0.5], [0.5, 0.5]]  # many samples are half-way between two voxels
    affine[:2, 3] = 4, 0
    labels = np.random.default_rng(0).integers(1, 3, (1, 9, 9, 2)).astype(np.uint8)
    grid = Grid.from_spacing((9, 9, 2))
    one, other = (
        Volume(values, grid, "label").resampled(like=Grid((9, 9, 2), affine)).data
        for values in (labels, 3 - labels)
    )
    inside = one > 0
    assert inside.sum() > 50
    np.testing.assert_array_equal(other[inside], 3 - one[inside])
