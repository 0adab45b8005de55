"""TIFF files of many programs: channels, tiles, types, orientations, stacks, voxel sizes and damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_grid, read_labels
from medseg.io.tiff import _ome_spacing

GENERATOR = np.random.default_rng(0)
COLOURS = GENERATOR.integers(0, 255, (30, 40, 7)).astype(np.uint8)
STACK = GENERATOR.integers(0, 60000, (12, 32, 36)).astype(np.uint16)


def written(path: Path, array: Any, **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_every_channel_is_read(tmp_path: Path, planar: str, tile: Any, channels: int) -> None:
    values = COLOURS[..., :channels]
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    path = written(tmp_path / "a.tif", stored, planarconfig=planar, photometric="minisblack", tile=tile)
    np.testing.assert_array_equal(read(path).data[..., 0], values.transpose(2, 1, 0))


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits", "jpeg2000", "lerc", "webp"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressed_parts(tmp_path: Path, compression: str, tile: Any) -> None:
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    if compression == "jpeg2000":
        options = {"compressionargs": {"level": 0}}
    values = COLOURS[..., :3]
    path = written(
        tmp_path / "a.tiff", values, compression=compression, tile=tile, photometric="rgb", **options
    )
    np.testing.assert_array_equal(read(path).data[..., 0], values.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        ("f2", "f4"),
        ("f4", "f4"),
        ("f8", "f4"),
        ("u4", "u4"),
        ("u8", "u8"),
        ("i8", "i8"),
        ("i2", "i2"),
        (">u2", "u2"),
        ("?", "u1"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}])
def test_every_type_keeps_its_values(tmp_path: Path, dtype: str, read_as: str, options: Any) -> None:
    values = (GENERATOR.integers(0, 120, (24, 33)) > (60 if dtype == "?" else 0)).astype(dtype)
    if dtype != "?":
        values = GENERATOR.integers(0, 120, (24, 33)).astype(dtype)
    data = read(written(tmp_path / "a.tif", values, photometric="minisblack", **options)).data
    assert data.dtype == np.dtype(read_as)
    np.testing.assert_array_equal(data[0, :, :, 0], values.T)


@pytest.mark.parametrize("compression", ["group4", "group3", None])
def test_bilevel_masks_of_pillow(tmp_path: Path, compression: Any) -> None:
    mask = GENERATOR.integers(0, 2, (40, 50)).astype(bool)
    Image.fromarray(mask).save(tmp_path / "a.tif", compression=compression)
    label = read_labels(tmp_path / "a.tif")
    np.testing.assert_array_equal(label.data[0, :, :, 0], mask.T)
    assert label.data.dtype.kind in "iu"


def test_grey_values_with_white_at_zero_are_inverted(tmp_path: Path) -> None:
    values = GENERATOR.integers(0, 4095, (24, 33)).astype(np.uint16)
    path = written(tmp_path / "a.tif", 65535 - values, photometric="miniswhite")
    np.testing.assert_array_equal(read(path).data[0, :, :, 0], values.T)
    path = written(tmp_path / "b.tif", values > 2000)  # of a mask, tifffile writes that white is at zero
    np.testing.assert_array_equal(read(path).data[0, :, :, 0], (values <= 2000).T)
    np.testing.assert_array_equal(read_labels(path).data[0, :, :, 0], (values > 2000).T)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(COLOURS[..., 0])
    stored.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    tag = (274, "H", 1, orientation, False)
    path = written(tmp_path / "a.tif", COLOURS[..., 0], extratags=[tag], imagej=False)
    np.testing.assert_array_equal(read(path).data[0, :, :, 0], upright.T)


def test_palettes_are_colours_in_images_and_indices_in_labels(tmp_path: Path) -> None:
    indices = GENERATOR.integers(0, 5, (40, 48)).astype(np.uint8)
    table = GENERATOR.integers(0, 255, (3, 256)).astype(np.uint16) * 257
    path = written(tmp_path / "a.tif", indices, photometric="palette", colormap=table, tile=(16, 16))
    np.testing.assert_array_equal(read_labels(path).data[0, :, :, 0], indices.T)
    np.testing.assert_array_equal(read(path).data[:, :, :, 0], (table >> 8)[:, indices.T])


@pytest.mark.parametrize(("extra", "channels"), [("unassalpha", 3), ("unspecified", 4)])
def test_only_an_opaque_alpha_channel_is_left_out(tmp_path: Path, extra: str, channels: int) -> None:
    values = COLOURS[..., :4].copy()
    values[..., 3] = 255
    path = written(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra])
    assert read(path).channels == channels
    values[0, 0, 3] = 0
    assert read(written(path, values, photometric="rgb", extrasamples=[extra])).channels == 4


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"compression": "zlib"}, {"metadata": None}])
def test_pages_are_slices(tmp_path: Path, options: Any) -> None:
    volume = read(written(tmp_path / "a.tif", STACK, photometric="minisblack", **options))
    np.testing.assert_array_equal(volume.data[0], STACK.transpose(2, 1, 0))
    assert volume.grid.in_pixels


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mm", 1), ("um", 1e-3), ("\\u00B5m", 1e-3), ("micron", 1e-3), ("cm", 10), ("inch", 25.4)],
)
def test_imagej_states_the_voxel_size(tmp_path: Path, unit: str, factor: float) -> None:
    metadata = {"spacing": 4.0, "unit": unit, "axes": "ZYX"}
    path = written(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 4), metadata=metadata)
    assert read(path).spacing == pytest.approx((0.5 * factor, 0.25 * factor, 4 * factor))
    assert not read_grid(path).in_pixels


@pytest.mark.parametrize("unit", ["pixel", "", "furlong"])
def test_imagej_without_a_length_is_counted_in_pixels(tmp_path: Path, unit: str) -> None:
    metadata = {"spacing": 4.0, "unit": unit, "axes": "ZYX"}
    path = written(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 4), metadata=metadata)
    assert read_grid(path).in_pixels


def test_slices_and_channels_of_imagej(tmp_path: Path) -> None:
    values = GENERATOR.integers(0, 9, (6, 3, 16, 20)).astype(np.uint16)
    path = written(tmp_path / "zc.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read(path).data, values.transpose(1, 3, 2, 0))
    path = written(tmp_path / "tz.tif", values, imagej=True, metadata={"axes": "TZYX"})
    np.testing.assert_array_equal(read(path).data, values.transpose(0, 3, 2, 1))
    path = written(tmp_path / "t.tif", values[:, 0], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(
        DataError, match=r"t\.tif: axes: found 6 along T, 16 along Y, 20 along X, expected .*Save the axes"
    ):
        read(path)


def test_a_stack_without_a_distance_between_slices_is_reported(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 2), metadata={"unit": "mm", "axes": "ZYX"}
    )
    with pytest.warns(
        DataWarning, match=r"a\.tif: spacing: found no distance between its 12 slices.*a\.json"
    ):
        assert read(path).spacing == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("unit", "factor"), [(None, 1e-3), ("mm", 1), ("nm", 1e-6), ("µm", 1e-3)])
def test_ome_states_the_voxel_size(tmp_path: Path, unit: Any, factor: float) -> None:
    metadata: dict[str, Any] = {
        "axes": "ZYX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.25,
        "PhysicalSizeZ": 4.0,
    }
    if unit is not None:
        metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    path = written(tmp_path / "a.ome.tif", STACK, metadata=metadata)
    assert read(path).spacing == pytest.approx((0.5 * factor, 0.25 * factor, 4 * factor))
    np.testing.assert_array_equal(read(path).data[0], STACK.transpose(2, 1, 0))


def test_ome_in_pixels_and_with_channels(tmp_path: Path) -> None:
    values = GENERATOR.integers(0, 9, (3, 6, 16, 20)).astype(np.uint16)
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 1,
        "PhysicalSizeXUnit": "pixel",
        "PhysicalSizeY": 1,
        "PhysicalSizeYUnit": "pixel",
    }
    volume = read(written(tmp_path / "a.ome.tif", values, metadata=metadata))
    np.testing.assert_array_equal(volume.data, values.transpose(0, 3, 2, 1))
    assert volume.grid.in_pixels


@pytest.mark.parametrize("name", ["c.tif", "c_0000.tif"])
def test_the_json_beside_a_stack_gives_its_spacing(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, STACK)
    (tmp_path / "c.json").write_text('{"spacing": [4.0, 0.5, 0.25]}')
    assert read(path).spacing == (0.25, 0.5, 4.0)
    (tmp_path / "c.json").write_text('{"shapes": []}')
    assert read_grid(path).in_pixels
    for wrong in (
        '{"spacing": [4.0, 0.5]}',
        '{"spacing": 4.0}',
        '{"spacing": [1, 2, 0]}',
        '{"spacing": [1, "2", 3]}',
        '{"spacing": [1, true, 1]}',
    ):
        (tmp_path / "c.json").write_text(wrong)
        with pytest.raises(
            DataError, match=r"c\.json: spacing: found .*, expected three sizes \(z, y, x\) above 0 in mm"
        ):
            read(path)


def test_nnunet_stacks_and_their_labels_share_a_spacing(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.json").write_text('{"spacing": [4.0, 0.5, 0.5]}')
    description = {
        "channel_names": {"0": "EM"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": ".tif",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    written(tmp_path / "imagesTr" / "c_0000.tif", STACK)
    written(tmp_path / "labelsTr" / "c.tif", np.zeros(STACK.shape, np.uint8))
    (case,) = read_dataset(tmp_path).cases
    assert read(case.images[0]).spacing == (0.5, 0.5, 4.0)
    assert case.label is not None
    assert read_grid(case.label) == read_grid(case.images[0])
    (tmp_path / "labelsTr" / "c.json").unlink()
    assert read_grid(case.label).matches(read_grid(case.images[0]))


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png", "a.bmp"])
@pytest.mark.parametrize("dpi", [72, 300])
def test_the_resolution_of_a_print_is_no_voxel_size(tmp_path: Path, name: str, dpi: int) -> None:
    mask = np.zeros((64, 48), np.uint8)
    mask[10:40, 10:40] = 1
    Image.fromarray(mask * 99 + 50).save(tmp_path / name, dpi=(dpi, dpi))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image, label = read(tmp_path / name), read_labels(tmp_path / "mask.png")
    assert image.grid.in_pixels
    assert image.spacing == (1, 1, 1)
    assert image.grid.matches(label.grid)


@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"compression": "zlib"}, {"compression": "lzw", "tile": (16, 16)}]
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, options: Any) -> None:
    path = written(tmp_path / "a.tif", STACK[:3], photometric="minisblack", **options)
    content = path.read_bytes()
    for size in (*range(1, 40, 3), *range(40, len(content), len(content) // 30), len(content) - 1):
        path.write_bytes(content[:size])
        if is_read(path):  # what was cut off held no pixels
            np.testing.assert_array_equal(read(path).data[0], STACK[:3].transpose(2, 1, 0))


def is_read(path: Path) -> bool:
    """Return whether a file is read; the message of a refusal must name it."""
    try:
        read(path)
    except DataError as error:
        if f"{path.name}: " in str(error):
            return False
        raise
    return True


def test_other_content_is_named(tmp_path: Path) -> None:
    values = COLOURS[..., :4]
    for name, write, message in (
        (
            "cmyk.tif",
            lambda f: written(f, values, photometric="separated"),
            "photometric: found SEPARATED, expected grey",
        ),
        ("complex.tif", lambda f: written(f, np.ones((9, 9), np.complex64)), "found voxels of complex64"),
        (
            "png.tif",
            lambda f: Image.fromarray(values).save(f, "png"),
            r"found a PNG image, .*Rename it to \.png",
        ),
        ("html.tif", lambda f: f.write_text("<html>not found</html>"), "found an HTML page"),
        ("empty.tif", lambda f: f.write_bytes(b""), "found 0 bytes, expected a TIFF image"),
        (
            "two.tif",
            lambda f: [tifffile.imwrite(f, a, append=f.exists()) for a in (STACK[0], STACK[0, :9])],
            "found 2 images",
        ),
        (
            "axes.tif",
            lambda f: written(
                f, np.zeros((2, 3, 8, 9), "u1"), photometric="minisblack", metadata={"axes": "RZYX"}
            ),
            "axes: found 2 along R",
        ),
    ):
        write(tmp_path / name)  # type: ignore[no-untyped-call]
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read(tmp_path / name)


@pytest.mark.parametrize(("pages", "to"), [(1, 0), (3, 0), (3, 1), (150, 0), (150, 149)])
@pytest.mark.parametrize("big", [False, True])
def test_pages_that_refer_to_each_other_in_a_circle_are_refused(
    tmp_path: Path, pages: int, to: int, big: bool
) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for _ in range(pages):
            file.write(STACK[0, :8, :8], metadata=None)
    with tifffile.TiffFile(path) as file:
        last, layout = file.pages[-1], file.tiff
        at = last.offset + layout.tagnosize + len(last.tags) * layout.tagsize
        target = struct.pack(layout.offsetformat, file.pages[to].offset)
    content = path.read_bytes()
    path.write_bytes(content[:at] + target + content[at + len(target) :])
    with pytest.raises(DataError, match=rf"a\.tif: page {pages}: found an earlier page as the next one"):
        read(path)


def test_an_image_that_lies_on_its_side_keeps_the_voxel_size_of_each_axis(tmp_path: Path) -> None:
    rows = STACK[0]
    path = written(
        tmp_path / "a.tif",
        rows,
        imagej=True,
        resolution=(1 / 0.5, 1 / 0.25),
        metadata={"unit": "mm"},
        extratags=[(274, "H", 1, 6, True)],  # rotated by 90 degrees
    )
    volume = read(path)
    assert volume.grid.shape[:2] == rows.shape
    assert volume.grid.spacing[:2] == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        ("", None),
        (
            '<Pixels PhysicalSizeX="0.5" PhysicalSizeY="250" PhysicalSizeYUnit="&#181;m"/>',
            (0.0005, 0.25, None),
        ),
        ('<Pixels PhysicalSizeX="half" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"/>', (None, None, None)),
    ],
)
def test_voxel_sizes_in_ome_metadata(pixels: str, found: Any) -> None:
    assert _ome_spacing(f"<OME><Image>{pixels}</Image></OME>") == (found and pytest.approx(found))


def test_too_little_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.tif", STACK)

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", full)
    with pytest.raises(DataError, match=r"a.tif: not enough memory for its pixels"):
        read(path)
