"""Pictures: read as one slice, written as label maps."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataError
from medseg.io.files import read, read_labels, write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def test_natural_image_is_one_slice(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    sitk.WriteImage(sitk.GetImageFromArray(rows), str(tmp_path / "a.png"))
    assert np.array_equal(read_labels(tmp_path / "a.png").data, rows.T[None, :, :, None])
    colours = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "c.png"))
    volume = read(tmp_path / "c.png")
    assert np.array_equal(volume.data[..., 0], colours.transpose(2, 1, 0))
    assert volume.spacing == (1, 1, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_channel_is_dropped_only_if_opaque(tmp_path: Path, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    colours = np.random.default_rng(0).integers(0, top, (3, 4, 4)).astype(dtype)
    for name, alpha, suffix, expected in (
        ("opaque", top, ".png", 3),
        ("clear", 0, ".png", 4),
        ("volume", top, ".nrrd", 4),
    ):
        colours[..., 3] = alpha
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / f"{name}{suffix}"))
        volume = read(tmp_path / f"{name}{suffix}")
        assert np.array_equal(volume.data[..., 0], colours.transpose(2, 1, 0)[:expected])
    colours[0, 0, 3] = top - 1
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "nearly.png"))
    assert read(tmp_path / "nearly.png").channels == 4


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_label_map_is_read_as_indices(tmp_path, suffix):
    from PIL import Image

    rows = np.array([[0, 1, 2, 2], [7, 1, 0, 3]], np.uint8)
    picture = Image.fromarray(rows)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / f"a{suffix}")
    assert picture.mode == "P"
    labels = read_labels(tmp_path / f"a{suffix}")
    assert np.array_equal(labels.data, rows.T[None, :, :, None])
    assert labels.grid.shape == (4, 2, 1)


def test_grey_with_an_alpha_channel(tmp_path):
    from PIL import Image

    rows = np.random.default_rng(0).integers(0, 255, (5, 4, 2), dtype=np.uint8)
    for name, alpha, channels in (("clear", rows[..., 1], 2), ("opaque", 255, 1)):
        rows[..., 1] = alpha
        Image.fromarray(rows).save(tmp_path / f"{name}.png")
        volume = read(tmp_path / f"{name}.png")
        assert np.array_equal(volume.data[..., 0], rows.transpose(2, 1, 0)[:channels])
    (tmp_path / "half.png").write_bytes((tmp_path / "clear.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"half\.png: not readable"):
        read(tmp_path / "half.png")


def png(colours: int, rows: bytes, *, text: bool) -> bytes:
    """A PNG of 3 x 2 pixels of 8 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        end = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + end

    head = bytes([0, 0, 0, 3, 0, 0, 0, 2, 8, colours, 0, 0, 0])
    pixels = chunk(b"IDAT", zlib.compress(rows))
    long_text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + long_text * text + pixels + chunk(b"IEND", b"")


def test_pillow_reads_only_what_simpleitk_cannot(tmp_path, monkeypatch):
    """It refuses large pictures, and long texts in them, which SimpleITK reads."""
    from PIL import Image

    (tmp_path / "a.png").write_bytes(png(0, b"\0\1\2\3" * 2, text=True))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    for reader in (read, read_labels):
        assert reader(tmp_path / "a.png").data[0, :, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("limit", "told"), [(2, "exceeds limit of 4 pixels"), (1000, "too large")])
def test_errors_of_pillow_name_the_file(tmp_path, monkeypatch, limit, told):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "a.png").write_bytes(png(4, b"\0\1\2\3\4\5\6" * 2, text=limit > 2))
    with pytest.raises(
        DataError, match=rf"a\.png: not readable \(.*{told}.*Copy the file again or convert it"
    ):
        read(tmp_path / "a.png")


@pytest.mark.parametrize(("top", "dtype"), [(7, np.uint8), (300, np.uint16)])
def test_label_map_of_a_natural_image_is_written_as_png(top, dtype, tmp_path):
    """On the grid of the picture, with the size of its pixels."""
    picture = sitk.GetImageFromArray(np.zeros((3, 5), np.uint8))
    picture.SetSpacing((0.5, 0.25))
    sitk.WriteImage(picture, str(tmp_path / "a.png"))
    like = read(tmp_path / "a.png")
    labels = like.with_data((np.arange(15).reshape(1, 5, 3, 1) * top // 14).astype(np.int32), kind="label")
    write(labels, tmp_path / "b.png")
    back = read_labels(tmp_path / "b.png")
    assert back.data.dtype == dtype
    np.testing.assert_array_equal(back.data, labels.data)
    assert np.allclose(back.grid.affine, like.grid.affine)
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


@pytest.mark.parametrize(
    ("data", "affine", "found"),
    [
        (np.zeros((1, 3, 4, 2), np.uint8), np.diag([-1, -1, 1, 1]), "2 slices"),
        (np.zeros((2, 3, 4, 1), np.uint8), np.diag([-1, -1, 1, 1]), "2 channels"),
        (np.full((1, 3, 4, 1), 1 << 16), np.diag([-1, -1, 1, 1]), "to 65536"),
        (np.full((1, 3, 4, 1), -1), np.diag([-1, -1, 1, 1]), "from -1"),
        (np.zeros((1, 3, 4, 1), np.float32), np.diag([-1, -1, 1, 1]), "float32"),
        (np.zeros((1, 3, 4, 1), np.uint8), np.diag([1, -1, 1, 1]), "position in space"),
    ],
)
def test_volumes_that_a_natural_image_cannot_hold_raise(data, affine, found, tmp_path):
    with pytest.raises(DataError, match=rf"a\.png: .*{found}.*Write \.nii\.gz instead"):
        write(Volume(data, Grid(data.shape[1:], affine.astype(float))), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [45, 60, 80, -8])
def test_a_changed_byte_of_grey_with_alpha_is_noticed(tmp_path, place):
    from PIL import Image

    rows = np.random.default_rng(0).integers(0, 255, (25, 24, 2), dtype=np.uint8)
    Image.fromarray(rows).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[place] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(
        DataError, match=r"a\.png: not readable \(the checksum of chunk .* is wrong\)\. Copy the file again"
    ):
        read(tmp_path / "a.png")


def sixteen_bits(values: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A PNG with 16 bits of grey and of alpha, `(Y, X, 2)`."""
    height, width = size or values.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_of_grey_and_alpha_are_kept(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (7, 9, 2)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(sixteen_bits(values))
    found = read(path).data
    assert found.dtype == np.uint16
    assert np.array_equal(found[:, :, :, 0], np.moveaxis(values, -1, 0).transpose(0, 2, 1))
    path.write_bytes(sixteen_bits(np.dstack([values[..., 0], np.full((7, 9), 65535, np.uint16)])))
    assert np.array_equal(read(path).data[0, :, :, 0].T, values[..., 0])


@pytest.mark.parametrize("size", [(60_000, 60_000), (700, 900)])
def test_sixteen_bits_that_end_early_are_refused(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(sixteen_bits(np.zeros((7, 9, 2), np.uint16), size))
    with pytest.raises(DataError, match=r"a\.png: (found \d+ bytes|not readable)"):
        read(path)
