from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import DataError
from medseg.io.files import read, read_grid, write
from medseg.io.nifti.nifti_files import _GEOMETRY_FIELDS
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.nifti_files import OBLIQUE, patched, save

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4"]
SHEARED = OBLIQUE @ np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
FLIPPED = OBLIQUE @ np.diag([-1, 1, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_voxels_round_trip_exactly(make_volume: Any, tmp_path: Path, dtype: str, suffix: str) -> None:
    volume = make_volume(dtype=dtype, affine=OBLIQUE, channels=2)
    write(volume, tmp_path / f"a{suffix}")
    again = read(tmp_path / f"a{suffix}")
    assert np.array_equal(again.data, volume.data)
    assert again.data.dtype == volume.data.dtype
    assert again.data.flags.c_contiguous
    assert again.grid.matches(volume.grid)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(bool, "u1"), ("f2", "f4"), (">i2", "i2"), (">f4", "f4"), ("f8", "f4")]
)
def test_unsupported_types_are_converted_to_the_nearest(
    make_volume: Any, tmp_path: Path, dtype: Any, stored: str
) -> None:
    volume = make_volume(dtype=dtype)
    write(volume, tmp_path / "a.nii")
    again = read(tmp_path / "a.nii").data
    assert again.dtype == np.dtype(stored)
    assert np.array_equal(again, volume.data.astype(stored))


@pytest.mark.parametrize(
    ("low", "high", "stored"),
    [
        (0, 255, "u1"),
        (-1, 127, "i1"),
        (-1, 200, "i2"),
        (0, 65535, "u2"),
        (-1, 2**31, "i8"),
        (0, 2**40, "u8"),
        (-(2**63), 2**63 - 1, "i8"),
    ],
)
def test_int64_is_written_as_the_smallest_sufficient_type(
    tmp_path: Path, low: int, high: int, stored: str
) -> None:
    data = np.array([low, high], dtype=np.int64).reshape(1, 2, 1, 1)
    write(Volume(data, Grid.from_spacing((2, 1, 1))), tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.dtype(stored)
    assert np.array_equal(read(tmp_path / "a.nii.gz").data, data)


def test_complex_and_text_voxels_raise(tmp_path: Path) -> None:
    for dtype in (np.complex64, "U1"):
        volume = Volume(np.zeros((1, 2, 2, 2), dtype=dtype), Grid.from_spacing((2, 2, 2)))
        for name in ("a.nii", "a.nrrd"):
            with pytest.raises(DataError, match=rf"{name}: cannot write voxels of .*, expected real numbers"):
                write(volume, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED, SHEARED], ids=["oblique", "left-handed", "sheared"])
@pytest.mark.parametrize("codes", [(0, 2), (1, 0), (1, 1), (2, 4), (3, 1)])
@pytest.mark.parametrize("change", ["none", "labels", "channels"])
def test_header_geometry_round_trips_bit_for_bit(
    tmp_path: Path, affine: Any, codes: tuple[int, int], change: str, suffix: str
) -> None:
    if affine is SHEARED and codes[0]:
        affine = OBLIQUE  # nibabel has no quaternion for shear
    qform, sform = codes
    source = save(tmp_path / f"a{suffix}", np.zeros((4, 5, 6), np.int16), affine, qform=qform, sform=sform)
    volume = read(source)
    if change == "labels":
        volume = volume.with_data(np.ones((1, 4, 5, 6), np.uint8), kind="label")
    elif change == "channels":
        volume = volume.with_data(np.ones((3, 4, 5, 6), np.float32))
    write(volume, tmp_path / f"b{suffix}")
    old, new = nib.load(source), nib.load(tmp_path / f"b{suffix}")
    assert np.array_equal(old.affine, new.affine)
    assert np.array_equal(volume.grid.affine, old.affine)
    for name in (
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
    ):
        assert np.array_equal(old.header[name], new.header[name]), name
    assert np.array_equal(old.header["pixdim"][:4], new.header["pixdim"][:4])


