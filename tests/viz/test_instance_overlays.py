"""Contours of objects over slices."""

from __future__ import annotations

import numpy as np

from medseg.labels.colours import distinct_colour
from medseg.viz.instance_overlays import contours, instance_figure
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume


def test_borders_have_the_colours_of_instances_and_touching_instances_stay_separate():
    grey = np.full((8, 10, 3), 100, np.uint8)
    ids = np.zeros((8, 10), np.int32)
    ids[1:6, 1:5], ids[1:6, 5:9] = 3, 70000
    drawn = contours(grey, ids, alpha=0)
    assert drawn[3, 4].tolist() == list(distinct_colour(3))
    assert drawn[3, 5].tolist() == list(distinct_colour(70000))
    inside = np.zeros((8, 10), bool)
    inside[2:5, 2:4] = inside[2:5, 6:8] = True
    assert np.array_equal((drawn == 100).all(-1), inside | (ids == 0))


def test_a_figure_of_a_photograph_and_of_a_volume(tmp_path):
    ids = np.zeros((1, 30, 20, 5), np.int32)
    ids[0, 4:12, 5:15, 3] = 2
    grid = Grid.from_spacing((30, 20, 5), (1, 1, 4))
    image = Volume(ids.astype(np.float32) * 50, grid)
    figure = instance_figure(image, Volume(ids, grid, "label"), title="found")
    assert len(figure.axes) == 2
    both = instance_figure(image, Volume(ids, grid, "label"), Volume(ids * 3, grid, "label"))
    assert len(both.axes) == 3
    photo = Volume(np.zeros((3, 30, 20, 1), np.uint8), Grid.from_spacing((30, 20, 1)))
    flat = Volume(ids[..., 3:4], photo.grid, "label")
    instance_figure(photo, flat).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
