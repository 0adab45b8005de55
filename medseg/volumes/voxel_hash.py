"""A hash of what a volume contains, whatever file it is stored in."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from medseg.volumes.volume import Volume


def voxel_hash(volume: Volume) -> str:
    """Return a hash of the shape, the affine, the data type and the voxels of a volume, and of which channels are absent.

    Two files of one volume have the same hash although their bytes differ, for example because they are compressed by
    different programs. The affine is rounded to float32, as NIfTI stores it. The memory needed is that of one slice.

    Args:
        volume: The volume.

    Returns:
        32 hexadecimal digits.

    >>> from medseg.volumes.grid import Grid
    >>> one = Volume(np.zeros((1, 2, 3, 4), np.int16), Grid.from_spacing((2, 3, 4)))
    >>> voxel_hash(one) == voxel_hash(one.with_data(one.data.copy(order="F")))
    True
    >>> voxel_hash(one) == voxel_hash(one.with_data(one.data + np.int16(1)))
    False
    """
    data = volume.data
    digest = hashlib.blake2b(digest_size=16)
    dtype = data.dtype.newbyteorder("<")
    affine = np.asarray(volume.grid.affine, np.float32) + np.float32(0)  # -0 is the same place as 0
    facts = [data.shape, dtype.str, affine.ravel().tolist(), *([volume.absent] if volume.absent else [])]
    digest.update(json.dumps(facts).encode())
    for index in range(data.shape[-1]):
        digest.update(np.asarray(data[..., index], dtype).tobytes(order="F"))
    return digest.hexdigest()
