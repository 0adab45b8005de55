from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.data.datasets.cases import ReadingOptions
from medseg.evaluation.label_maps.pairs import Pair
from medseg.io.files import write
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def test_a_trusted_reference_is_placed_on_the_grid_of_the_prediction(tmp_path: Path) -> None:
    data = np.zeros((1, 8, 8, 8), np.uint8)
    data[0, 2:5, 2:5, 2:5] = 1
    moved = np.roll(data, 1, axis=1)
    write(Volume(moved, Grid.from_spacing((8, 8, 8), (3, 3, 3)), "label"), tmp_path / "p.nii.gz")
    write(Volume(data, Grid.from_spacing((8, 8, 8), (1, 1, 1)), "label"), tmp_path / "r.nii.gz")
    pair = Pair(
        "a", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", reading=ReadingOptions(trust_label_array=True)
    )
    prediction, reference = pair.volumes()
    assert (
        prediction.spacing == reference.spacing == (3, 3, 3)
    )  # the header of the reference is the wrong one
    assert np.array_equal(reference.data, data)
