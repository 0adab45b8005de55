"""Files that are readable although a field, the name or the end of the file is wrong."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError, DataWarning
from medseg.io.files import read, read_grid
from tests.helpers.nifti_files import OBLIQUE, patched, save

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def read_with_warning(path: Path, message: str) -> None:
    with pytest.warns(DataWarning, match=rf"{path.name}: .*{message}") as caught:
        volume = read(path)
    assert len(caught) == 1
    np.testing.assert_array_equal(volume.data[0], VOXELS)


def test_gzip_data_named_as_plain(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", VOXELS).rename(tmp_path / "b.nii")
    read_with_warning(path, r"content: found gzip data; .* Rename it to b\.nii\.gz")
    nib.save(nib.Nifti1Pair(VOXELS, OBLIQUE), tmp_path / "p.img")
    for name in ("p.hdr", "p.img"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    np.testing.assert_array_equal(read(tmp_path / "p.img").data[0], VOXELS)


def test_plain_data_named_as_gzip(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS).rename(tmp_path / "b.nii.gz")
    read_with_warning(path, r"content: found no gzip data; .* Rename it to b\.nii for")
    assert read_grid(path).shape == (4, 5, 6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (0, np.array([999], "<i4"), "sizeof_hdr: found 999, expected 348"),
        (72, np.array([8], "<i2"), "bitpix: found 8, expected 16 for int16; datatype is used"),
        (72, np.array([0], "<i2"), "bitpix: found 0, expected 16"),
        (
            348,
            np.array([1, 1 << 30], "<i4"),
            "header extension: found a size of 1073741824 bytes, expected at most the",
        ),
        (348, np.array([1, -3], "<i4"), "header extension: found a size of -3 bytes"),
    ],
)
def test_fields_that_do_not_matter(
    tmp_path: Path, suffix: str, offset: int, content: Any, message: str
) -> None:
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"thirty bytes of a note, or so"))
    nib.save(image, tmp_path / f"a{suffix}")
    read(tmp_path / f"a{suffix}")
    read_with_warning(patched(tmp_path / f"a{suffix}", offset, content.tobytes()), message)


def test_a_pair_needs_no_room_before_its_voxels(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, OBLIQUE), tmp_path / "p.img")
    np.testing.assert_array_equal(read(tmp_path / "p.hdr").data[0], VOXELS)
    (tmp_path / "p.hdr").unlink()
    with pytest.raises(DataError, match=r"p\.img: the header is in another file, p\.hdr, which is missing"):
        read(tmp_path / "p.img")


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        (".nii", lambda content: content + bytes(1024)),
        (".nii.gz", lambda content: gzip.compress(gzip.decompress(content) + bytes(1024))),
        (".nii.gz", lambda content: content + b"x" * 1024),
    ],
)
def test_bytes_after_the_voxels_are_counted(
    tmp_path: Path, suffix: str, change: Callable[[bytes], bytes]
) -> None:
    path = save(tmp_path / f"a{suffix}", VOXELS)
    path.write_bytes(change(path.read_bytes()))
    read_with_warning(path, r"found 1024 bytes after the voxels, expected \(4, 5, 6\) voxels of int16")


def test_padding_and_members_of_gzip_are_no_fault(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", VOXELS)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]) + bytes(512))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read(path).data[0], VOXELS)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "circle.nii.gz").symlink_to(tmp_path / "circle.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "file").write_bytes(b"x")
    for name, message in (
        ("dangling.nii.gz", r"found a link to .*gone\.nii\.gz, which cannot be followed \(No such file"),
        ("circle.nii.gz", r"found a link to .*circle\.nii\.gz, which cannot be followed"),
        ("pipe.nii.gz", r"found a pipe, expected a NIfTI file"),
        ("absent.nii.gz", r"no such file"),
        ("file/a.nii.gz", r"no such file"),
    ):
        for reader in (read, read_grid):
            with pytest.raises(DataError, match=rf"{name}: {message}"):
                reader(tmp_path / name)


def test_a_closed_file_is_named_with_its_owner_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    path.chmod(0o200)
    if os.access(path, os.R_OK):  # root may read everything
        opened = Path.open

        def refused(self: Path, *arguments: Any, **options: Any) -> Any:
            if self == path:
                raise PermissionError(13, "Permission denied")
            return opened(self, *arguments, **options)

        monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(
        DataError, match=r"a\.nii: found no permission to read it \(it belongs to \w+ with mode 0200\)"
    ):
        read(path)


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", VOXELS)

    def refused(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("medseg.io.nifti.nifti_files.np.empty", refused)
    with pytest.raises(
        DataError, match=r"a\.nii: not enough memory for its voxels: found no 240 bytes"
    ) as caught:
        read(path)
    assert "damaged" not in str(caught.value)


def test_voxels_start_at_the_usual_place_if_none_is_stated(tmp_path: Path) -> None:
    path = patched(save(tmp_path / "a.nii", VOXELS), 108, np.float32(0).tobytes())
    np.testing.assert_array_equal(read(path).data[0], VOXELS)


def test_zeros_instead_of_an_extension_are_padding(tmp_path: Path) -> None:
    raw = bytearray(save(tmp_path / "a.nii", VOXELS).read_bytes())
    raw[108:112], raw[348] = np.float32(368).tobytes(), 1
    (tmp_path / "a.nii").write_bytes(bytes(raw[:352]) + bytes(16) + bytes(raw[352:]))
    np.testing.assert_array_equal(read(tmp_path / "a.nii").data[0], VOXELS)
