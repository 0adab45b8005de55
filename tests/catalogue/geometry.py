"""Entries 33 to 45: positions, voxel sizes and shapes."""

from __future__ import annotations

import struct
from typing import Any

import nibabel as nib
import numpy as np

from medseg.check.self_test import copies_of
from medseg.inference.predictor import load as load_predictor
from medseg.io.files import read, read_grid
from tests.catalogue.bench import AFFINE, SHAPE, VOXELS, Bench
from tests.catalogue.promise import Answer, Broken, recipe


@recipe(33)
def no_codes(bench: Bench) -> list[Answer]:
    return bench.image(bench.coded())


@recipe(34)
def forms_apart(bench: Bench) -> list[Answer]:
    sform = AFFINE.copy()
    sform[:3, 3] = (10, -5, 3)
    path = bench.coded(qform=AFFINE, sform=sform)
    answers = bench.image(path)
    header = nib.load(bench.folder / "out1" / "a.nii.gz").header
    if not np.allclose(header.get_qform(), header.get_sform()):
        raise Broken("the output repeats the contradiction")
    return answers


@recipe(34, 1)
def forms_turned(bench: Bench) -> list[Answer]:
    return bench.image(bench.coded(qform=AFFINE, sform=np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE))


def _sform(number: int, variant: int, element: tuple[int, int], value: float) -> None:
    @recipe(number, variant)
    def other_sform(bench: Bench) -> list[Answer]:
        row, column = element
        path = bench.coded(qform=None, sform=AFFINE)
        return bench.image(bench.patched(280 + 16 * row + 4 * column, struct.pack("<f", value), path))


_sform(35, 0, (0, 0), 0.0)
_sform(36, 0, (0, 0), np.nan)


def _sheared(variant: int, column: tuple[float, float, float]) -> None:
    @recipe(37, variant)
    def sheared(bench: Bench) -> list[Answer]:
        affine = AFFINE.copy()
        affine[:3, 2] = column
        path = bench.coded(sform=affine, pixdim=nib.affines.voxel_sizes(affine))
        answers = bench.image(path)
        if answers[0].code == 0:
            written = nib.load(bench.folder / "out1" / "a.nii.gz").affine
            if not np.array_equal(written, nib.load(path).affine):
                raise Broken("another affine was written back")
        return answers


_sheared(0, (0.5, 0, 2))
_sheared(1, (0.002, 0, 2))
_sheared(2, (3.0, 0, 2))


@recipe(38)
def left_handed(bench: Bench) -> list[Answer]:
    path = bench.nifti("a.nii.gz", affine=np.diag([-1.0, 1.0, 2.0, 1.0]))
    predictor = load_predictor(bench.shared.model, device="cpu")
    image = read(path).cropped((0, 0, 0), (12, 10, 9))
    expected = predictor(image)
    for copy in copies_of(image):
        found = predictor(copy.image).reoriented(expected.grid.axcodes)
        if copy.follows_axes is False and not np.array_equal(found.data, expected.data):
            raise Broken(f"other labels: {copy.name}")
    return [bench.predict(path)]


@recipe(39)
def other_sizes(bench: Bench) -> list[Answer]:
    return bench.image(bench.coded(sform=np.diag([0.8, 0.8, 5.0, 1.0]), pixdim=(1, 1, 1)))


def _pixdim(variant: int, value: float) -> None:
    @recipe(40, variant)
    def without_sizes(bench: Bench) -> list[Answer]:
        path = bench.coded(pixdim=(value, 1, 1))
        return bench.image(path, options=["--orientation-from", "pixdim"])


_pixdim(0, 0.0)
_pixdim(1, -1.0)


def _in_units(bench: Bench, affine: Any, units: str) -> Any:
    image = nib.Nifti1Image(VOXELS, affine)
    image.header.set_xyzt_units(units)
    nib.save(image, bench.folder / "a.nii.gz")
    return bench.folder / "a.nii.gz"


@recipe(41)
def microns(bench: Bench) -> list[Answer]:
    path = _in_units(bench, np.diag([800.0, 800.0, 2000.0, 1.0]), "micron")
    if not np.allclose(read_grid(path).spacing, (0.8, 0.8, 2)):
        raise Broken("other voxel sizes than 0.8x0.8x2 mm")
    return [bench.predict(path)]


@recipe(41, 1)
def microns_as_mm(bench: Bench) -> list[Answer]:
    return bench.image(_in_units(bench, np.diag([800.0, 800.0, 2000.0, 1.0]), "mm"))


@recipe(42)
def vanishing_axes(bench: Bench) -> list[Answer]:
    return [bench.predict(bench.nifti("a.nii.gz", affine=np.diag([0.01, 0.01, 10.0, 1.0])))]


@recipe(42, 1)
def thin_voxels(bench: Bench) -> list[Answer]:
    data = np.random.default_rng(0).normal(0, 300, (120, 120, 4)).astype(np.int16)
    return bench.image(bench.nifti("a.nii.gz", data, np.diag([0.05, 0.05, 10.0, 1.0])))


@recipe(43)
def single_slices(bench: Bench) -> list[Answer]:
    predictor = load_predictor(bench.shared.model, device="cpu")
    for shape in ((9, 8, 1), (9, 1, 8), (1, 9, 8)):
        path = bench.nifti("single/a.nii.gz", VOXELS[: shape[0], : shape[1], : shape[2]])
        if predictor(read(path)).grid.shape != shape:
            raise Broken(f"{shape}: another shape was returned")
    return []


@recipe(44)
def small_images(bench: Bench) -> list[Answer]:
    paths = [
        bench.nifti(f"small{i}.nii.gz", VOXELS[:x, :y, :z])
        for i, (x, y, z) in enumerate(((5, 3, 2), (3, 2, 5), (2, 7, 3), (17, 19, 23)))
    ]
    predictor = load_predictor(bench.shared.model, device="cpu")
    for path in paths:
        if predictor(read(path)).grid.shape != read(path).grid.shape:
            raise Broken("another shape was returned")
    return [bench.predict(*paths)]


@recipe(45)
def far_away(bench: Bench) -> list[Answer]:
    affine = AFFINE.copy()
    affine[:3, 3] = 1e5
    path = bench.nifti("a.nii.gz", affine=affine)
    answers = [bench.predict(path)]
    found, near = read(bench.folder / "out1" / "a.nii.gz"), read(bench.folder / "out1" / "good.nii.gz")
    if not np.array_equal(found.data, near.data) or found.grid.shape != SHAPE:
        raise Broken("other labels than at the origin")
    return answers
