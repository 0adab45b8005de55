"""Entries 71 to 85: DICOM series."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from medseg.errors import MedsegError, collected_warnings
from medseg.io.files import read as read_loudly
from medseg.storage.archives import extract
from medseg.volumes.volume import Volume
from tests.catalogue.bench import Bench
from tests.catalogue.promise import Answer, Broken, recipe
from tests.helpers.dicom_series import Series


def read(folder: Path) -> Volume:
    """Read a series; what it warns of is left to the command."""
    with collected_warnings():
        return read_loudly(folder)


def series(bench: Bench, count: int = 20, **options: float) -> Series:
    return Series(bench.folder / "ct", count, **options)


def answers(bench: Bench, one: Series) -> list[Answer]:
    folder = one.folder if one.folder.exists() else one.save()
    return [bench.predict(folder), bench.check(folder)]


def _changed(number: int, variant: int = 0) -> Callable[[Callable[[Series], None]], Callable[[Series], None]]:
    """Register a series of 20 slices that a function changes."""

    def register(change: Callable[[Series], None]) -> Callable[[Series], None]:
        @recipe(number, variant)
        def changed(bench: Bench) -> list[Answer]:
            one = series(bench)
            change(one)
            return answers(bench, one)

        return change

    return register


@_changed(71)
def missing_slice(one: Series) -> None:
    del one.slices[9]


@recipe(72)
def noise(bench: Bench) -> list[Answer]:
    one, rng = series(bench), np.random.default_rng(0)
    for each in one.slices:
        each.ImagePositionPatient = [float(x) + rng.normal(0, 1e-5) for x in each.ImagePositionPatient]
    one.save()
    if not np.allclose(read(one.folder).grid.spacing, (0.9, 0.7, 2.5), atol=1e-4):
        raise Broken("other voxel sizes than 0.9x0.7x2.5 mm")
    return answers(bench, one)


@recipe(73)
def same_slice_twice(bench: Bench) -> list[Answer]:
    one = series(bench)
    one.save()
    (one.folder / "copy.dcm").write_bytes((one.folder / "63.dcm").read_bytes())
    if read(one.folder).grid.shape[2] != 20:
        raise Broken("another number of slices than 20")
    return answers(bench, one)


@_changed(73, 1)
def same_position_twice(one: Series) -> None:
    one.slices[9].ImagePositionPatient = one.slices[10].ImagePositionPatient


@_changed(74)
def two_series(one: Series) -> None:
    other = generate_uid()
    for each in one.slices[12:]:
        each.SeriesInstanceUID = other


@_changed(74, 1)
def other_orientation(one: Series) -> None:
    one.slices[5].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


@recipe(75)
def tilted(bench: Bench) -> list[Answer]:
    one = series(bench, tilt=0.5)
    one.save()
    if abs(read(one.folder).grid.spacing[2] - np.hypot(2.5, 0.5)) > 1e-3:
        raise Broken("the shear is not kept")
    return answers(bench, one)


@recipe(76)
def slopes(bench: Bench) -> list[Answer]:
    one = series(bench)
    for number, each in enumerate(one.slices):
        each.RescaleSlope = 1 + number % 2
    one.save()
    data = read(one.folder).data[0]
    expected = one.array * (1 + np.arange(20) % 2)[:, None, None] - 24
    if not np.array_equal(np.moveaxis(data, -1, 0), np.swapaxes(expected, 1, 2)):
        raise Broken("other intensities")
    return answers(bench, one)


@recipe(77)
def no_decoder(bench: Bench) -> list[Answer]:
    one = series(bench)
    one.save()
    for path in one.folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.99", 1))
    return answers(bench, one)


def _without(variant: int, tag: str) -> None:
    @_changed(78, variant)
    def without_tag(one: Series) -> None:
        for each in one.slices:
            delattr(each, tag)


for _variant, _tag in enumerate(("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")):
    _without(_variant, _tag)


@_changed(79)
def other_size(one: Series) -> None:
    each = one.slices[7]
    each.Rows, each.Columns = 3, 8
    each.PixelData = one.array[7, :3].tobytes()


def _cut(variant: int, name: str, size: int) -> None:
    @recipe(80, variant)
    def truncated(bench: Bench) -> list[Answer]:
        one = series(bench)
        one.save()
        path = one.folder / name
        path.write_bytes(path.read_bytes()[:size])
        return [bench.predict(one.folder), bench.check(one.folder)]


_cut(0, "63.dcm", -60)
_cut(1, "33.dcm", 100)
_cut(2, "00.dcm", 0)


@recipe(81)
def multi_frame(bench: Bench) -> list[Answer]:
    one = series(bench, 1)
    frames = one.slices[0]
    frames.SOPClassUID = frames.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    frames.NumberOfFrames = 12
    frames.PixelData = np.zeros((12, 6, 8), np.int16).tobytes()
    for tag in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(frames, tag)
    return answers(bench, one)


@recipe(82)
def other_files(bench: Bench) -> list[Answer]:
    one = series(bench)
    one.save()
    (one.folder / "readme.dcm").write_text("notes")
    (one.folder / "report.pdf").write_bytes(b"%PDF-1.4")
    return answers(bench, one)


@recipe(83)
def dicomdir(bench: Bench) -> list[Answer]:
    one = Series(bench.folder / "disk" / "ct", 20)
    one.save()
    (bench.folder / "disk" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(40))
    return [bench.predict(bench.folder / "disk")]


@recipe(83, 1)
def nested(bench: Bench) -> list[Answer]:
    one = series(bench)
    inner = Dataset()
    inner.PatientComments = "x"
    for _ in range(300):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        inner = outer
    one.slices[4].ReferencedImageSequence = Sequence([inner])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        one.save()
    finally:
        sys.setrecursionlimit(limit)
    return answers(bench, one)


def _archive(variant: int, fill: Callable[[zipfile.ZipFile], None]) -> None:
    @recipe(84, variant)
    def hostile_zip(bench: Bench) -> Answer:
        path = bench.folder / "ct.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ct/00.dcm", b"x")
            fill(archive)
        before = set(bench.folder.parent.rglob("*"))
        try:
            extract(path, bench.folder / "out")
        except MedsegError as error:
            if set(bench.folder.parent.rglob("*")) != before:
                raise Broken("something was left") from None
            return Answer(1, f"medseg import: found {error}", "ct.zip")
        raise Broken("extracted")


def _outside(archive: zipfile.ZipFile) -> None:
    archive.writestr("../x", b"x")


def _link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("ct/link")
    member.external_attr = 0o120777 << 16
    archive.writestr(member, "/etc/passwd")


def _large(archive: zipfile.ZipFile) -> None:
    with archive.open("ct/large", "w", force_zip64=True) as member:
        block = bytes(1 << 26)
        member.write(block)
    archive.getinfo("ct/large").file_size = 10**10


for _variant, _fill in enumerate((_outside, _link, _large)):
    _archive(_variant, _fill)


@recipe(85)
def single_slice(bench: Bench) -> list[Answer]:
    one = series(bench, 1)
    one.slices[0].SliceThickness = 3
    one.save()
    if read(one.folder).grid.spacing[2] != 3:
        raise Broken("another voxel size than 3 mm")
    return answers(bench, one)
