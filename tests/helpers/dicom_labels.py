"""A small CT series and a label map with holes, islands and contacts, for tests of DICOM segmentations."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from medseg.labels.label_table import Labels
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

NAMES = Labels.from_names({"liver": 3, "kidney_left": 7, "Liver tumour": 12, "spleen": 300})
SUFFIXES = (".seg.dcm", ".labelmap.dcm", ".rtstruct.dcm")


def oblique_grid(axcodes: str = "LPS", shape: tuple[int, int, int] = (18, 14, 6)) -> Grid:
    """Return a grid that is turned by some degrees about two axes, with uneven spacings."""
    a, b = np.deg2rad([12.0, -7.0])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = [-31.25, 17.5, 402.125]
    return Volume(np.zeros((1, *shape)), Grid(shape, affine)).reoriented(axcodes).grid


def image_on(grid: Grid) -> Volume:
    """Return an image of whole numbers."""
    values = np.random.default_rng(0).integers(-1000, 1000, (1, *grid.shape))
    return Volume(values.astype(np.int16), grid)


def labels_on(grid: Grid) -> Volume:
    """Return a label map with a ring within a ring, islands of one voxel, a diagonal contact, and empty slices at the end."""
    data = np.zeros((1, *grid.shape), np.uint16)
    data[0, 1:10, 1:10, 1:4] = 3
    data[0, 3:8, 3:8, 1:4] = 0
    data[0, 5, 5, 1:4] = 3  # an island within the hole
    data[0, 2, 2, 2] = 12  # a hole that another label fills
    data[0, 12, 1:4, 2] = 7
    data[0, 13, 4, 2] = 7  # touches the former by a corner
    data[0, 17, 13, 4] = 300  # in the corner of the slice
    data[0, 15, 8, 1] = 300
    return Volume(data, grid, "label")


def run_validator(*command: str) -> str:
    """Return the output of a command-line program; tests that call it are marked with its name."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    return done.stdout + done.stderr


def texts_of(folder: Path) -> str:
    """Return the content of all files below a folder, as text."""
    return "".join(
        path.read_bytes().decode("latin-1") for path in sorted(folder.rglob("*")) if path.is_file()
    )
