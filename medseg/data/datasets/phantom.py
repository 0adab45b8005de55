"""Phantoms: synthetic torsos with exact label maps, for demos and tests.

Organs are warped ellipsoids in patient coordinates (right is +x, anterior +y, superior +z), so that the left and the
right kidney differ only in position. The label map is exact by construction: a voxel belongs to the organ that contains
its centre. Gas, stomach, aorta and ribs resemble organs but have no label, which makes the task harder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medseg.data.datasets.cases import Dataset
from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError
from medseg.io.files import write
from medseg.labels.label_table import Labels
from medseg.storage.atomic import write_text
from medseg.volumes.grid import Grid, checked_spacing
from medseg.volumes.volume import Volume

Modality = Literal["ct", "mr"]
Field = NDArray[np.float32]

SHAPE = (96, 84, 44)
SPACING = (1.2, 1.2, 2.5)  # a third of an adult, so that a patch of 48 voxels holds all of it at 2.5 mm
PHANTOM_LABELS = Labels.from_names(
    {"background": 0, "liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "spine": 5},
    {
        "liver": (177, 102, 77),
        "spleen": (157, 108, 162),
        "right_kidney": (241, 172, 75),
        "left_kidney": (230, 214, 90),
        "spine": (226, 202, 134),
    },
)
_STORED_AS = ("RAS", "LPS", "LAS", "RPI", "SAR", "ASL")

# Numbers in the tissue map are indices of this tuple. The first six are also the label values.
_TISSUES = (
    *("air", "liver", "spleen", "right_kidney", "left_kidney", "spine"),
    *("fat", "muscle", "stomach", "aorta", "gas", "rib"),
)
_HU = (-1000, 125, 150, 205, 205, 340, -100, 45, 10, 250, -850, 450)
_HU_JITTER = (0, 14, 14, 18, 18, 50, 8, 6, 15, 20, 40, 60)
_MR_SIGNAL = (0, 430, 270, 340, 340, 520, 820, 170, 110, 50, 10, 80)

_MOST_PLACES = 200  # tries per ellipsoid
_BUMP = 0.11  # amplitude of each of three waves on an organ's surface, in squared radii

# Name, centre and radii (right, anterior, superior) in units of half the field of view.
_ORGANS = (
    ("spine", (0.0, -0.42, 0.0), (0.15, 0.17, 1.6)),
    ("right_kidney", (0.38, -0.32, -0.26), (0.17, 0.19, 0.38)),
    ("left_kidney", (-0.38, -0.33, -0.16), (0.17, 0.19, 0.38)),
    ("spleen", (-0.52, -0.16, 0.44), (0.20, 0.28, 0.36)),
    ("liver", (0.40, 0.06, 0.38), (0.34, 0.40, 0.42)),
    ("liver", (0.08, 0.24, 0.42), (0.38, 0.22, 0.24)),
    ("aorta", (-0.06, -0.17, 0.0), (0.055, 0.07, 1.6)),
    ("stomach", (-0.33, 0.22, 0.30), (0.20, 0.20, 0.25)),
    ("gas", (0.22, 0.30, -0.42), (0.14, 0.12, 0.14)),
    ("gas", (-0.30, 0.22, -0.48), (0.16, 0.12, 0.12)),
)


def phantom_case(
    seed: int | Sequence[int],
    modality: Modality = "ct",
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    oblique: bool = True,
    organs: Sequence[str] = PHANTOM_LABELS.names[1:],
) -> tuple[Volume, Volume]:
    """Create one image and its label map; equal arguments give equal results.

    Args:
        seed: One or several integers.
        modality: ``"ct"`` for Hounsfield units (int16), or ``"mr"`` for a signal in arbitrary units (float32) with a bias
            field and a scale that differs between cases.
        shape: Number of voxels towards right, anterior and superior. The torso fills the field of view regardless of its
            size in mm.
        spacing: Voxel size in mm along the same directions.
        oblique: Whether to rotate the scan by up to 10 degrees against the patient and to store it in one of six
            orientations, so that array axes may be permuted. Otherwise the array is RAS, with exactly `shape`.
        organs: Names of the tissues that have a label, besides those of `PHANTOM_LABELS` also ``stomach``, ``aorta``, ``gas`` and
            ``rib``. Their values are 1, 2 and so on.

    Returns:
        Image `(1, X, Y, Z)` and label map `(1, X, Y, Z)` uint8, by default with the values of `PHANTOM_LABELS`, on the same
        grid.

    Raises:
        DataError: The modality or an organ is unknown, or shape and spacing do not form a grid.

    Examples:
        >>> image, label = phantom_case(0, shape=(12, 10, 8), spacing=(30, 30, 30), oblique=False)
        >>> image.data.shape, label.data.shape, image.grid.matches(label.grid)
        ((1, 12, 10, 8), (1, 12, 10, 8), True)
    """
    if modality not in ("ct", "mr"):
        raise DataError(f"modality: found {modality!r}, expected 'ct' or 'mr'. Choose one.")
    if unknown := [name for name in organs if name not in _TISSUES[1:]]:
        raise DataError(
            f"organs: found {unknown[0]!r}, expected some of {', '.join(_TISSUES[1:])}. Correct it."
        )
    rng = np.random.default_rng(seed)
    spacing = checked_spacing(spacing)
    extent = np.array(shape) * np.array(spacing) / 2
    grid = _placed(tuple(shape), spacing, rng, oblique)
    tissues = _tissue_map(_body_coordinates(grid, extent, rng), rng)
    values = _ct(tissues, rng) if modality == "ct" else _mr(tissues, rng)
    values_of = {name: number for number, name in enumerate(organs, 1)}
    labels = np.array([values_of.get(name, 0) for name in _TISSUES], dtype=np.uint8)[tissues]
    stored_as = _STORED_AS[rng.integers(len(_STORED_AS))] if oblique else "RAS"
    image, label = Volume(values[None], grid), Volume(labels[None], grid, "label")
    return image.reoriented(stored_as), label.reoriented(stored_as)


def write_phantoms(
    folder: str | Path,
    cases: int = 12,
    modality: Modality = "ct",
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    oblique: bool = True,
    organs: Sequence[str] = PHANTOM_LABELS.names[1:],
) -> Dataset:
    """Write a dataset of phantoms in the layout of the Medical Segmentation Decathlon, and read it.

    Equal arguments write equal bytes, so calling it again is safe.

    Args:
        folder: Folder for ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        cases: Number of cases; case i depends only on `seed`, i and the arguments below.
        modality: ``"ct"`` or ``"mr"``; see `phantom_case` for this and the following arguments.
        seed: Seed of the dataset.
        shape: Number of voxels towards right, anterior and superior.
        spacing: Voxel size in mm along the same directions.
        oblique: Whether scans are rotated and stored in several orientations.
        organs: Names of the tissues that have a label.

    Returns:
        The dataset as `read_dataset` reads it.

    Raises:
        DataError: The folder contains another dataset, or cannot be written.
    """
    folder = Path(folder)
    description = folder / "dataset.json"
    name = f"phantom_{modality}"
    if description.exists() and read_dataset(folder).name != name:
        raise DataError(
            f"{folder}: found another dataset, expected {name} or an empty folder. Choose another folder."
        )
    entries = []
    for index in range(cases):
        image, label = phantom_case((seed, index), modality, shape, spacing, oblique, organs)
        file = f"phantom_{index:03d}.nii.gz"
        write(image, folder / "imagesTr" / file)
        write(label, folder / "labelsTr" / file)
        entries.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    write_text(description, json.dumps(_description(name, modality, organs, entries), indent=1) + "\n")
    return read_dataset(folder)


def instance_phantom(
    seed: int | Sequence[int],
    count: int = 30,
    shape: Sequence[int] = (64, 64, 64),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    radii: tuple[float, float] = (4.5, 9.0),
) -> tuple[Volume, Volume]:
    """Create an image of ellipsoids that touch each other, and its instance map; equal arguments give equal results.

    Every ellipsoid after the first touches an earlier one. All are equally bright, so only their shape tells them apart.

    Args:
        seed: One or several integers.
        count: Number of ellipsoids; there may be fewer if they do not fit.
        shape: Number of voxels towards right, anterior and superior.
        spacing: Voxel size in mm along the same directions.
        radii: Smallest and largest radius in mm.

    Returns:
        Image `(1, X, Y, Z)` float32 and instance map `(1, X, Y, Z)` int32 on the same grid.

    Raises:
        DataError: Shape and spacing do not form a grid.

    Examples:
        >>> image, ids = instance_phantom(0, count=3, shape=(32, 32, 24))
        >>> image.data.shape, int(ids.data.max())
        ((1, 32, 32, 24), 3)
    """
    rng = np.random.default_rng(seed)
    spacing = checked_spacing(spacing)
    extent = np.array(shape) * np.array(spacing)
    centres: list[NDArray[np.float64]] = []
    shapes: list[NDArray[np.float64]] = []  # matrices that map ellipsoids to the unit ball
    for _ in range(_MOST_PLACES * count):
        if len(centres) == count:
            break
        axes = Rotation.random(random_state=rng).as_matrix()
        unit = axes.T / rng.uniform(*radii, 3)[:, None]
        if centres:
            other = rng.integers(len(centres))
            way = rng.normal(size=3)
            reach = 1 / np.linalg.norm(unit @ way) + 1 / np.linalg.norm(shapes[other] @ way)
            centre = centres[other] + 0.97 * reach * way
        else:
            centre = extent / 2
        near = (np.linalg.norm(one @ (centre - c)) < 1.4 for c, one in zip(centres, shapes, strict=True))
        own = (np.linalg.norm(unit @ (centre - c)) < 1.4 for c in centres)
        if (centre < radii[0]).any() or (centre > extent - radii[0]).any() or any(near) or any(own):
            continue
        centres.append(centre)
        shapes.append(unit)
    index = np.indices(tuple(shape)).reshape(3, -1)
    places = (index + 0.5) * np.array(spacing)[:, None]
    nearest, ids = np.ones(places.shape[1]), np.zeros(places.shape[1], np.int32)
    for number, (centre, unit) in enumerate(zip(centres, shapes, strict=True), start=1):
        distance = np.linalg.norm(unit @ (places - centre[:, None]), axis=0)
        ids[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    bright = ndimage.gaussian_filter((ids > 0).reshape(tuple(shape)).astype(np.float32), 0.7)
    image = 100 + 60 * bright + _noise(bright.shape, rng, sigma=15, grain=0.5)
    grid = Grid.from_spacing(shape, spacing)
    return Volume(image.astype(np.float32)[None], grid), Volume(ids.reshape(1, *shape), grid, "label")


def write_instance_phantoms(
    folder: str | Path,
    cases: int = 12,
    seed: int = 0,
    count: int = 30,
    shape: Sequence[int] = (64, 64, 64),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    radii: tuple[float, float] = (4.5, 9.0),
) -> Dataset:
    """Write a dataset of `instance_phantom` in the layout of the Decathlon, which states that its maps hold instances.

    Args:
        folder: Folder for ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        cases: Number of cases; case i depends only on `seed`, i and the arguments below.
        seed: Seed of the dataset.
        count: Number of ellipsoids; see `instance_phantom` for this and the following arguments.
        shape: Number of voxels towards right, anterior and superior.
        spacing: Voxel size in mm along the same directions.
        radii: Smallest and largest radius in mm.

    Returns:
        The dataset as `read_dataset` reads it.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = Path(folder)
    entries = []
    for index in range(cases):
        image, ids = instance_phantom((seed, index), count, shape, spacing, radii)
        file = f"phantom_{index:03d}.nii.gz"
        write(image, folder / "imagesTr" / file)
        write(ids, folder / "labelsTr" / file)
        entries.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    description = _description("phantom_instances", "mr", ["ellipsoid"], entries) | {"instances": True}
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")
    return read_dataset(folder)


