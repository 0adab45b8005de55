"""Relatives of reported faults of single files: memory, damaged checksums, lengths, full disks, and sizes."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medseg.cli.main import main
from medseg.errors import DataError, DiskFullError, MedsegError, ResourceError, collected_warnings
from medseg.io.files import read, read_labels, write
from medseg.storage.atomic import write_error
from medseg.storage.json_files import read_json
from medseg.storage.tsv import read_tsv
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.fuzz.server import answer
from tests.helpers.dicom_series import Series
from tests.helpers.nifti_files import patched
from tests.helpers.runs import files_of_at_most

RNG = np.random.default_rng(0)
SIDE = 1500  # 6.75 GB of int16, in files without content on the disk
NRRD = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {SIDE} {SIDE} {SIDE}\nencoding: raw\nendian: little\n\n"
META = (
    f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {SIDE} {SIDE} {SIDE}\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)


def freesurfer() -> bytes:
    head = bytearray(nib.MGHImage(np.zeros((4, 4, 4), np.int16), np.eye(4)).header.binaryblock)
    head[4:16] = struct.pack(">iii", SIDE, SIDE, SIDE)
    return bytes(head[:90]).ljust(284, b"\0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [("a.nrrd", NRRD.encode()), ("a.seg.nrrd", NRRD.encode()), ("a.mha", META.encode()), ("a.mgh", freesurfer())],
)  # fmt: skip
@pytest.mark.parametrize("reader", [read, read_labels])
def test_images_beyond_the_memory_are_not_called_damaged(
    tmp_path: Path, name: str, head: bytes, reader: Callable[[Path], Volume]
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 2 * SIDE**3)

    def content() -> bytes:
        return reader(tmp_path / name).data.tobytes()

    found = answer(content)
    assert found.verdict == "refused", found
    assert f"{name}: not enough memory for its voxels (" in found.text
    assert found.text.endswith("Free memory, or crop the image.")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError(errno.ENOMEM, "x")])
@pytest.mark.parametrize("name", ["a.png", "la.png", "a.bmp", "a.jpg", "series"])
def test_natural_images_and_series_beyond_the_memory_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    if name == "series":
        Series(tmp_path / "series").save()
        monkeypatch.setattr(sitk.ImageSeriesReader, "Execute", fail)
    else:
        shape = (8, 9, 2) if name == "la.png" else (8, 9, 3)
        Image.fromarray(RNG.integers(0, 255, shape).astype(np.uint8)).save(tmp_path / name)
        monkeypatch.setattr(sitk, "ReadImage", fail)
        monkeypatch.setattr(Image.Image, "__array_interface__", property(fail), raising=False)
    with pytest.raises(DataError, match=rf"{name}: not enough memory .*Free memory"):
        read(tmp_path / name)


def random_image(*shape: int, kind: Any = np.uint8) -> Image.Image:
    return Image.fromarray(RNG.integers(0, np.iinfo(kind).max, shape).astype(kind))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (random_image(20, 24, 3).quantize(16), {}),
        (random_image(20, 24).convert("1"), {}),
        (random_image(20, 24, 2), {}),
        (random_image(20, 24, 4), {}),
        (random_image(20, 24, kind=np.uint16), {}),
        (random_image(20, 24), {"transparency": 5}),
        (random_image(20, 24, 3), {"transparency": (1, 2, 3), "dpi": (72, 72)}),
    ],
)
def test_a_flipped_bit_of_any_png_is_noticed(
    tmp_path: Path, image: Image.Image, options: dict[str, Any]
) -> None:
    image.save(tmp_path / "a.png", **options)
    whole, expected = (tmp_path / "a.png").read_bytes(), read(tmp_path / "a.png").data
    for place in range(8, len(whole) - 12, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(RNG.integers(8))
        (tmp_path / "a.png").write_bytes(damaged)
        with contextlib.suppress(MedsegError):
            assert np.array_equal(read(tmp_path / "a.png").data, expected)


@pytest.mark.parametrize(("key", "channels"), [(7, 2), (200, 1)])
def test_a_grey_png_with_a_transparent_value_is_read(tmp_path: Path, key: int, channels: int) -> None:
    rows = RNG.integers(0, 99, (20, 24)).astype(np.uint8)
    Image.fromarray(rows).save(tmp_path / "a.png", transparency=key)
    found = read(tmp_path / "a.png")
    assert found.channels == channels  # an alpha channel that is opaque everywhere is left out
    assert np.array_equal(found.data[0, :, :, 0].T, rows)
    if channels == 2:
        assert np.array_equal(found.data[1, :, :, 0].T == 0, rows == key)


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["28001000", "28003000", "20003200", "10002000", "08001600", "e07f1000"])
def test_lengths_beyond_the_file_take_no_memory(tmp_path: Path, tag: str) -> None:
    folder = Series(tmp_path / "ct", 5).save()

    def content() -> bytes:
        return read(folder).data.tobytes()

    path = sorted(folder.iterdir())[2]
    raw = path.read_bytes()
    start = raw.index(bytes.fromhex(tag))
    for length in ("ffffff7f", "ffffffff", "feffffff"):
        damaged = bytearray(raw)
        if raw[start + 4 : start + 6] in (b"OW", b"OB"):
            damaged[start + 8 : start + 12] = bytes.fromhex(length)
        else:
            damaged[start + 4 : start + 12] = b"UN\0\0" + bytes.fromhex(length)
        path.write_bytes(damaged)
        found = answer(content)
        assert found.verdict == "refused", found
        assert f"{path.name}: damaged or cut off" in found.text


AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
VOXELS = RNG.integers(0, 99, (5, 6, 7)).astype(np.int16)


def forms(path: Path, qform: Any, sform: Any) -> Path:
    image = nib.Nifti1Image(VOXELS, sform)
    image.set_sform(sform, 1)
    image.set_qform(qform, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("qform", "message"),
    [
        (np.diag([-1.0, 1, 2, 1]), "found axes RAS and LAS"),
        (AFFINE @ [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "found axes RAS and ALS"),
        (AFFINE @ np.diag([-1.0, -1, 1, 1]), "found axes RAS and LPS"),
    ],
)
def test_forms_that_disagree_on_left_and_right_are_refused_until_one_is_chosen(
    tmp_path: Path, qform: Any, message: str
) -> None:
    path = forms(tmp_path / "a.nii", qform, AFFINE)
    with pytest.raises(DataError, match=rf"sform and qform: {message}.*--orientation-from"):
        read(path)
    assert np.allclose(read(path, orientation_from="sform").grid.affine, AFFINE)
    assert np.allclose(read(path, orientation_from="qform").grid.affine, qform, atol=1e-6)


@pytest.mark.parametrize(
    ("shift", "warned"), [([0, 0, 30], True), ([0.6, 0, 0], True), ([1e-4, 0, 0], False)]
)
def test_forms_at_different_places_are_named_once(tmp_path: Path, shift: list[float], warned: bool) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] = shift
    with collected_warnings() as notes:
        assert np.allclose(read(forms(tmp_path / "a.nii", moved, AFFINE)).grid.affine, AFFINE)
    assert len([note for note in notes if "sform and qform: found first voxels at" in note]) == warned


@pytest.mark.parametrize(
    ("field", "offset", "value"),
    [("scl_slope", 112, -np.inf), ("scl_inter", 116, np.nan), ("scl_inter", 116, np.inf)],
)
def test_scaling_without_a_number_is_refused(tmp_path: Path, field: str, offset: int, value: float) -> None:
    path = patched(forms(tmp_path / "a.nii", AFFINE, AFFINE), 112, struct.pack("<2f", 1, 0))
    with pytest.raises(DataError, match=rf"{field}: found {value}, expected a finite number"):
        read(patched(path, offset, struct.pack("<f", value)))


IMAGE = Volume(RNG.integers(0, 3000, (1, 30, 30, 20)).astype(np.int16), Grid.from_spacing((30, 30, 20), (1, 1, 2)))  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mgz", ".mgh", ".seg.nrrd"])
def test_a_limit_of_file_sizes_is_named_for_every_format(tmp_path: Path, suffix: str) -> None:
    volume = IMAGE if suffix != ".seg.nrrd" else IMAGE.with_data(IMAGE.data % 3, kind="label")
    with (
        files_of_at_most(900),
        pytest.raises(ResourceError, match=rf"a{suffix}: cannot be written \(File too large\). Raise"),
    ):
        write(volume, tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EFBIG, ResourceError),
        (errno.EROFS, DataError),
        (errno.EACCES, DataError),
    ],
)
def test_only_a_lack_of_space_ends_with_code_4(number: int, kind: type[MedsegError]) -> None:
    error = write_error(Path("a.nii"), OSError(number, "x"))
    assert type(error) is kind
    assert getattr(error, "exit_code", 1) == (1 if kind is DataError else 4)


@pytest.mark.parametrize(("header", "voxels"), [("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
def test_voxels_in_another_file_that_is_short_or_missing(tmp_path: Path, header: str, voxels: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(tmp_path / header))
    content = (tmp_path / voxels).read_bytes()
    (tmp_path / voxels).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{voxels}: the voxels end early: found 210 bytes, expected 420"):
        read(tmp_path / header)
    (tmp_path / voxels).unlink()
    with pytest.raises(DataError, match=rf"{voxels}: cannot be read .*expected the voxels of {header}"):
        read(tmp_path / header)


def sparse(path: Path, head: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def test_descriptions_of_absurd_size_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reader in (("splits.json", read_json), ("labels.tsv", read_tsv)):
        with pytest.raises(DataError, match=rf"{name}: found 3,000,000,000 bytes, expected at most"):
            reader(sparse(tmp_path / name, b'{"a": ', 3_000_000_000))
    sparse(tmp_path / "plan.yaml", b"a: 1\n", 3_000_000_000)
    assert main(["train", str(tmp_path / "plan.yaml"), "--run", str(tmp_path / "run")]) == 1
    assert "plan.yaml: found 3,000,000,000 bytes, expected at most" in capsys.readouterr().err
    (tmp_path / "data" / "imagesTr").mkdir(parents=True)
    sparse(tmp_path / "data" / "dataset.json", json.dumps({"labels": {}}).encode(), 3_000_000_000)
    assert main(["inspect", str(tmp_path / "data")]) == 1
    assert "dataset.json: found 3,000,000,000 bytes, expected at most" in capsys.readouterr().err