@pytest.mark.parametrize(("units", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (3 + 8, 0.001), (7, 1)])
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1)])
def test_units_are_converted_to_mm_and_back(
    tmp_path: Path, units: int, mm: float, codes: tuple[int, int], suffix: str
) -> None:
    affine = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ OBLIQUE
    source = save(
        tmp_path / f"a{suffix}", np.zeros((4, 5, 6), np.int16), affine,
        qform=codes[0], sform=codes[1], xyzt_units=units,
    )  # fmt: skip
    volume = read(source)
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5), rel=1e-5)
    assert read_grid(source) == volume.grid
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, rtol=1e-4, atol=1e-3)
    write(volume.with_data(np.ones((1, 4, 5, 6), np.uint8), kind="label"), tmp_path / f"b{suffix}")
    assert read_grid(tmp_path / f"b{suffix}") == volume.grid
    old, new = nib.load(source).header, nib.load(tmp_path / f"b{suffix}").header
    for name in (*_GEOMETRY_FIELDS, "pixdim"):
        assert old[name].tobytes() == new[name].tobytes(), name
    assert int(new["xyzt_units"]) == units & 7
    resampled = volume.resampled((1, 1, 2))
    write(resampled, tmp_path / f"c{suffix}")
    assert read_grid(tmp_path / f"c{suffix}").matches(resampled.grid)
    assert int(nib.load(tmp_path / f"c{suffix}").header["xyzt_units"]) == 2
    assert resampled.grid.shape == pytest.approx((4 * 0.7, 5 * 0.8, 6 * 2.5 / 2), abs=0.6)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(-3000, 3000)] * 3),
    st.sampled_from([-1, 1]),
)
def test_computed_grids_round_trip_in_single_precision(
    tmp_path_factory: pytest.TempPathFactory, spacing: Any, angles: Any, origin: Any, side: int
) -> None:
    axes = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing) * [side, 1, 1]
    volume = Volume(np.zeros((1, 3, 2, 4), np.uint8), Grid((3, 2, 4), nib.affines.from_matvec(axes, origin)))
    path = tmp_path_factory.mktemp("nifti") / "a.nii"
    write(volume, path)
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, volume.grid.affine, rtol=1e-6, atol=1e-6)
    if int(image.header["qform_code"]):  # left out where single precision cannot state the rotation
        assert Grid((3, 2, 4), image.get_qform()).matches(volume.grid)
    np.testing.assert_allclose(image.header.get_zooms(), volume.spacing, rtol=1e-5)
    write(read(path), path.with_name("b.nii"))
    assert np.array_equal(nib.load(path.with_name("b.nii")).affine, image.affine)


def test_a_rotation_that_a_quaternion_states_too_coarsely_is_written_without_it(tmp_path: Path) -> None:
    axes = nib.eulerangles.euler2mat(1.81640625, -1.8046875, -1.1059228470038232) @ np.diag([1.0, 6.0, 0.125])
    grid = Grid((3, 2, 4), nib.affines.from_matvec(axes))
    write(Volume(np.zeros((1, 3, 2, 4), np.uint8), grid), tmp_path / "a.nii")
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
    assert read(tmp_path / "a.nii").grid.matches(grid)


def test_sheared_grid_is_written_without_quaternion(tmp_path: Path) -> None:
    write(Volume(np.zeros((1, 3, 2, 4), np.uint8), Grid((3, 2, 4), SHEARED)), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 1)
    np.testing.assert_allclose(image.affine, SHEARED, rtol=1e-6)


def test_changed_grid_replaces_the_header_geometry(make_volume: Any, tmp_path: Path) -> None:
    volume = read(save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16)))
    moved = Volume(volume.data, Grid(volume.grid.shape, FLIPPED), header=volume.header)
    for other in (moved, volume.cropped((1, 1, 1), (2, 2, 2)), volume.reoriented("SPL"), volume.resampled(2)):
        write(other, tmp_path / "b.nii")
        assert read_grid(tmp_path / "b.nii").matches(other.grid)


def test_written_bytes_are_reproducible_and_without_text(
    make_volume: Any, tmp_path: Path, suffix: str
) -> None:
    source = save(
        tmp_path / f"patient_name{suffix}",
        np.zeros((4, 5, 6), np.int16),
        descrip=b"secret",
        db_name=b"secret",
    )
    volume = read(source)
    write(volume, tmp_path / f"b{suffix}")
    write(volume, tmp_path / f"c{suffix}")
    content = (tmp_path / f"b{suffix}").read_bytes()
    assert content == (tmp_path / f"c{suffix}").read_bytes()
    raw = gzip.decompress(content) if suffix.endswith("gz") else content
    assert b"secret" not in raw
    assert b"patient_name" not in content
    assert raw[148:154] == b"medseg"


