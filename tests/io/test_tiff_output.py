"""Written TIFF files, read by medseg and by tifffile."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medseg.errors import DataError
from medseg.io.files import read, read_grid, write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def upright(shape: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1), **options: bool) -> Grid:
    return Grid(shape, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), **options)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_voxels_channels_and_spacing_come_back(
    tmp_path: Path, channels: int, depth: int, dtype: type
) -> None:
    data = np.random.default_rng(0).integers(0, 100, (channels, 7, 6, depth)).astype(dtype)
    volume = Volume(data, upright((7, 6, depth), (0.5, 0.25, 4.0)))
    path = tmp_path / "a.tif"
    write(volume, path)
    found = read(path)
    assert np.array_equal(found.data, data)
    assert found.data.dtype == dtype
    np.testing.assert_allclose(found.grid.affine, volume.grid.affine)
    with tifffile.TiffFile(path) as file:
        stored = file.series[0]
        array = stored.asarray().reshape(channels, depth, 6, 7)
        metadata = file.ome_metadata or ""
    assert np.array_equal(array.transpose(0, 3, 2, 1), data)
    sizes = dict(re.findall(r'PhysicalSize([XYZ])="([^"]*)"', metadata))
    assert {axis: float(size) for axis, size in sizes.items()} == {"X": 0.5, "Y": 0.25, "Z": 4.0}


def test_an_image_in_pixels_stays_one(tmp_path: Path) -> None:
    volume = Volume(np.ones((1, 5, 4, 3), np.uint8), upright((5, 4, 3), in_pixels=True))
    write(volume, tmp_path / "a.tif")
    assert read_grid(tmp_path / "a.tif") == volume.grid


def test_a_position_in_space_is_refused(tmp_path: Path) -> None:
    volume = Volume(np.ones((1, 5, 4, 3), np.uint8), Grid.from_spacing((5, 4, 3)))
    with pytest.raises(DataError, match=r"a\.tif: the volume has a position or orientation in space"):
        write(volume, tmp_path / "a.tif")
    assert not (tmp_path / "a.tif").exists()
