"""Writing of TIFF files: OME-TIFF with slices, channels and the voxel size, which ImageJ, napari and 3D Slicer read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.io.nifti.nifti_files import storable
from medseg.storage.atomic import replacing
from medseg.volumes.volume import Volume

_LARGEST = 4_000_000_000  # bytes, beyond which a file is a BigTIFF


def write_tiff(volume: Volume, path: Path) -> None:
    """Write a volume as a compressed OME-TIFF, of which `read_tiff` reads the same voxels and voxel size.

    Args:
        volume: Channels and slices, with the orientation that `read_tiff` gives images: a TIFF file states no position in space.
        path: The file to create or replace.

    Raises:
        DataError: The volume has a position or orientation in space, or the file cannot be written.
    """
    import tifffile

    upright = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*volume.spacing, 1.0])
    if not np.allclose(volume.grid.affine, upright, atol=1e-6):
        raise DataError(
            f"{path}: the volume has a position or orientation in space, which {path.suffix} cannot store. Write .nii.gz instead."
        )
    array = np.ascontiguousarray(storable(volume.data, path).transpose(0, 3, 2, 1))
    metadata: dict[str, object] = {"axes": "CZYX"}
    if not volume.grid.in_pixels:
        for axis, size in zip("XYZ", volume.spacing, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "mm"}
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            array,
            ome=True,
            bigtiff=array.nbytes > _LARGEST,
            compression="zlib",
            photometric="minisblack",
            metadata=metadata,
        )
