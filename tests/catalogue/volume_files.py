"""Entries 1 to 32: damaged and unusual volume files."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medseg.io.files import read
from medseg.runtime.memory import process_memory
from tests.catalogue.bench import AFFINE, VOXELS, Bench
from tests.catalogue.promise import Answer, Broken, recipe


def half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@recipe(1)
def first_half_packed(bench: Bench) -> list[Answer]:
    return bench.image(half(bench.nifti("a.nii.gz")))


@recipe(2)
def first_half(bench: Bench) -> list[Answer]:
    return bench.image(half(bench.nifti("a.nii")))


@recipe(3)
def wrong_checksum(bench: Bench) -> list[Answer]:
    path = bench.nifti("a.nii.gz")
    path.write_bytes(path.read_bytes()[:-8] + bytes(4) + path.read_bytes()[-4:])
    return bench.image(path)


@recipe(3, 1)
def flipped_byte(bench: Bench) -> list[Answer]:
    path = bench.nifti("a.nii")
    packed = bytearray(gzip.compress(path.read_bytes(), 0))
    packed[9000] ^= 1
    path = bench.folder / "a.nii.gz"
    path.write_bytes(packed)
    return bench.image(path)


@recipe(4)
def empty(bench: Bench) -> list[Answer]:
    (bench.folder / "a.nii.gz").write_bytes(b"")
    return bench.image(bench.folder / "a.nii.gz")


def _other_content(variant: int, content: bytes) -> None:
    @recipe(5, variant)
    def not_an_image(bench: Bench) -> list[Answer]:
        (bench.folder / "a.nii.gz").write_bytes(content)
        return bench.image(bench.folder / "a.nii.gz")


_other_content(0, b"some notes about the patient\n" * 20)
_other_content(1, b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
_other_content(2, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
_other_content(4, json.dumps({"error": "not found", "code": 404}).encode())


@recipe(5, 3)
def archive(bench: Bench) -> list[Answer]:
    with zipfile.ZipFile(bench.folder / "a.nii.gz", "w") as packed:
        packed.writestr("a.nii", VOXELS.tobytes())
    return bench.image(bench.folder / "a.nii.gz")


@recipe(6)
def packed_named_raw(bench: Bench) -> list[Answer]:
    return bench.image(bench.nifti("b.nii.gz").rename(bench.folder / "a.nii"))


@recipe(7)
def raw_named_packed(bench: Bench) -> list[Answer]:
    return bench.image(bench.nifti("b.nii").rename(bench.folder / "a.nii.gz"))


def _patched(number: int, variant: int, offset: int, content: bytes) -> None:
    @recipe(number, variant)
    def patched_header(bench: Bench) -> list[Answer]:
        return bench.image(bench.patched(offset, content))


_patched(8, 0, 344, b"xxxx")
_patched(9, 0, 0, struct.pack("<i", 999))
_patched(14, 0, 40, struct.pack("<4h", 3, 30000, 30000, 30000))
_patched(16, 0, 42, struct.pack("<h", 0))
_patched(16, 1, 42, struct.pack("<h", -20))
_patched(17, 0, 40, struct.pack("<h", 9))
_patched(17, 1, 40, struct.pack("<h", 0))
_patched(18, 0, 70, struct.pack("<h", 9999))
_patched(18, 1, 72, struct.pack("<h", 8))
_patched(19, 0, 108, struct.pack("<f", np.nan))
_patched(19, 1, 108, struct.pack("<f", -352))
_patched(19, 2, 108, struct.pack("<f", 1e9))
_patched(30, 0, 112, struct.pack("<f", np.inf))


@recipe(10)
def big_endian(bench: Bench) -> list[Answer]:
    header = nib.Nifti1Header(endianness=">")
    path = bench.folder / "a.nii"
    nib.save(nib.Nifti1Image(VOXELS.astype(">i2"), AFFINE, header), path)
    if path.read_bytes()[:4] != struct.pack(">i", 348):
        raise Broken("the file is not big-endian")
    answers = bench.read(path)
    written = (bench.folder / "out1" / "a.nii.gz").read_bytes()
    if gzip.decompress(written)[:4] != struct.pack("<i", 348):
        raise Broken("the output is not little-endian")
    return answers


@recipe(11)
def nifti2(bench: Bench) -> list[Answer]:
    return bench.read(bench.nifti("a.nii", kind=nib.Nifti2Image))


@recipe(12)
def analyze(bench: Bench) -> list[Answer]:
    nib.save(nib.AnalyzeImage(VOXELS, AFFINE), bench.folder / "a.hdr")
    return bench.image(bench.folder / "a.hdr")


def _truncated(variant: int, name: str) -> None:
    @recipe(13, variant)
    def truncated(bench: Bench) -> list[Answer]:
        path = bench.folder / name
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T.copy()), str(path))
        return bench.image(half(path))


_truncated(0, "a.nrrd")
_truncated(1, "a.mha")


@recipe(13, 2)
def truncated_mgz(bench: Bench) -> list[Answer]:
    nib.save(nib.MGHImage(VOXELS, AFFINE), bench.folder / "a.mgz")
    return bench.image(half(bench.folder / "a.mgz"))


@recipe(15)
def bomb(bench: Bench) -> list[Answer]:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1024, 1024, 1024))
    header.set_sform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = bench.folder / "a.nii.gz"
    zeros = gzip.compress(
        bytes(1 << 24), compresslevel=1
    )  # gzip data may have many members, so these are compressed once
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + 128 * zeros)
    # Enough for a small image in this process, and not enough for 2 GiB more.
    return [bench.predict(path, options=["--max-memory", f"{process_memory() + 1_500_000_000}B"])]


@recipe(20)
def broken_extension(bench: Bench) -> list[Answer]:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    path = bench.folder / "a.nii"
    nib.save(image, path)
    return bench.image(bench.patched(352, struct.pack("<i", 1 << 30), path))


@recipe(21)
def trailing_bytes(bench: Bench) -> list[Answer]:
    path = bench.nifti()
    path.write_bytes(path.read_bytes() + bytes(1024))
    return bench.image(path)


@recipe(21, 1)
def garbage_after_gzip(bench: Bench) -> list[Answer]:
    path = bench.nifti("a.nii.gz")
    path.write_bytes(path.read_bytes() + b"garbage")
    return bench.image(path)


def _shaped(number: int, data: Any) -> None:
    @recipe(number)
    def other_shape(bench: Bench) -> list[Answer]:
        return [bench.predict(bench.nifti("a.nii.gz", data))]


_shaped(23, np.stack([VOXELS] * 3, -1))
_shaped(24, np.stack([VOXELS] * 3, -1)[..., None, :])
_shaped(25, VOXELS[..., 0])
_shaped(26, np.zeros((20, 22, 24), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


@recipe(22)
def one_volume(bench: Bench) -> list[Answer]:
    return bench.read(bench.nifti("a.nii.gz", VOXELS[..., None]))


@recipe(27)
def complex_voxels(bench: Bench) -> list[Answer]:
    return bench.image(bench.nifti("a.nii.gz", VOXELS.astype(np.complex64)))


@recipe(28)
def not_finite(bench: Bench) -> list[Answer]:
    data = VOXELS.astype(np.float32)
    data[1, 2, 3], data[4, 5, 6] = np.nan, np.inf
    return bench.image(bench.nifti("a.nii.gz", data))


@recipe(29)
def constant(bench: Bench) -> list[Answer]:
    answers = bench.image(bench.nifti("a.nii.gz", np.zeros_like(VOXELS)))
    if read(bench.folder / "out1" / "a.nii.gz").data.any():
        raise Broken("labels in an image without contrast")
    return answers


def _unscaled(variant: int, content: bytes) -> None:
    @recipe(30, variant)
    def no_scaling(bench: Bench) -> list[Answer]:
        return bench.read(bench.patched(112, content))


_unscaled(1, struct.pack("<2f", 0, 0))
_unscaled(2, struct.pack("<2f", np.nan, np.nan))


@recipe(31)
def large_integers(bench: Bench) -> list[Answer]:
    data = VOXELS.astype(np.uint64)
    data[:] = np.arange(data.size).reshape(data.shape)
    data[3, 3, 3] = 18_000_000_000_000_000_000
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=np.uint64), bench.folder / "a.nii.gz")
    return bench.image(bench.folder / "a.nii.gz")


@recipe(32)
def directory(bench: Bench) -> list[Answer]:
    (bench.folder / "a.nii.gz").mkdir()
    return [
        bench.run(
            "predict",
            bench.shared.model,
            bench.folder / "a.nii.gz",
            "-o",
            bench.folder / "o",
            file="a.nii.gz",
        )
    ]


@recipe(32, 1)
def dangling_link(bench: Bench) -> list[Answer]:
    (bench.folder / "a.nii.gz").symlink_to("nowhere.nii.gz")
    return [bench.check(bench.folder / "a.nii.gz"), bench.predict(bench.folder / "a.nii.gz")]


@recipe(32, 2)
def pipe(bench: Bench) -> list[Answer]:
    os.mkfifo(bench.folder / "a.nii.gz")
    return bench.image(bench.folder / "a.nii.gz")


@recipe(32, 3)
def missing(bench: Bench) -> list[Answer]:
    path = bench.folder / "a.nii.gz"
    run = bench.run("predict", bench.shared.model, path, "-o", bench.folder / "o", file=path)
    return [run, bench.check(path)]