def _description(
    name: str, modality: Modality, organs: Sequence[str], entries: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "name": name,
        "description": "Synthetic images; no patient was scanned",
        "tensorImageSize": "3D",
        "modality": {"0": modality.upper()},
        "labels": {str(value): label for value, label in enumerate(("background", *organs))},
        "numTraining": len(entries),
        "numTest": 0,
        "training": entries,
        "test": [],
    }


def _placed(
    shape: tuple[int, ...], spacing: Sequence[float], rng: np.random.Generator, oblique: bool
) -> Grid:
    """Return a grid of this shape and spacing with its centre at a random point near the origin of the world."""
    tilt = Rotation.from_euler("xyz", rng.uniform(-10, 10, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = (tilt if oblique else np.eye(3)) @ np.diag(spacing)
    centre = rng.uniform(-60, 60, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, np.round(affine, 4))  # type: ignore[arg-type]


def _body_coordinates(grid: Grid, extent: NDArray[np.float64], rng: np.random.Generator) -> Field:
    """Return the warped position `(3, X, Y, Z)` of every voxel in the patient, in units of half the field of view.

    The patient is near the centre of the scan, rotated by up to 5 degrees per axis. The warp is a sum of sine waves that
    are long compared with the organs, so that it bends organs without folding them.
    """
    axes = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in grid.shape), indexing="ij")
    middle = (np.array(grid.shape) - 1) / 2
    index = np.stack(axes).reshape(3, -1) - middle.astype(np.float32)[:, None]
    offset = _product(grid.affine[:3, :3].astype(np.float32), index)  # mm from the centre
    pose = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    scale = extent * rng.uniform(0.94, 1.02, 3)
    shift = rng.uniform(-0.04, 0.04, (3, 1)).astype(np.float32)
    points = _product((pose / scale[:, None]).astype(np.float32), offset) + shift
    waves = rng.normal(size=(6, 3)).astype(np.float32) * 1.8
    phases = rng.uniform(0, 2 * np.pi, (6, 1)).astype(np.float32)
    amplitudes = rng.normal(size=(3, 6)).astype(np.float32) * 0.022
    warped = points + _product(amplitudes, np.sin(_product(waves, points) + phases))
    return np.asarray(warped.reshape(3, *grid.shape), dtype=np.float32)


