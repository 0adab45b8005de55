"""From a volume to instances on its file's grid, written and measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.data.slices2d.slice_settings import SliceSettings
from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError
from medseg.evaluation.instances.pairs import evaluate_instances
from medseg.inference.instances.image_instances import find_instances, onto_grid, without_covered
from medseg.io.companions.instance_files import write_instances
from medseg.io.files import write
from medseg.labels.instances import Instances
from medseg.labels.label_table import Labels
from medseg.models.base import Model
from medseg.models.volumetric.slicewise import SliceWise
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


class Threshold(Model):
    """Finds the connected parts of what is brighter than a half; brighter ones score higher."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2, in_channels=1, num_classes=2)

    def instances(self, image):
        found = []
        for one in image[:, 0]:
            parts, count = ndimage.label(one.numpy() > 0.5)
            masks = torch.from_numpy(np.stack([parts == k for k in range(count + 1)])[1:])
            scores = torch.tensor([float(one[mask].mean()) for mask in masks])
            found.append(SimpleNamespace(masks=masks, classes=torch.ones(count), scores=scores))
        return found


@pytest.fixture
def balls():
    """Image and ids of three balls in a RAS volume of `(40, 36, 24)` voxels of 1.5 mm."""
    points = np.stack(np.meshgrid(*map(np.arange, (40, 36, 24)), indexing="ij"))
    ids = np.zeros((40, 36, 24), np.int32)
    for number, middle in enumerate([(9, 9, 8), (28, 10, 14), (20, 26, 12)], start=1):
        ids[((points - np.array(middle)[:, None, None, None]) ** 2).sum(0) < 49] = number
    grid = Grid.from_spacing(ids.shape, (1.5, 1.5, 1.5))
    return torch.from_numpy(np.array([0, 0.6, 0.7, 0.8], np.float32)[ids])[None], Volume(
        ids[None], grid, "label"
    )


@pytest.mark.parametrize("radiological_view", [False, True])
def test_balls_are_found_and_written_on_the_files_grid(balls, tmp_path, radiological_view):
    image, reference = balls
    view = SliceView(SliceSettings(radiological_view=radiological_view))
    found = find_instances(SliceWise(Threshold(), view), image)
    assert np.array_equal(found.to_label_map() > 0, reference.data[0] > 0)
    assert sorted(found.scores.tolist()) == pytest.approx([0.6, 0.7, 0.8])
    fine = Grid.from_spacing((60, 54, 30), (1.0, 1.0, 1.2)).reoriented("LPI")
    on_file = onto_grid(found, reference.grid, fine)
    assert on_file.shape == fine.shape
    like = Volume(np.zeros((1, *fine.shape), np.float32), fine)
    write_instances(on_file, like, tmp_path / "p" / "a.nii.gz", Labels.from_names({"ball": 4}))
    write(reference.resampled(like=fine), tmp_path / "r" / "a.nii.gz")
    (tmp_path / "r" / "a.tsv").write_text("id\tlabel_value\n1\t4\n2\t4\n3\t4\n")
    table = evaluate_instances(tmp_path / "p", tmp_path / "r", Labels.from_names({"ball": 4}))
    figures = table.pooled()["ball"]
    assert (figures.tp, figures.fp, figures.ap50) == (3, 0, pytest.approx(1))
    assert figures.sq > 0.9


def test_instances_without_voxels_are_left_out(balls):
    ids = np.zeros((8, 8, 8), np.int32)
    ids[:4, :4, :4], ids[7, 7, 7] = 1, 2
    found = Instances.from_map(ids, scores={1: 0.25, 2: 0.5})
    coarse = onto_grid(
        found, Grid.from_spacing((8, 8, 8)), Grid.from_spacing((8, 8, 8)).with_shape((2, 2, 2))
    )
    assert (len(coarse), coarse.scores.tolist()) == (1, [0.25])


def test_a_dense_model_finds_none(balls):
    class Dense(Model):
        pass

    with pytest.raises(ModelError, match="finds no instances"):
        find_instances(SliceWise(Dense(spatial_dims=2, in_channels=1, num_classes=2)), balls[0])


def test_instances_covered_by_better_ones_are_left_out():
    masks = np.zeros((4, 10, 10), bool)
    masks[0, :6, :6] = True  # the best
    masks[1, :7, :6] = True  # the same object once more: one row is left
    masks[2, 4:10, :6] = True  # two of its six rows are taken: it stays
    masks[3, 9:, 9:] = True
    found = Instances.from_masks(masks, scores=[0.9, 0.8, 0.7, 0.1])
    assert without_covered(found).scores.tolist() == [0.9, 0.7, 0.1]
    assert without_covered(found, least=0.7).scores.tolist() == [0.9, 0.1]
    assert len(without_covered(Instances.empty((3, 3)))) == 0
