"""A dataset of two channels whose cases lack some files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import medseg
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

CHANNELS = ("CT", "T1")
SHAPE = (20, 18, 16)


def images_of(number: int) -> tuple[Volume, Volume, Volume]:
    """Return the CT, the T1 and the label map of a case: a bright block, seen in both channels."""
    rng = np.random.default_rng(number)
    label = np.zeros((1, *SHAPE), np.uint8)
    label[0, 4:12, 5:12, 4:12] = 1
    grid = Grid.from_spacing(SHAPE, (1, 1, 2))
    ct = (rng.normal(40, 10, label.shape) + 60 * label).astype(np.int16)
    t1 = (rng.normal(300, 40, label.shape) + 200 * label).astype(np.float32)
    return Volume(ct, grid), Volume(t1, grid), Volume(label, grid, "label")


def write_dataset(folder: Path, lacking: Mapping[int, int], cases: int = 6) -> Path:
    """Write a dataset in the layout of nnU-Net.

    Args:
        folder: Folder to create.
        lacking: Index of the channel that a case lacks, by the number of the case.
        cases: Number of cases.
    """
    for number in range(cases):
        *channels, label = images_of(number)
        for index, image in enumerate(channels):
            if lacking.get(number) != index:
                medseg.write(image, folder / "imagesTr" / f"case{number}_{index:04d}.nii.gz")
        medseg.write(label, folder / "labelsTr" / f"case{number}.nii.gz")
    description = {
        "channel_names": dict(enumerate(CHANNELS)),
        "labels": {"background": 0, "block": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
