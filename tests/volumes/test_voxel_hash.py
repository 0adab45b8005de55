"""One hash for one content, whatever file or memory layout holds it."""

from __future__ import annotations

import numpy as np

from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume
from medseg.volumes.voxel_hash import voxel_hash


def test_layout_and_byte_order_do_not_matter(make_volume):
    volume = make_volume(channels=2, dtype="int16")
    others = [
        volume.data.copy(order="F"),
        volume.data.astype(">i2"),
        np.moveaxis(np.moveaxis(volume.data, 0, -1).copy(), -1, 0),
    ]
    assert {voxel_hash(volume.with_data(data)) for data in others} == {voxel_hash(volume)}


def test_shape_affine_type_and_every_voxel_matter(make_volume):
    volume = make_volume(channels=2, dtype="int16")
    data = volume.data.copy()
    data[1, -1, -1, -1] += 1
    moved = np.array(volume.grid.affine)
    moved[0, 3] += 1e-3
    flat = np.zeros((1, 2, 3, 4), np.int16)
    others = [
        volume.with_data(data),
        volume.with_data(volume.data.astype(np.int32)),
        volume.with_data(volume.data[:1]),
        Volume(volume.data, Grid(volume.grid.shape, moved)),
        Volume(flat, Grid.from_spacing((2, 3, 4))),
        Volume(flat.reshape(1, 3, 2, 4), Grid.from_spacing((3, 2, 4))),
    ]
    assert len({voxel_hash(one) for one in [volume, *others]}) == 1 + len(others)