def _tissue_map(points: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the tissue number of every voxel; where organs overlap, the one listed first in `_ORGANS` wins."""
    girth = rng.uniform(0.98, 1.08)
    flat = np.array([0.88 * girth, 0.74 * girth, 2.4], dtype=np.float32)
    depth = np.sqrt(((points / flat[:, None, None, None]) ** 2).sum(0))  # 1 at the skin
    fat = rng.uniform(0.06, 0.16)
    tissues = np.zeros(points.shape[1:], dtype=np.uint8)
    tissues[depth < 1] = _TISSUES.index("fat")
    inside = depth < 1 - fat
    tissues[inside] = _TISSUES.index("muscle")
    free = depth < 1 - fat - 0.05  # organs do not touch the body wall
    for name, centre, radii in _ORGANS:
        organ = _ellipsoid(points, free, np.array(centre), np.array(radii), rng)
        tissues[organ] = _TISSUES.index(name)
        free &= ~organ
    wall = inside & (depth > 1 - fat - 0.05) & (points[2] > -0.1)
    rows = np.sin(points[2] * 22 + 3 * points[1] + rng.uniform(0, 6)) > 0.35
    tissues[wall & rows] = _TISSUES.index("rib")
    return tissues


def _ellipsoid(
    points: Field,
    free: NDArray[np.bool_],
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return the free voxels in a bumpy ellipsoid with random variations of its centre, radii and rotation."""
    long = radii[2] > 1  # spine and aorta run through the whole field of view and hardly tilt
    tilt = Rotation.from_euler("xyz", rng.uniform(-1, 1, 3) * (3 if long else 14), degrees=True).as_matrix()
    centre = centre + rng.uniform(-0.035, 0.035, 3)
    radii = radii * rng.uniform(0.86, 1.14, 3)
    waves = (rng.normal(size=(3, 3)) * (1.2 if long else 2.0)).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, (3, 1)).astype(np.float32)
    offset = points - centre.astype(np.float32)[:, None, None, None]
    reach = np.sqrt(1 + 3 * _BUMP) * radii.max()
    result: NDArray[np.bool_] = free & ((offset**2).sum(0) < reach**2)  # voxels farther away cannot be inside
    local = _product((tilt / radii[:, None]).astype(np.float32), offset[:, result])
    bumps = np.sin(_product(waves, local) + phases).sum(0)
    result[result] = (local**2).sum(0) < 1 + _BUMP * bumps
    return result


