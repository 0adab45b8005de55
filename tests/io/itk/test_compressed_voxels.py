"""Compressed voxels of MetaImage and NRRD files: damage, cuts and wrong lengths are refused, whatever ITK makes of them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataError
from medseg.io.files import read

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\n{size}DimSize = 7 6 5\nElementType = MET_SHORT\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nendian: little\nencoding: {encoding}\n"
SIZE = "CompressedDataSize = {packed}\n"
KINDS = ("a.mha", "a.mhd", "a.nrrd", "a.nhdr")


def written(folder: Path, name: str) -> tuple[Path, Path, int]:
    """Return the header, the file with the compressed voxels, and where they begin in it."""
    path = folder / name
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path), useCompression=True)
    others = [file for file in folder.iterdir() if file != path]
    if others:
        return path, others[0], 0
    end = re.search(rb"LOCAL\n|\n\n", path.read_bytes())
    assert end is not None
    return path, path, end.end()


@pytest.mark.parametrize("name", KINDS)
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    header, file, start = written(tmp_path, name)
    content = file.read_bytes()
    np.testing.assert_array_equal(read(header).data[0], VOXELS.T)
    rng = np.random.default_rng(1)
    for at in [*rng.integers(start + 10, len(content), 40), *range(len(content) - 4, len(content))]:
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(DataError, match=rf"{file.name}: .*Copy the file again"):
            read(header)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("missing", [1, 4, 9, 100])
def test_every_cut_is_noticed(tmp_path: Path, name: str, missing: int) -> None:
    header, file, _ = written(tmp_path, name)
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(DataError, match=rf"{file.name}: the voxels end early: found \d+ bytes"):
        read(header)


@pytest.mark.parametrize(
    ("name", "text", "pack"),
    [
        ("a.mha", META.format(size=SIZE) + "ElementDataFile = LOCAL\n", zlib.compress),
        ("a.mha", META.format(size=SIZE) + "ElementDataFile = LOCAL\n", gzip.compress),
        ("a.mha", META.format(size=SIZE).replace("\n", "\r\n") + "ElementDataFile = LOCAL\r\n", zlib.compress),
        ("a.nrrd", NRRD.format(encoding="gzip") + "\n", gzip.compress),
        ("a.nrrd", NRRD.format(encoding="gz") + "byte skip: 6\n\n", lambda raw: gzip.compress(b"before" + raw)),
        ("a.nrrd", NRRD.format(encoding="GZIP") + "\n", lambda raw: gzip.compress(raw[:99]) + gzip.compress(raw[99:])),
    ],
)  # fmt: skip
def test_what_other_programs_write_is_read_or_refused(
    tmp_path: Path, name: str, text: str, pack: Callable[[bytes], bytes]
) -> None:
    raw = VOXELS.tobytes()

    def write(content: bytes) -> None:
        packed = pack(content)
        (tmp_path / name).write_bytes(text.replace("{packed}", str(len(packed))).encode() + packed)

    write(raw)
    np.testing.assert_array_equal(read(tmp_path / name).data[0], VOXELS.T)
    write(raw[:-2])
    with pytest.raises(
        DataError, match=r"the voxels end early: found \d+ bytes after decompression, expected 42\d"
    ):
        read(tmp_path / name)
    write(raw + b"..")
    with pytest.raises(DataError, match=r"found more than 42\d bytes after decompression"):
        read(tmp_path / name)


def test_bytes_after_the_stated_compressed_size_do_not_count(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, "a.mha")
    path.write_bytes(path.read_bytes() + b"more")
    np.testing.assert_array_equal(read(path).data[0], VOXELS.T)


def test_a_stated_compressed_size_that_is_too_small_is_refused(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, "a.mha")
    content = path.read_bytes()
    size = re.search(rb"CompressedDataSize = (\d+)", content)
    assert size is not None
    smaller = str(int(size[1]) - 20).rjust(len(size[1]), "0").encode()
    path.write_bytes(content.replace(size[0], b"CompressedDataSize = " + smaller))
    with pytest.raises(DataError, match=r"a\.mha: the voxels end early"):
        read(path)


@pytest.mark.parametrize(
    ("size", "pack", "message"),
    [
        ("", zlib.compress, "CompressedDataSize: found 'none', expected the bytes"),
        ("CompressedDataSize = 0\n", zlib.compress, "CompressedDataSize: found '0', expected the bytes"),
        (SIZE + "HeaderSize = 7\n", zlib.compress, "the compressed voxels are damaged"),
        (SIZE, lambda raw: gzip.compress(raw[:99]) + gzip.compress(raw[99:]), "the voxels end early: found 99 bytes"),
        (SIZE, lambda raw: zlib.compress(raw)[2:-4], "the compressed voxels are damaged"),
    ],
)  # fmt: skip
def test_what_itk_reads_as_random_memory_is_refused(
    tmp_path: Path, size: str, pack: Callable[[bytes], bytes], message: str
) -> None:
    packed = pack(VOXELS.tobytes())
    header = META.format(size=size.replace("{packed}", str(len(packed)))) + "ElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + packed)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.mha")


@pytest.mark.parametrize("size", ["", SIZE])
def test_a_file_of_compressed_voxels_needs_no_stated_size(tmp_path: Path, size: str) -> None:
    packed = zlib.compress(VOXELS.tobytes())
    (tmp_path / "a.zraw").write_bytes(packed)
    header = META.format(size=size.replace("{packed}", str(len(packed))))
    (tmp_path / "a.mhd").write_text(header + "ElementDataFile = a.zraw\n")
    np.testing.assert_array_equal(read(tmp_path / "a.mhd").data[0], VOXELS.T)


def test_a_stated_size_of_a_file_of_compressed_voxels_counts(tmp_path: Path) -> None:
    (tmp_path / "a.zraw").write_bytes(zlib.compress(VOXELS.tobytes()))
    header = META.format(size="CompressedDataSize = 5\n")
    (tmp_path / "a.mhd").write_text(header + "ElementDataFile = a.zraw\n")
    with pytest.raises(DataError, match=r"a\.zraw: the voxels end early"):
        read(tmp_path / "a.mhd")
