"""What MetaImage and NRRD headers may say before ITK opens the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import DataError
from medseg.io.files import read

META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 4 2 1\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\n# a comment: data file: x\ntype: uchar\ndimension: 3\nsizes: 4 2 1\nencoding: raw\n"
VOXELS = bytes(range(8))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the folder of images, which none of them may show."""
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_bytes(VOXELS)
    return tmp_path / "secret"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mha", META + "ElementDataFile = {secret}\n"),
        ("a.mha", META + "ElementDataFile = ../secret\n"),
        ("a.mha", META + "ElementDataFile : {secret}\n"),
        ("a.mha", META + "elementdatafile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", META + "ElementDataFile = a.raw\n"),
        ("a.mhd", META + "ElementDataFile = {secret}\n"),
        ("a.mhd", META + "ElementDataFile = ../secret\n"),
        ("a.mhd", META + "ElementDataFile = LIST\n{secret}\n"),
        ("a.mhd", META + "ElementDataFile = ../secret%d 0 0 1\n"),
        ("a.nrrd", NRRD + "data file: {secret}\n\n"),
        ("a.nrrd", NRRD + "DATAFILE: ../secret\n\n"),
        ("a.nrrd", NRRD.replace("\n", "\r\n") + "data file: ../secret\r\n\r\n"),
        ("a.nhdr", NRRD + "data file: {secret}\n"),
        ("a.nhdr", NRRD + "data file: LIST\n../secret\n"),
        ("a.nhdr", NRRD + "data file: ../secre%c 116 116 1\n"),
    ],
)
def test_voxel_files_outside_the_folder_are_not_read(secret: Path, name: str, text: str) -> None:
    path = secret.parent / "images" / name
    path.write_bytes(text.format(secret=secret).encode())
    with pytest.raises(DataError, match=rf"{name}: (ElementDataFile|data file): found '.*Write the image"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mha", META + "ElementDataFile = LOCAL\n"),
        ("a.mha", META.replace("\n", "\r\n") + "ElementDataFile = LOCAL\n"),
        ("a.mhd", META + "ElementDataFile = LOCAL\n"),
        ("a.mhd", META + "ElementDataFile = a b.raw\n"),
        ("a.nrrd", NRRD + "data file:=a key of one's own\n\n"),
        ("a.nhdr", NRRD + "data file: a b.raw\n"),
        ("a.nhdr", NRRD + "data file: ./a b.raw\n"),
    ],
)
def test_voxels_in_the_file_or_the_same_folder_are_read(tmp_path: Path, name: str, text: str) -> None:
    apart = "a b.raw" in text
    (tmp_path / name).write_bytes(text.encode() + (b"" if apart else VOXELS))
    (tmp_path / "a b.raw").write_bytes(VOXELS)
    volume = read(tmp_path / name)
    assert volume.data.transpose(0, 3, 2, 1).tobytes() == VOXELS


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_header_and_voxel_files_written_by_itk_are_read(tmp_path: Path, suffix: str) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for compressed in (False, True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{suffix}"), compressed)
        assert np.array_equal(read(tmp_path / f"a{suffix}").data[0], array.T)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("NDims = 3", "NDims = -3", r"NDims: found '-3', expected 2 to 4"),
        ("NDims = 3", "NDims = 1000000", "NDims: found '1000000'"),
        ("NDims = 3\n", "", "NDims: found ''"),
        ("NDims = 3", "NDims = 3\nNDims = -3", "found NDims twice"),
        ("DimSize = 4 2 1", "DimSize = 4 2", "DimSize: found '4 2', expected 3 positive whole numbers"),
        ("DimSize = 4 2 1", "DimSize = 4 -2 1", "DimSize: found '4 -2 1'"),
        ("DimSize = 4 2 1", "DimSize = 4 2 0", "DimSize: found '4 2 0'"),
        ("BinaryData", "ElementNumberOfChannels = -1\nBinaryData", "ElementNumberOfChannels: found '-1'"),
    ],
)
def test_invalid_axes_raise(tmp_path: Path, old: str, new: str, told: Any) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes((META.replace(old, new) + "ElementDataFile = LOCAL\n").encode() + VOXELS)
    with pytest.raises(DataError, match=rf"a\.mha: not readable \({told}"):
        read(path)
    path = tmp_path / "a.nrrd"
    bad = NRRD.replace("dimension: 3", "dimension: -3") if "NDims" in old else NRRD.replace(" 2 1", " -2 1")
    path.write_bytes(bad.encode() + b"\n" + VOXELS)
    with pytest.raises(DataError, match=r"a\.nrrd: not readable \((dimension|sizes): found"):
        read(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_voxels_that_end_early_are_counted(
    tmp_path: Path, suffix: str, channels: int, compressed: bool
) -> None:
    array = np.random.default_rng(0).random((5, 6, 7, channels), np.float32)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array.squeeze(), isVector=channels > 1), str(path), compressed)
    assert read(path).data.shape == (channels, 7, 6, 5)
    voxels = next((file for file in tmp_path.iterdir() if file != path), path)
    content = voxels.read_bytes()
    voxels.write_bytes(content + b"more")  # bytes after the voxels do no harm
    assert read(path).data.shape == (channels, 7, 6, 5)
    voxels.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"voxels end early: found (\d+) bytes.*, expected (\d+)") as raised:
        read(path)
    if not compressed:
        assert f"found {array.nbytes - 20} bytes, expected {array.nbytes}" in str(raised.value)
    assert "No such file" not in str(raised.value)
    if voxels != path:
        voxels.unlink()
        with pytest.raises(DataError, match=rf"expected the voxels of a\{suffix}. Copy the file there"):
            read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", META + "HeaderSize = 5\nElementDataFile = a.raw\n"),
        ("a.mhd", META + "HeaderSize = -1\nElementDataFile = a.raw\n"),
        ("a.nhdr", NRRD + "byte skip: 5\ndata file: a.raw\n"),
        ("a.nhdr", NRRD + "byteskip: -1\ndata file: a.raw\n"),
        ("a.nhdr", NRRD + "line skip: 1\ndata file: a.raw\n"),
    ],
)
def test_bytes_before_the_voxels_are_left_out(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "a.raw").write_bytes(b"skip\n" + VOXELS)
    assert read(tmp_path / name).data.transpose(0, 3, 2, 1).tobytes() == VOXELS
    if "-1" not in text and "line" not in text:
        (tmp_path / "a.raw").write_bytes(b"skip\n" + VOXELS[:-1])
        with pytest.raises(DataError, match=r"a\.raw: the voxels end early: found 7 bytes, expected 8"):
            read(tmp_path / name)


def test_voxels_as_text_have_no_fixed_length(tmp_path: Path) -> None:
    text = (
        META.replace("BinaryData = True", "BinaryData = False") + "ElementDataFile = LOCAL\n1 2 3 4 5 6 7 8\n"
    )
    (tmp_path / "a.mha").write_text(text)
    assert read(tmp_path / "a.mha").data.max() == 8
    (tmp_path / "a.nrrd").write_text(NRRD.replace("raw", "ascii") + "\n1 2 3 4 5 6 7 8\n")
    assert read(tmp_path / "a.nrrd").data.max() == 8