def _product(matrix: Field, vectors: Field) -> Field:
    """Return the matrix `(m, n)` times vectors `(n, count)`; unlike BLAS, einsum sums in the same order on all machines."""
    return np.asarray(np.einsum("mn,nc->mc", matrix, vectors))


def _ct(tissues: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return Hounsfield units: one density per tissue and case, blurred like partial volume, with correlated noise."""
    densities = np.array(_HU) + rng.normal(size=len(_HU)) * np.array(_HU_JITTER)
    kidney = _TISSUES.index("left_kidney")
    densities[kidney] = densities[kidney - 1]  # both kidneys have the same contrast enhancement
    image = ndimage.gaussian_filter(densities.astype(np.float32)[tissues], 0.55)
    image += _noise(tissues.shape, rng, sigma=rng.uniform(11, 19), grain=0.5)
    return np.asarray(np.clip(np.round(image), -1024, 3071), dtype=np.int16)


def _mr(tissues: NDArray[np.uint8], rng: np.random.Generator) -> Field:
    """Return a magnitude signal in arbitrary units: tissue contrast times a smooth bias field, with Rician noise.

    Rician noise is that of the magnitude of a complex signal with Gaussian noise in both parts (Gudbjartsson and Patz
    1995).
    """
    signal = np.array(_MR_SIGNAL) * rng.uniform(0.88, 1.12, len(_MR_SIGNAL))
    kidney = _TISSUES.index("left_kidney")
    signal[kidney] = signal[kidney - 1]
    image = ndimage.gaussian_filter(signal.astype(np.float32)[tissues], 0.55)
    ramps = [np.linspace(-1, 1, size, dtype=np.float32) for size in tissues.shape]
    x, y, z = np.meshgrid(*ramps, indexing="ij")
    a, b, c, d, e = rng.normal(size=5) * 0.16
    image = image * np.exp(a * x + b * y + c * z + d * x * y + e * z * z)
    sigma = rng.uniform(14, 26)
    real = image + rng.normal(size=image.shape) * sigma
    imaginary = rng.normal(size=image.shape) * sigma
    return np.asarray(np.hypot(real, imaginary) * rng.uniform(0.3, 3.0), dtype=np.float32)


def _noise(shape: tuple[int, ...], rng: np.random.Generator, sigma: float, grain: float) -> Field:
    """Return Gaussian noise with standard deviation `sigma`, correlated over about `grain` voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), grain)
    return np.asarray(noise * (sigma / noise.std()), dtype=np.float32)