@pytest.mark.parametrize(
    "name", ["CT.NII.GZ", "CT.NII", "na me ü 体.nii.gz", "-x;'\".nii.gz", "a.b.c.nii.gz"]
)
def test_unusual_file_names_round_trip(make_volume: Any, tmp_path: Path, name: str) -> None:
    volume = make_volume(dtype="i2")
    write(volume, tmp_path / "fo lder ü" / name)
    content = (tmp_path / "fo lder ü" / name).read_bytes()
    assert (content[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")
    assert np.array_equal(read(tmp_path / "fo lder ü" / name).data, volume.data)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 6), (1, 7, 6, 1)),
        ((7, 6, 1), (1, 7, 6, 1)),
        ((7, 6, 5, 1), (1, 7, 6, 5)),
        ((7, 6, 5, 4), (4, 7, 6, 5)),
        ((7, 6, 5, 1, 3), (3, 7, 6, 5)),
        ((7, 6, 1, 2, 3), (6, 7, 6, 1)),
    ],
)
def test_axes_beyond_three_become_channels(tmp_path: Path, shape: Any, expected: Any, suffix: str) -> None:
    data = np.random.default_rng(0).integers(-999, 999, shape).astype(np.int16)
    volume = read(save(tmp_path / f"a{suffix}", data))
    assert volume.data.shape == expected
    assert np.array_equal(volume.data[0].ravel(), data.reshape(*shape[:3], -1)[..., 0].ravel())
    assert volume.data.ravel("A").sum() == data.sum()
    if len(shape) == 4:
        assert np.array_equal(volume.data, np.moveaxis(data, -1, 0))


@pytest.mark.parametrize("fields", [["R", "G", "B"], ["R", "G", "B", "A"]])
def test_colours_become_channels(tmp_path: Path, fields: list[str], suffix: str) -> None:
    data = np.zeros((4, 3, 2), dtype=[(name, "u1") for name in fields])
    for value, name in enumerate(fields, start=1):
        data[name] = value * np.arange(24).reshape(4, 3, 2) % 256
    volume = read(save(tmp_path / f"a{suffix}", data))
    assert volume.data.shape == (len(fields), 4, 3, 2)
    assert volume.data.dtype == np.uint8
    assert all(np.array_equal(channel, data[name]) for channel, name in zip(volume.data, fields, strict=True))


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scaling", [None, (0.5, 0.0), (1.0, -1024.0), (7.11, -1024.0)])
def test_byte_orders_and_scaling_agree_with_nibabel(
    tmp_path: Path, dtype: str, order: str, scaling: Any, suffix: str
) -> None:
    data = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(data, OBLIQUE, header)
    path = tmp_path / f"a{suffix}"
    if scaling:
        image.header.set_slope_inter(*scaling)
    nib.save(image, path)
    expected = np.asarray(nib.load(path).dataobj)
    volume = read(path)
    assert volume.data.dtype == (np.float32 if scaling or dtype[0] == "f" else np.dtype(dtype))
    assert np.array_equal(volume.data[0], expected.astype(volume.data.dtype))


def test_scaled_volumes_are_read_slab_by_slab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("medseg.io.nifti.nifti_files._CHUNK_BYTES", 200)
    data = np.random.default_rng(0).integers(0, 1000, (5, 6, 7, 3)).astype(np.int16)
    save(tmp_path / f"a{suffix}", data)
    patched(tmp_path / f"a{suffix}", 112, np.array([0.25, -3], "<f4").tobytes())
    volume = read(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.data, np.moveaxis(data, -1, 0) * np.float32(0.25) - 3)


def test_float64_overflow_becomes_infinity_without_a_warning(tmp_path: Path) -> None:
    data = np.array([1e300, np.nan, -np.inf, 1.0]).reshape(2, 2, 1)
    volume = read(save(tmp_path / "a.nii", data))
    assert np.array_equal(
        volume.data.ravel(), np.array([np.inf, np.nan, -np.inf, 1], np.float32), equal_nan=True
    )


