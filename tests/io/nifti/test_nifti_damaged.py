from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import DataError
from medseg.io.files import read, read_labels
from tests.helpers.nifti_files import OBLIQUE, patched, save


def noise() -> Any:
    return np.random.default_rng(0).normal(0, 300, (20, 22, 24)).astype(np.int16)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def last_byte_lost(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def wrong_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8:-4] = bytes(4)
    path.write_bytes(bytes(content))


def flipped_byte(path: Path) -> None:
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    content[9000] ^= 1
    path.write_bytes(bytes(content))


def replaced_by(content: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(content)

    return spoil


def header(offset: int, dtype: str, *values: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        patched(path, offset, np.array(values, dtype).tobytes())

    return spoil


BROKEN = {
    "half": (halved, r"voxel data are damaged or end early"),
    "last byte": (last_byte_lost, r"voxel data are damaged or end early"),
    "empty": (replaced_by(b""), r"found 0 bytes, expected a NIfTI file\. Copy or download"),
    "git lfs": (
        replaced_by(b"version https://git-lfs\n" * 40),
        r"not a readable NIfTI file: found a Git LFS pointer .*Run git lfs pull",
    ),
    "html": (
        replaced_by(b"<!DOCTYPE html>" * 90),
        r"not a readable NIfTI file: found an HTML page.*download",
    ),
    "json": (replaced_by(b'{"error": "no such object"}'), r"not a readable NIfTI file: found JSON text"),
    "text": (replaced_by("Verzeichnis für Bilder\n".encode() * 90), r"not a readable NIfTI file: found text"),
    "zip": (
        replaced_by(b"PK\x03\x04" + bytes(900)),
        r"not a readable NIfTI file: found a zip archive.*Unpack",
    ),
    "zeros": (replaced_by(bytes(9000)), r"not a readable NIfTI file: found only zeros"),
    "nrrd": (
        replaced_by(b"NRRD0004\ntype: short\n" * 30),
        r"not a readable NIfTI file: found an NRRD image.*\.nrrd",
    ),
    "short": (
        replaced_by(b"\x5c\x01\0\0" * 50),
        r"not a readable NIfTI file: found 200 bytes, expected a header",
    ),
    "one byte": (replaced_by(b"\x1f"), r"not a readable NIfTI file"),
    "magic": (
        header(344, "S4", "xxxx"),
        r"not a readable NIfTI file: magic: found 'xxxx', expected 'n\+1' or 'ni1'",
    ),  # type: ignore[arg-type]
    "huge dims": (header(40, "<i2", 3, 30000, 30000, 30000), r"voxel data are damaged .*declared"),
    "one slice more": (header(42, "<i2", 21), r"voxel data are damaged or end early"),
    "zero dim": (header(42, "<i2", 0), r"dim: found \(0, 22, 24\), expected 2 to 5 axes, none empty"),
    "negative dim": (header(42, "<i2", -20), r"dim: found \(-20, 22, 24\)"),
    "nine axes": (
        header(40, "<i2", 9),
        r"not a readable NIfTI file: dim\[0\]: found 9 axes, expected 1 to 7",
    ),
    "no axes": (header(40, "<i2", 0), r"not a readable NIfTI file: dim\[0\]: found 0 axes"),
    "seven axes": (header(40, "<i2", 7, 1, 1, 1, 1, 1, 1, 1), r"dim: found .*, expected 2 to 5 axes"),
    "one axis": (header(40, "<i2", 1), r"dim: found \(20,\), expected 2 to 5 axes"),
    "binary datatype": (header(70, "<i2", 1), r"not a readable NIfTI file: datatype: found 1, expected"),
    "unknown datatype": (
        header(70, "<i2", 9999),
        r"not a readable NIfTI file: datatype: found 9999, expected one of 2 \(uint8\)",
    ),
    "offset": (
        header(108, "<f4", 1e9),
        r"vox_offset: found 1000000000, expected a byte of the file, which has \d+",
    ),
    "offset nan": (header(108, "<f4", np.nan), r"vox_offset: found nan, expected at least 352"),
    "offset inf": (header(108, "<f4", np.inf), r"vox_offset: found inf, expected at least 352"),
    "offset negative": (header(108, "<f4", -352), r"vox_offset: found -352, expected at least 352"),
    "slope": (header(112, "<f4", np.inf), r"scl_slope: found inf, expected a finite number"),
    "negative slope": (header(112, "<f4", -np.inf, 0), r"scl_slope: found -inf, expected a finite number"),
    "intercept": (header(112, "<f4", 2, np.nan), r"scl_inter: found nan, expected a finite number"),
    "singular": (header(280, "<f4", *[0] * 12), r"affine: found .*, expected a finite, invertible"),
    "nan affine": (header(280, "<f4", np.nan), r"affine: found .*nan.*, expected a finite, invertible"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_raise_with_the_file_name(tmp_path: Path, name: str, suffix: str) -> None:
    spoil, message = BROKEN[name]
    path = save(tmp_path / f"broken{suffix}", noise())
    spoil(path)
    for reader in (read, read_labels):
        with pytest.raises(DataError, match=rf"broken{suffix}: {message}") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [wrong_checksum, flipped_byte])
def test_wrong_gzip_checksum_raises(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = save(tmp_path / "a.nii.gz", noise())
    read(path)
    spoil(path)
    with pytest.raises(
        DataError,
        match=r"a\.nii\.gz: voxel data are damaged .*CRC: found 0x[0-9a-f]{8}, expected 0x[0-9a-f]{8}.*Copy the file again",
    ):
        read(path)


def test_truncation_at_any_byte_raises(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", noise())
    content = path.read_bytes()
    for size in [
        0,
        1,
        10,
        100,
        348,
        360,
        *range(1000, len(content), 1500),
        len(content) - 8,
        len(content) - 1,
    ]:
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a\.nii\.gz: "):
            read(path)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_header_raises_only_data_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], packed: bool
) -> None:
    raw = bytearray(nib.Nifti1Image(noise()[:5, :4, :3], OBLIQUE).to_bytes())
    for offset, value in changes:
        raw[offset] = value
    path = tmp_path_factory.mktemp("fuzz") / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    message = str(path)
    try:
        read(path)
    except DataError as error:
        message = str(error)
    assert str(path) in message


def test_unsupported_formats_and_voxel_types_raise(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(noise(), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(DataError, match=r"a\.img: found Analyze 7\.5, expected NIfTI"):
        read(tmp_path / "a.img")
    save(tmp_path / "c.nii.gz", np.ones((2, 2, 2), np.complex64))
    with pytest.raises(DataError, match=r"c\.nii\.gz: datatype: found complex64, expected real numbers"):
        read(tmp_path / "c.nii.gz")
    with pytest.raises(DataError, match=r"absent\.nii: no such file"):
        read(tmp_path / "absent.nii")
