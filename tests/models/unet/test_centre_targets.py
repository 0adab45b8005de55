"""Targets of instances, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.models.unet.centre_targets import centre_targets


def targets_of(ids, label=None, spacing=(1, 1), num_classes=2):
    ids = torch.tensor(ids)[None, None]
    label = (ids > 0).long() if label is None else torch.tensor(label)[None, None]
    return centre_targets(label, ids, num_classes=num_classes, spacing=spacing)


def test_offsets_lead_to_the_voxel_nearest_to_the_centre_of_mass():
    ids = np.zeros((7, 8), np.int64)
    ids[1:6, 1:4], ids[1:6, 4:7] = 1, 2  # they touch
    found = targets_of(ids)
    rows, columns = np.indices(ids.shape)
    offsets = found.offsets[0].numpy()
    for number, centre in ((1, (3, 2)), (2, (3, 5))):
        inside = ids == number
        assert (rows[inside] + offsets[0][inside] == centre[0]).all()
        assert (columns[inside] + offsets[1][inside] == centre[1]).all()
    assert not offsets[:, ids == 0].any()
    assert torch.equal(found.inside[0, 0], torch.tensor(ids > 0))


def test_a_curved_instance_has_its_centre_inside():
    ids = np.zeros((9, 9), np.int64)
    ids[1:8, 1:3], ids[1:3, 1:8] = 1, 1  # an L, whose centre of mass is outside
    found = targets_of(ids)
    places = np.argwhere(ids)
    centres = places + found.offsets[0].numpy()[:, ids > 0].T
    assert ids[tuple(np.unique(centres, axis=0).astype(int)[0])] == 1


def test_distances_and_sizes_are_in_mm():
    ids = np.zeros((5, 9), np.int64)
    ids[1:4, 1:8] = 1
    found = targets_of(ids, spacing=(4.0, 1.0))
    # The middle row is 8 mm from the rows outside, so the columns decide: 1, 2, 3, 4 mm.
    assert found.distance[0, 0, 2].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])
    places = np.argwhere(ids) - (2, 4)
    assert found.size[0, 0][ids > 0].numpy() == pytest.approx(np.hypot(4 * places[:, 0], places[:, 1]).mean())
    assert found.known.all()


def test_the_border_of_a_patch_is_no_border_of_an_instance():
    ids = np.zeros((5, 6), np.int64)
    ids[:, :4] = 1
    found = targets_of(ids)
    depth = torch.tensor([4.0, 3.0, 2.0, 1.0]) / 4
    for row in range(5):
        # What lies above, below and to the left is not known: 1, 2, 3, 2, 1 voxels to the rows outside.
        outside = min(row + 1, 5 - row)
        known = [min(column + 1, outside) >= 4 - column for column in range(4)]
        assert found.known[0, 0, row, :4].tolist() == known
        assert torch.equal(found.distance[0, 0, row, :4], depth)
    assert found.known[0, 0, :, 4:].all()
    assert len(found.lengths) == 0
    full = targets_of(np.ones((3, 3), np.int64))
    assert not full.known.any()
    assert (full.offsets[0, :, 1, 1] == 0).all()


def test_without_an_instance_map_components_of_each_class_are_the_instances():
    label = np.zeros((5, 9), np.int64)
    label[1:4, 1:4], label[1:4, 4:7] = 1, 2
    found = centre_targets(torch.tensor(label)[None, None], None, num_classes=3, spacing=(1, 1))
    assert found.offsets[0, 1, 2].tolist() == [0, 1, 0, -1, 1, 0, -1, 0, 0]


def test_voxels_that_are_not_annotated_are_unknown():
    ids, label = np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)
    ids[1:3, 1:3], label[1:3, 1:3], label[0] = 1, 1, 2
    found = targets_of(ids, label)
    assert not found.known[0, 0, 0].any()
    assert found.known[0, 0, 1:].all()
    perfect = torch.cat([found.distance, found.offsets], dim=1)
    perfect[:, 0, 0] = 7  # an unknown voxel
    assert {name: float(loss) for name, loss in found.losses(perfect).items()} == {
        "distance": 0,
        "offsets": 0,
    }


def test_losses_are_mean_errors_relative_to_the_size():
    ids = np.zeros((5, 5), np.int64)
    ids[1:4, 1:4] = 1
    found = targets_of(ids, spacing=(2.0, 2.0))
    losses = found.losses(torch.zeros(1, 3, 5, 5))
    lengths = np.abs(np.argwhere(ids) - 2).sum(axis=1) * 2
    size = np.hypot(*(np.argwhere(ids) - 2).T).mean() * 2
    assert float(losses["offsets"]) == pytest.approx(lengths.mean() / size)
    assert float(losses["distance"]) == pytest.approx((8 * 0.5 + 1) / 9)
    assert found.lengths.tolist() == pytest.approx([size])
    nothing = targets_of(np.zeros((4, 4), np.int64))
    assert float(nothing.losses(torch.zeros(1, 3, 4, 4))["offsets"]) == 0
