"""FreeSurfer's volumes, compared with nibabel's own reader."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.errors import DataError
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

SHAPE = (5, 4, 3)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 1.1) @ np.diag([0.8, 1.5, 3.0]), [-40.0, 12.5, 77.0]
)


def affines() -> list[Any]:
    """Return the affines of every orientation, and an oblique one."""
    found = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[axes, range(3)] = np.array(signs) * (0.8, 1.5, 3.0)
            found.append(nib.affines.from_matvec(matrix, [10.0, -20.0, 30.0]))
    return [*found, OBLIQUE]


@pytest.mark.parametrize("suffix", ["mgz", "mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_voxels_and_geometry_are_those_that_nibabel_reads(tmp_path: Path, suffix: str, dtype: Any) -> None:
    data = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    for affine in affines():
        nib.save(nib.MGHImage(data, affine), path)
        volume = medseg.read(path)
        assert volume.data.dtype == dtype
        assert np.array_equal(volume.data[0], data)
        np.testing.assert_allclose(volume.grid.affine, affine, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("suffix", ["mgz", "mgh"])
def test_what_is_written_is_read_by_nibabel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for affine in affines():
        data = np.random.default_rng(1).integers(0, 60, (1, *SHAPE)).astype(np.uint16)
        medseg.write(Volume(data, Grid(SHAPE, affine), "label"), path)
        content = path.read_bytes()
        image = nib.MGHImage.from_bytes(gzip.decompress(content) if suffix == "mgz" else content)
        assert image.shape == SHAPE
        assert np.array_equal(np.asanyarray(image.dataobj), data[0])
        np.testing.assert_allclose(image.affine, affine, rtol=1e-5, atol=1e-4)
        labels = medseg.read_labels(path)
        assert np.array_equal(labels.data, data)
        assert labels.grid.matches(Grid(SHAPE, affine))


def test_frames_are_channels(tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(size=(2, *SHAPE)).astype(np.float32)
    medseg.write(Volume(data, Grid(SHAPE, OBLIQUE)), tmp_path / "a.mgz")
    assert nib.load(tmp_path / "a.mgz").shape == (*SHAPE, 2)
    assert np.array_equal(medseg.read(tmp_path / "a.mgz").data, data)


def packed(folder: Path) -> Path:
    nib.save(nib.MGHImage(np.arange(60, dtype=np.int32).reshape(SHAPE), OBLIQUE), folder / "a.mgz")
    return folder / "a.mgz"


def plain(folder: Path) -> Path:
    nib.save(nib.MGHImage(np.arange(60, dtype=np.int32).reshape(SHAPE), OBLIQUE), folder / "a.mgh")
    return folder / "a.mgh"


def changed(path: Path, at: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)
    return path


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: cut(packed(folder), 100), "Copy or convert the file again"),
        (lambda folder: changed(packed(folder), 60, b"\0\0\0\0"), "not readable|cut off|found"),
        (lambda folder: cut(plain(folder), 400), "expected more|cut off"),
        (lambda folder: cut(plain(folder), 50), "no header of version 1"),
        (lambda folder: changed(plain(folder), 0, b"\0\0\0\2"), "no header of version 1"),
        (lambda folder: changed(plain(folder), 4, b"\x7f\xff\xff\xff"), "expected more"),
        (lambda folder: changed(plain(folder), 4, b"\xff\xff\xff\xff"), "expected at least 1"),
        (lambda folder: changed(plain(folder), 20, b"\0\0\0\x09"), "type: found 9"),
        (lambda folder: changed(plain(folder), 28, b"\0\0"), "left and right are unknown"),
        (lambda folder: changed(plain(folder), 42, b"\0" * 12), "three independent axes"),
        (lambda folder: changed(plain(folder), 30, b"\x7f\xc0\0\0"), "three independent axes"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        medseg.read(spoil(tmp_path))


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.4
    with pytest.raises(DataError, match="sheared"):
        medseg.write(Volume(np.zeros((1, *SHAPE), np.uint8), Grid(SHAPE, sheared)), tmp_path / "a.mgz")
    large = np.full((1, *SHAPE), 2**40, np.int64)
    with pytest.raises(DataError, match="fit int32"):
        medseg.write(Volume(large, Grid(SHAPE, OBLIQUE)), tmp_path / "a.mgz")
    assert not list(tmp_path.iterdir())
