"""Foreground in one of two thousand voxels, and no foreground in half of the cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import medseg
from medseg.data.settings import Augmentation
from medseg.errors import DataWarning
from medseg.experiment.experiment import Experiment
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from tests.helpers.patches import NO_AUGMENTATION

pytestmark = pytest.mark.slow

SIDE, LESION = 48, 4  # 64 of 110,592 voxels are 0.058 %


def sparse_case(number: int) -> tuple[Volume, Volume]:
    """Return noise with a large dark block of background and, in every other case, a small bright block of foreground."""
    rng = np.random.default_rng(number)
    image = rng.normal(0, 0.5, (1, SIDE, SIDE, SIDE)).astype(np.float32)
    label = np.zeros((1, SIDE, SIDE, SIDE), np.uint8)
    x, y, z = rng.integers(2, 18, 3)
    image[0, x : x + 14, y : y + 14, z : z + 14] -= 3
    if number % 2 == 0:
        x, y, z = rng.integers(34, SIDE - LESION - 2, 3)
        image[0, x : x + LESION, y : y + LESION, z : z + LESION] += 3
        label[0, x : x + LESION, y : y + LESION, z : z + LESION] = 1
    grid = Grid.from_spacing((SIDE,) * 3, (1, 1, 1))
    return Volume(image, grid), Volume(label, grid, "label")


def test_a_small_lesion_in_half_of_the_cases_is_learned(tmp_path: Path) -> None:
    """Batches have one patch, so that a third of a batch cannot be reserved for foreground."""
    rows = ["case\timage_MR\tlabel"]
    for number in range(6):
        for volume, name in zip(sparse_case(number), ("image", "label"), strict=True):
            medseg.write(volume, tmp_path / "data" / f"{number}_{name}.nii.gz")
        rows.append(f"case_{number}\t{number}_image.nii.gz\t{number}_label.nii.gz")
    (tmp_path / "data" / "cases.tsv").write_text("\n".join(rows) + "\n")
    experiment = Experiment.parse(
        {
            "data": {"path": str(tmp_path / "data"), "labels": {"lesion": 1}, "folds": 3},
            "preprocess": {"normalize": "none", "crop_to_nonzero": False},
            "model": {"name": "unet_3d", "channels": [8, 16], "num_blocks": 1, "norm": "none"},
            "patch": {"size": [16, 16, 16]},
            "augment": {**NO_AUGMENTATION, "noise_p": Augmentation().noise_p},
            "train": {
                "steps": 150, "batch_size": 1, "report_every": 150, "validation_batches": 0,
                "optimizer": {"name": "adamw", "lr": 0.01},
            },
        }
    )  # fmt: skip
    with pytest.warns(DataWarning, match="2 of 4 training cases with 0 labelled voxels"):
        trainer = experiment.trainer(tmp_path / "run")
    list(trainer)
    overlap = total = 0
    for number in (10, 11, 12):  # never seen, whole volumes
        windows = [
            torch.from_numpy(volume.data[0].reshape(3, 16, 3, 16, 3, 16))
            .movedim((0, 2, 4), (0, 1, 2))
            .flatten(0, 2)
            for volume in sparse_case(number)
        ]
        with torch.no_grad():
            found = trainer.model.eval()(windows[0][:, None]).argmax(1)
        overlap += 2 * int((found * windows[1]).sum())
        total += int(found.sum()) + int(windows[1].sum())
    assert overlap / total > 0.7, overlap / total