def test_nifti_2_and_header_image_pairs_are_read(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti2Image(data, OBLIQUE), tmp_path / name)
        assert np.array_equal(read(tmp_path / name).data[0], data)
        assert read(tmp_path / name).grid == read_grid(tmp_path / name)
        write(read(tmp_path / name), tmp_path / "b.nii")
        assert np.array_equal(nib.load(tmp_path / "b.nii").affine, OBLIQUE)  # in double precision
    nib.save(nib.Nifti1Pair(data, OBLIQUE), tmp_path / "p.img")
    for name in ("p.img", "p.hdr"):
        assert np.array_equal(read(tmp_path / name).data[0], data)
    (tmp_path / "p.img").unlink()
    with pytest.raises(DataError, match=r"p\.hdr: the voxels are in another file, p\.img, which is missing"):
        read(tmp_path / "p.hdr")


def test_long_axis_is_written_as_nifti_2(tmp_path: Path, suffix: str) -> None:
    data = np.arange(40000, dtype=np.int32).reshape(1, 40000, 1, 1)
    volume = Volume(data, Grid.from_spacing((40000, 1, 1)))
    write(volume, tmp_path / f"a{suffix}")
    assert np.array_equal(read(tmp_path / f"a{suffix}").data, data)
    assert read_grid(tmp_path / f"a{suffix}").matches(volume.grid)


def test_grid_is_read_without_voxels(tmp_path: Path, suffix: str) -> None:
    path = save(
        tmp_path / f"a{suffix}", np.random.default_rng(0).integers(0, 99, (20, 22, 24, 2)).astype(np.int16)
    )
    whole = read(path)
    assert whole.grid == read_grid(path)
    path.write_bytes(path.read_bytes()[: 3000 if suffix == ".nii" else 5000])
    assert whole.grid == read_grid(path)


def test_reading_needs_little_more_memory_than_the_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 1 << 18
    monkeypatch.setattr("medseg.io.nifti.nifti_files._CHUNK_BYTES", chunk)
    data = np.zeros((128, 128, 100), np.int16)
    for scaled in (False, True):
        path = save(tmp_path / "a.nii.gz", data)
        if scaled:
            patched(path, 112, np.array([2, 0], "<f4").tobytes())
        read_grid(path)
        tracemalloc.start()
        volume = read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert volume.data.nbytes == data.nbytes * (2 if scaled else 1)
        assert volume.data.nbytes <= peak < volume.data.nbytes + (12 if scaled else 5) * chunk


ODD = {
    "anatomical.nii": ((1, 33, 41, 25), "int16"),
    "ct_perfusion.nii.gz": ((3, 256, 286, 15), "uint8"),
    "example_nifti2.nii.gz": ((2, 32, 20, 12), "int16"),
    "functional.nii": ((20, 17, 21, 3), "float32"),
    "resampled_anat_moved.nii": ((1, 17, 21, 3), "float32"),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_files_agree_with_nibabel(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "odd_nifti" / name
    volume, image = read(path), nib.load(path)
    assert (volume.data.shape, volume.data.dtype.name) == ODD[name]
    assert np.array_equal(volume.grid.affine, image.affine)
    if name != "ct_perfusion.nii.gz":
        expected = np.asarray(image.dataobj).astype(volume.data.dtype)
        expected = np.moveaxis(expected, 3, 0) if expected.ndim == 4 else expected[None]
        assert np.array_equal(volume.data, expected, equal_nan=True)
    write(volume, tmp_path / "copy.nii")
    again = nib.load(tmp_path / "copy.nii")
    assert np.array_equal(again.affine, image.affine)
    if image.header["qform_code"]:
        assert np.array_equal(again.get_qform(), image.get_qform())
    assert np.array_equal(read(tmp_path / "copy.nii").data, volume.data, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*from a right angle:medseg.errors.DataWarning")
def test_an_odd_file_whose_qform_cannot_hold_its_shear(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "odd_nifti" / "shear.nii.gz"
    volume = read(path)
    assert np.array_equal(volume.grid.affine, nib.load(path).affine)
    assert volume.data.shape == (1, 306, 422, 54)
    write(volume, tmp_path / "copy.nii")
    again = nib.load(tmp_path / "copy.nii")
    assert (int(again.header["qform_code"]), int(again.header["sform_code"])) == (0, 1)
    np.testing.assert_allclose(again.affine, volume.grid.affine)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minimal.nii.gz", "qform_code and sform_code: found 0 and 0"),
        ("complex.nii.gz", "found complex64, expected real numbers"),
        ("nifti1.hdr", r"another file, nifti1\.img"),
        ("nifti2.hdr", r"another file, nifti2\.img"),
    ],
)
def test_unusual_files_without_an_image_raise(shared_data: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        read(shared_data / "odd_nifti" / name)
